"""Weight gradients over windows, and their Taylor sums over the weights of each unit."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from analysis.model.architecture import Attention, Mlp, Projection


@dataclass
class WeightGradients:
    """Gradients of one weight over windows, float32 in the weight's own layout."""

    weight: torch.Tensor
    windows: int
    sum: torch.Tensor
    sum_squares: torch.Tensor

    @classmethod
    def empty(cls, weight: torch.Tensor) -> WeightGradients:
        """Nothing seen yet."""
        return cls(weight, 0, *(torch.zeros_like(weight, dtype=torch.float32, requires_grad=False) for _ in range(2)))

    def update(self, gradient: torch.Tensor) -> None:
        """Add the gradient of one window's loss."""
        gradient = gradient.float()
        self.windows += 1
        self.sum += gradient
        self.sum_squares.addcmul_(gradient, gradient)


@dataclass
class Taylor:
    """LLM-Pruner's estimates of the loss that removing a unit costs, (units,) float32 on the CPU.

    With w a weight, g the gradient of the mean loss and F the mean over windows of the squared gradient: sums over the
    unit's weights of |w g|, w^2 F and |w g - w^2 F / 2|; `vectorized` takes |sum of w g| over each row or column of
    the unit and adds these.
    """

    first: torch.Tensor
    vectorized: torch.Tensor
    second: torch.Tensor
    mixed: torch.Tensor

    def __add__(self, other: Taylor) -> Taylor:
        return Taylor(*(mine + its for mine, its in zip(vars(self).values(), vars(other).values(), strict=True)))

    def shared(self, units: int) -> Taylor:
        """Each of these units' sums divided evenly among the `units` / own units that share it, in order."""
        share = units // len(self.first)
        return Taylor(*(values.repeat_interleave(share) / share for values in vars(self).values()))


def per_unit(projection: Projection, values: torch.Tensor) -> torch.Tensor:
    """Sums over each unit's rows (or columns) of values by row (or column) of the module, (units,)."""
    positions = torch.tensor(projection.positions(list(range(projection.count))), device=values.device)
    return values[positions].view(projection.count, projection.size).sum(dim=1)


def neuron_taylor(mlp: Mlp, gradients: Mapping[str, WeightGradients]) -> Taylor:
    """Sums over each neuron's gate row (where there is one), up row and down column; biases left out."""
    parts = [_taylor(mlp.up, gradients, units_are_rows=True), _taylor(mlp.down, gradients, units_are_rows=False)]
    if mlp.gate is not None:
        parts.append(_taylor(mlp.gate, gradients, units_are_rows=True))
    return sum(parts[1:], parts[0])


def head_taylor(attention: Attention, gradients: Mapping[str, WeightGradients]) -> Taylor:
    """Sums over each query head's query rows and output columns, and its share of its group's key and value rows.

    The query heads of a KV group carry equal shares of the key and value rows, so that summing a group counts them
    once; with one head a group the head carries them whole. Biases and head norms are left out.
    """
    heads = attention.query_heads
    found = _taylor(attention.query, gradients, units_are_rows=True)
    found += _taylor(attention.output, gradients, units_are_rows=False)
    for projection in (attention.key, attention.value):
        found += _taylor(projection, gradients, units_are_rows=True).shared(heads)
    return found


def _taylor(projection: Projection, gradients: Mapping[str, WeightGradients], units_are_rows: bool) -> Taylor:
    found = gradients[projection.module]
    weight = found.weight.detach().float()
    product = weight * (found.sum / found.windows)
    curvature = weight.square() * (found.sum_squares / found.windows)
    across = 0 if units_are_rows == projection.transposed else 1

    def units(values: torch.Tensor) -> torch.Tensor:
        return per_unit(projection, values.sum(dim=across)).cpu()

    vectorized = per_unit(projection, product.sum(dim=across).abs()).cpu()
    return Taylor(units(product.abs()), vectorized, units(curvature), units((product - curvature / 2).abs()))
