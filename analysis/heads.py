"""Importance of attention heads: one function a published method, one score a query head, higher matters more."""

from __future__ import annotations

import torch

from analysis.accumulators import HeadMoments


def minitron_heads(moments: HeadMoments) -> torch.Tensor:
    """L2 over sequences of the mean over tokens of the norm of the head's slice of W_o's input, float32 (heads,).

    To be ranked inside each KV group. Source: Minitron (2407.14679), Eq. for F_head.
    """
    return moments.output_norm_sequence_squares.sqrt().float()


def group_scores(scores: torch.Tensor, kv_heads: int) -> torch.Tensor:
    """Scores of KV groups, (kv_heads,): the sum over their query heads (score per head, act per group)."""
    return scores.view(kv_heads, -1).sum(dim=1)
