"""Importance of MLP neurons: one function a published method.

Each takes the weights of one block's MLP and, where it needs text, the neurons' activation moments, and returns one
score a neuron, float32 (neurons,); higher matters more. A plain MLP has no gate: its terms are left out.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from analysis.gradients.collect import BlockGradients
from analysis.gradients.taylor import Taylor
from analysis.model.architecture import Mlp, Projection
from analysis.model.modules import weight_of
from analysis.statistics.accumulators import NeuronMoments


@dataclass(frozen=True)
class MlpWeights:
    """Neuron i is row i of `gate` and `up` (neurons, hidden) and column i of `down` (hidden, neurons)."""

    gate: torch.Tensor | None
    up: torch.Tensor
    down: torch.Tensor

    @property
    def inputs(self) -> list[torch.Tensor]:
        """The matrices whose rows are neurons."""
        return [self.up] if self.gate is None else [self.gate, self.up]


def weights_of(block: nn.Module, mlp: Mlp) -> MlpWeights:
    """The MLP's weights as float32 views where possible, fused or transposed ones put in order."""

    def rows(projection: Projection) -> torch.Tensor:
        weight = weight_of(block.get_submodule(projection.module))
        return weight[projection.offset : projection.offset + projection.count].float()

    down = weight_of(block.get_submodule(mlp.down.module)).float()
    return MlpWeights(rows(mlp.gate) if mlp.gate else None, rows(mlp.up), down)


def _range(rows: torch.Tensor) -> torch.Tensor:
    """max + abs(min) of each row."""
    return rows.amax(dim=1) + rows.amin(dim=1).abs()


def maw(weights: MlpWeights) -> torch.Tensor:
    """Maximum absolute weight: the range of the gate row plus the range of the up row.

    (max G_i + |min G_i|) + (max U_i + |min U_i|). Also known as PPM. Source: Martra 2024; OptiPFair.
    """
    return torch.stack([_range(rows) for rows in weights.inputs]).sum(dim=0)


def vow(weights: MlpWeights) -> torch.Tensor:
    """Variance of weights: Var(G_i) + Var(U_i), the unbiased variance. Source: OptiPFair."""
    return torch.stack([rows.var(dim=1) for rows in weights.inputs]).sum(dim=0)


def pon(weights: MlpWeights) -> torch.Tensor:
    """Product of norms: ||G_i||_1 * ||U_i||_1. Source: OptiPFair."""
    return torch.stack([rows.abs().sum(dim=1) for rows in weights.inputs]).prod(dim=0)


def l2(weights: MlpWeights) -> torch.Tensor:
    """Sum of norms: ||G_i||_2 + ||U_i||_2. Source: OptiPFair."""
    return torch.stack([rows.norm(dim=1) for rows in weights.inputs]).sum(dim=0)


def hybrid(weights: MlpWeights, moments: NeuronMoments) -> torch.Tensor:
    """Weight ranges times activation norm: (g_i + u_i + d_i) * X_i.

    g, u, d are the ranges (as in `maw`) of gate row, up row and down column, each divided by its largest in the
    block; X_i = sqrt(sum over tokens of a_i^2). Source: OptiPFair, after CFSP (2409.13199) Eq. 8.
    """
    ranges = [_range(rows) for rows in (*weights.inputs, weights.down.T)]
    static = torch.stack([values / values.max() for values in ranges]).sum(dim=0)
    return static * moments.sum_squares.sqrt().float().to(static.device)


def wanda_structured(weights: MlpWeights, moments: NeuronMoments) -> torch.Tensor:
    """||W_down[:, i]||_2 * sqrt(mean over tokens of a_i^2). Source: after Wanda (2306.11695), summed over a column."""
    norm = weights.down.norm(dim=0)
    return norm * moments.mean_square().sqrt().float().to(norm.device)


def minitron(weights: MlpWeights, moments: NeuronMoments) -> torch.Tensor:
    """L2 over sequences of the mean over tokens of |a_i|. Source: Minitron (2407.14679), activation importance."""
    return moments.sequence_squares.sqrt().float()


def cfsp_fine(weights: MlpWeights, moments: NeuronMoments) -> torch.Tensor:
    """Relative weights times activation norm.

    Mean over the hidden dimension of |W_ij| / (sum of |W| over that weight's row), added over gate, up and down, times
    ||a_i||_2. For gate and up the row sum runs over neurons (the hidden channel's competition between neurons), and
    for down over the neurons feeding one output, so that no term cancels to a constant.
    Source: CFSP (2409.13199) Eq. 7 and 8.
    """
    shares = [(matrix.abs() / matrix.abs().sum(dim=1, keepdim=True)).mean(dim=0) for matrix in _by_output(weights)]
    static = torch.stack(shares).sum(dim=0)
    return static * moments.sum_squares.sqrt().float().to(static.device)


def flap(weights: MlpWeights, moments: NeuronMoments) -> torch.Tensor:
    """Fluctuation: Var over tokens of a_i, times ||W_down[:, i]||_2^2; standardised within the block, so of mean 0.

    Source: FLAP (2312.11983), Eq. 5 and 6.
    """
    mean = moments.sum / moments.tokens
    variance = (moments.mean_square() - mean.square()).clamp_min(0).float()
    fluctuation = variance.to(weights.down.device) * weights.down.square().sum(dim=0)
    return (fluctuation - fluctuation.mean()) / fluctuation.std().clamp_min(torch.finfo(torch.float32).tiny)


def taylor_first(gradients: BlockGradients) -> torch.Tensor:
    """Sum of |w g| over gate row, up row and down column. Source: LLM-Pruner (2305.11627), element-wise."""
    return _taylor(gradients).first


def taylor_vectorized(gradients: BlockGradients) -> torch.Tensor:
    """|sum of w g| of gate row, up row and down column, added. Source: LLM-Pruner (2305.11627), vector-wise."""
    return _taylor(gradients).vectorized


def taylor_second(gradients: BlockGradients) -> torch.Tensor:
    """Sum of w^2 F over gate row, up row and down column, F the mean over windows of the squared gradient.

    Source: LLM-Pruner (2305.11627), the second-order term alone.
    """
    return _taylor(gradients).second


def taylor_mixed(gradients: BlockGradients) -> torch.Tensor:
    """Sum of |w g - w^2 F / 2| over gate row, up row and down column. Source: LLM-Pruner (2305.11627), Eq. 5."""
    return _taylor(gradients).mixed


def _taylor(gradients: BlockGradients) -> Taylor:
    assert gradients.neuron_weights is not None  # the registry has refused blocks without an MLP
    return gradients.neuron_weights


def _by_output(weights: MlpWeights) -> list[torch.Tensor]:
    """All matrices as (hidden, neurons)."""
    return [rows.T for rows in weights.inputs] + [weights.down]
