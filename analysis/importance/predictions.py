"""Predicted change of the loss when a unit is removed, from one backward pass.

Derivation. Give a unit a multiplier m on what it hands on (see `Gates` in `analysis.gradients.collect`): m = 1 is the
model, m = 0 the model without the unit. The mean negative log likelihood of a token expanded at m = 1 and read off
at m = 0 is

    L(0) - L(1) = -dL/dm + 1/2 d2L/dm2 + ...

The first-order prediction is the first term: dL/dm is the sum over tokens of f . g, f what the unit hands on and g the
gradient at it. The second-order prediction adds half an estimate of the second derivative. With S = T L_w the negative
log likelihood of a whole window of T scored tokens, E[d2S/dm2] = E[(dS/dm)^2] where windows are drawn from the model
(the Fisher information of m), hence d2L/dm2 is estimated by T times the mean over windows of (dL_w/dm)^2: the
empirical Fisher, exact in expectation only for text of the model's own, and noisy with few windows.

Multipliers: a block's on out - in; a sublayer's on what it adds to the state (post-norm and residual scaling
included); a KV group's and a query head's on their slice of the output projection's input; a neuron's on its channel
of the down projection's input. Where removing heads also changes a norm over all heads (OLMo 2), that is left out.
Biases of output and down projections stay with heads and neurons removed, and go with a sublayer.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch

from analysis.gradients.collect import BlockGradients, Gates, Gradients

Order = Literal["first", "second"]


@dataclass(frozen=True)
class Changes:
    """Predicted changes of the mean negative log likelihood of a token (nats) when each unit alone is removed.

    `blocks`, `attention` and `mlp` are (blocks,), 0 where there is none; `kv_groups` and `neurons` have (units,) a
    block, empty where there are none. All float32.
    """

    blocks: torch.Tensor
    attention: torch.Tensor
    mlp: torch.Tensor
    kv_groups: list[torch.Tensor]
    neurons: list[torch.Tensor]


@dataclass(frozen=True)
class Predictions:
    """The changes to first and to second order."""

    first: Changes
    second: Changes


def predicted_changes(gradients: Gradients) -> Predictions:
    """Predictions of both orders for each block, attention, MLP, KV group and neuron."""
    return Predictions(_changes(gradients, "first"), _changes(gradients, "second"))


def _changes(gradients: Gradients, order: Order) -> Changes:
    scored = gradients.scored

    def units(name: str) -> list[torch.Tensor]:
        found = [getattr(block, name) for block in gradients.blocks]
        return [torch.zeros(0) if gates is None else change(gates, scored, order) for gates in found]

    def single(name: str) -> torch.Tensor:
        return torch.stack([values.sum() for values in units(name)])  # one unit, or none

    return Changes(single("block"), single("attention"), single("mlp"), units("kv_groups"), units("neurons"))


def change(gates: Gates, scored: int, order: Order = "second") -> torch.Tensor:
    """Predicted change of the loss when each unit is removed, float32 (units,); windows have `scored` scored tokens."""
    first = -gates.mean()
    return (first if order == "first" else first + scored * gates.mean_square() / 2).float()


def predicted_blocks(gradients: Gradients) -> torch.Tensor:
    """Second-order predicted change of the loss without each block, float32 (blocks,). Source: this module."""
    return _changes(gradients, "second").blocks


def predicted_attention(gradients: Gradients) -> torch.Tensor:
    """Second-order predicted change of the loss without each attention, float32 (blocks,). Source: this module."""
    return _changes(gradients, "second").attention


def predicted_mlp(gradients: Gradients) -> torch.Tensor:
    """Second-order predicted change of the loss without each MLP, float32 (blocks,). Source: this module."""
    return _changes(gradients, "second").mlp


def predicted_heads(gradients: BlockGradients) -> torch.Tensor:
    """Second-order predicted change of the loss without each query head, float32 (heads,). Source: this module."""
    assert gradients.heads is not None  # the registry has refused blocks without attention
    return change(gradients.heads, gradients.scored)


def predicted_neurons(gradients: BlockGradients) -> torch.Tensor:
    """Second-order predicted change of the loss without each neuron, float32 (neurons,). Source: this module."""
    assert gradients.neurons is not None  # the registry has refused blocks without an MLP
    return change(gradients.neurons, gradients.scored)


def rank_correlation(predicted: torch.Tensor, measured: torch.Tensor) -> float:
    """Spearman's rank correlation of two (units,) tensors; NaN where either is constant or there are fewer than two.

    Pearson's correlation of the ranks, with tied values sharing the mean of their ranks.
    """
    ranks = torch.stack([_ranks(predicted), _ranks(measured)])
    centred = ranks - ranks.mean(dim=1, keepdim=True)
    norms = centred.norm(dim=1)
    return float(centred[0] @ centred[1] / (norms[0] * norms[1]))


def _ranks(values: torch.Tensor) -> torch.Tensor:
    """Ranks from 1, float64; ties share their mean rank."""
    _, inverse, counts = torch.unique(values, return_inverse=True, return_counts=True)
    last = counts.cumsum(dim=0).double()
    return (last - (counts - 1) / 2)[inverse]
