"""Importance of attention heads: one function a published method, one score a query head, higher matters more.

The key and value rows of a KV group belong to all of its query heads: where a method sums over weights, each of these
heads carries an equal share, so that `group_scores` counts them once; with one head a group it carries them whole.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from analysis.gradients.collect import BlockGradients
from analysis.model.architecture import Attention, Projection
from analysis.model.modules import weight_of
from analysis.statistics.accumulators import HeadMoments


@dataclass(frozen=True)
class AttentionWeights:
    """Weights by unit: (units, elements) float32, one row a query head (`query`, `output`) or KV head."""

    query: torch.Tensor
    key: torch.Tensor
    value: torch.Tensor
    output: torch.Tensor


def weights_of(block: nn.Module, attention: Attention) -> AttentionWeights:
    """The attention's weights, fused or transposed ones put in order."""

    def units(projection: Projection, columns: bool = False) -> torch.Tensor:
        weight = weight_of(block.get_submodule(projection.module))
        positions = projection.positions(list(range(projection.count)))
        return (weight.T if columns else weight)[positions].float().reshape(projection.count, -1)

    return AttentionWeights(
        units(attention.query), units(attention.key), units(attention.value), units(attention.output, columns=True)
    )


def minitron_heads(moments: HeadMoments) -> torch.Tensor:
    """L2 over sequences of the mean over tokens of the norm of the head's slice of W_o's input, float32 (heads,).

    To be ranked inside each KV group. Source: Minitron (2407.14679), Eq. for F_head.
    """
    return moments.output_norm_sequence_squares.sqrt().float()


def michel(gradients: BlockGradients) -> torch.Tensor:
    """Mean over sequences of |A_h . dL/dA_h|, divided by the L2 norm over the layer's heads, float32 (heads,).

    A_h is the head's output before W_o over the whole sequence. Defined on query heads, grouped or not: key and value
    rows enter through A_h. Source: Michel et al. 2019 (1905.10650), Eq. 2.
    """
    assert gradients.heads is not None  # the registry has refused blocks without attention
    return torch.nn.functional.normalize(gradients.heads.mean_absolute(), dim=0).float()


def taylor_heads(gradients: BlockGradients) -> torch.Tensor:
    """Sum of |w g| over the head's query rows, output columns and share of key and value rows, float32 (heads,).

    Source: LLM-Pruner (2305.11627), element-wise, first order.
    """
    assert gradients.head_weights is not None  # the registry has refused blocks without attention
    return gradients.head_weights.first


def magnitude_heads(weights: AttentionWeights) -> torch.Tensor:
    """Sum of |w| over the head's query rows, output columns and share of key and value rows, float32 (heads,).

    Source: the L1 norm of Li et al. 2017 (1608.08710) on heads.
    """
    own = weights.query.abs().sum(dim=1) + weights.output.abs().sum(dim=1)
    shared = weights.key.abs().sum(dim=1) + weights.value.abs().sum(dim=1)
    share = len(own) // len(shared)
    return own + shared.repeat_interleave(share) / share


def group_scores(scores: torch.Tensor, kv_heads: int) -> torch.Tensor:
    """Scores of KV groups, (kv_heads,): the sum over their query heads (score per head, act per group)."""
    return scores.view(kv_heads, -1).sum(dim=1)
