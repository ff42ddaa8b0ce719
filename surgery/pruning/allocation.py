"""How many neurons or heads stay in each block, so that a budget over the whole model is met within one unit.

First a wanted number for every block, as a real number; then each is rounded to what a block can have, and the sum is
corrected one step at a time where the rounding was worst.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch

from surgery.errors import InputError
from surgery.pruning.budget import Rules


@dataclass(frozen=True)
class Layer:
    """What one block can lose.

    `cost`: what each unit counts in the budget (parameters, or heads). `scores`: (units,), ascending, of the unit that
    goes first, second and so on, so scaled that they can be compared with another block's.
    """

    block: int
    cost: int
    scores: torch.Tensor

    @property
    def count(self) -> int:
        """Units in the block."""
        return len(self.scores)

    def smallest(self, divisor: int) -> int:
        """Units that stay at least: one multiple of the divisor."""
        return min(divisor, self.count)


def allocate(
    layers: Sequence[Layer], kept: float, divisor: int, rules: Rules, importance: Mapping[int, float] | None = None
) -> dict[int, int]:
    """Units that stay in each block.

    Args:
        layers: the blocks that may lose units.
        kept: what should stay in them together, in the layers' costs.
        divisor: units stay in multiples of this, or all of a block's.
        rules: the allocation and its options.
        importance: coarse importance by block, for the allocation `cfsp`.

    Raises:
        InputError: the layers cannot shrink to `kept`.
    """
    step = min((layer.smallest(divisor) * layer.cost for layer in layers), default=0)
    if not layers or kept < sum(layer.smallest(divisor) * layer.cost for layer in layers) - step / 2:
        raise InputError("That budget is more than these parts hold: combine methods, protect less, or ask for less.")
    if rules.allocation == "cfsp":
        assert importance is not None  # the suggestion provides it
        wanted = by_importance(layers, kept, divisor, [importance[layer.block] for layer in layers], rules.sharpness)
    elif rules.allocation == "uniform":
        wanted = _spread(layers, kept, divisor, [1.0] * len(layers))
    else:
        wanted = by_ranking(layers, kept, divisor)
    widths = [nearest(layer.count, value, divisor) for layer, value in zip(layers, wanted, strict=True)]
    if not rules.same_width:
        widths = _corrected(layers, widths, wanted, kept, divisor)
    return {layer.block: width for layer, width in zip(layers, widths, strict=True)}


def standardised(scores: torch.Tensor) -> torch.Tensor:
    """Scores less their mean, over their standard deviation, float64; zeros where all are equal."""
    values = scores.double()
    deviation = values.std(correction=0)
    return (values - values.mean()) / deviation if deviation > 0 else torch.zeros_like(values)


def nearest(count: int, wanted: float, divisor: int) -> int:
    """The multiple of the divisor nearest to `wanted`, never below one multiple; all `count` from there on."""
    if wanted >= count:
        return count
    return min(max(1, int(wanted / divisor + 0.5)) * divisor, count)


def by_importance(
    layers: Sequence[Layer], kept: float, divisor: int, importance: Sequence[float], sharpness: float
) -> list[float]:
    """CFSP's coarse-to-fine budget: keep_l = sigmoid(a (I_l - mean I)) / mean(sigmoid) * (1 - p), with a the sharpness.

    A block cannot keep more than all or less than one multiple: what that cuts off is spread over the others in the
    same proportions, so that the sum stays `kept`. Source: CFSP (2409.13199), Eq. 4 and 5; I_l per token.
    """
    values = torch.tensor(importance, dtype=torch.float64)
    return _spread(layers, kept, divisor, torch.sigmoid(sharpness * (values - values.mean())).tolist())


def _spread(layers: Sequence[Layer], kept: float, divisor: int, weights: Sequence[float]) -> list[float]:
    """Units in proportion to weight x count, within each layer's limits, with `kept` as the sum of their costs."""

    def units(scale: float) -> list[float]:
        return [
            min(max(scale * weight * layer.count, layer.smallest(divisor)), layer.count)
            for layer, weight in zip(layers, weights, strict=True)
        ]

    low, high = 0.0, 1 / max(min(weights), 1e-12)
    for _ in range(100):
        middle = (low + high) / 2
        total = sum(layer.cost * value for layer, value in zip(layers, units(middle), strict=True))
        low, high = (middle, high) if total < kept else (low, middle)
    return units(high)


def by_ranking(layers: Sequence[Layer], kept: float, divisor: int) -> list[float]:
    """One ranking over all layers: the lowest go, however many of them are in one block, but one multiple stays."""
    movable = [layer.scores[: layer.count - layer.smallest(divisor)].double() for layer in layers]
    order = torch.argsort(torch.cat(movable), stable=True)
    owner = torch.cat([torch.full((len(values),), index) for index, values in enumerate(movable)])[order]
    costs = torch.tensor([layer.cost for layer in layers])[owner].cumsum(0)
    excess = sum(layer.count * layer.cost for layer in layers) - kept
    totals = torch.cat([torch.zeros(1), costs.double()])
    gone = torch.bincount(owner[: int((totals - excess).abs().argmin())], minlength=len(layers))
    return [layer.count - float(gone[index]) for index, layer in enumerate(layers)]


def _corrected(
    layers: Sequence[Layer], widths: Sequence[int], wanted: Sequence[float], kept: float, divisor: int
) -> list[int]:
    """Widths whose costs come nearest to `kept`: step by step in the block that was rounded most the wrong way.

    Of blocks rounded alike the one goes first that loses the lowest (or regains the highest) score.
    """
    found = list(widths)
    error = sum(layer.cost * width for layer, width in zip(layers, found, strict=True)) - kept
    while True:
        sign = 1 if error > 0 else -1
        move = _down if error > 0 else _up
        steps = [
            (round(sign * (wanted[index] - found[index]), 9), sign * _marginal(layer, found[index], sign), index)
            for index, layer in enumerate(layers)
            if move(layer.count, found[index], divisor) != found[index]
        ]
        best = next(
            (index for *_, index in sorted(steps) if _improves(layers[index], found[index], error, divisor, move)), None
        )
        if best is None:
            return found
        new = move(layers[best].count, found[best], divisor)
        error += layers[best].cost * (new - found[best])
        found[best] = new


def _improves(layer: Layer, width: int, error: float, divisor: int, move: Callable[[int, int, int], int]) -> bool:
    return abs(error + layer.cost * (move(layer.count, width, divisor) - width)) < abs(error)


def _marginal(layer: Layer, width: int, sign: int) -> float:
    """Score of the unit that would go next, or of the one that went last."""
    gone = layer.count - width
    return float(layer.scores[gone if sign > 0 else gone - 1])


def _down(count: int, width: int, divisor: int) -> int:
    """The next smaller width; the same where there is none."""
    return max((width - 1) // divisor * divisor, min(divisor, width))


def _up(count: int, width: int, divisor: int) -> int:
    """The next larger width; the same where there is none."""
    return min((width // divisor + 1) * divisor, count)
