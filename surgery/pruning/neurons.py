"""The kind that narrows MLPs: a budget to widths, scores to neurons."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch

from analysis.importance.registry import Method
from analysis.model.architecture import Architecture, Mlp
from surgery.errors import InputError
from surgery.pruning.allocation import Layer, nearest, standardised
from surgery.pruning.budget import Budget
from surgery.pruning.kinds import ENDS, Kind
from surgery.pruning.request import Request
from surgery.recipe.base import ChosenBy
from surgery.recipe.edits import PruneNeurons

Unit = Literal["expansion_ratio", "width", "percent"]


@dataclass(frozen=True)
class WidthBudget:
    """How wide an MLP should be.

    `expansion_ratio`: width over hidden size, 2.0 for 200%. `width`: neurons. `percent`: percent of the layer's own
    neurons that go. `divisor`: the width is rounded to the nearest multiple, never below one multiple.
    """

    unit: Unit
    value: float
    divisor: int = 1

    def width(self, mlp: Mlp) -> int:
        """Neurons that an MLP keeps, at most what it has. Raises InputError: the numbers make no sense."""
        return nearest(mlp.width, self.wanted(mlp), self.divisor)

    def wanted(self, mlp: Mlp) -> float:
        """Neurons that an MLP should keep, before rounding. Raises InputError: the numbers make no sense."""
        if self.divisor < 1 or self.divisor > mlp.width:
            raise InputError(f"The divisor must be between 1 and the MLP's width ({mlp.width}).")
        wanted = {
            "expansion_ratio": self.value * mlp.hidden_size,
            "width": self.value,
            "percent": mlp.width * (1 - self.value / 100),
        }[self.unit]
        if not 0 <= wanted < float("inf") or (self.unit != "percent" and wanted == 0):
            raise InputError(
                f"A {self.unit.replace('_', ' ')} of {self.value:g} leaves no neurons: give a larger budget."
            )
        return wanted

    def document(self) -> dict[str, float | int]:
        """For `chosen_by`."""
        return {self.unit: self.value, "divisor": self.divisor}


def lowest(scores: torch.Tensor, count: int) -> list[int]:
    """Indices of the lowest scores, ascending; of equal scores the lower index goes first."""
    order = torch.argsort(scores.double(), stable=True)
    return sorted(int(index) for index in order[:count])


def prune_neurons(
    architecture: Architecture, scores: dict[int, torch.Tensor], budget: WidthBudget, chosen_by: ChosenBy | None = None
) -> PruneNeurons | None:
    """The edit that narrows MLPs to the budget, by scores (neurons,) of each block; None when nothing would go."""
    return narrow_to(scores, {index: budget.width(_mlp(architecture, index)) for index in scores}, chosen_by)


def narrow_to(
    scores: Mapping[int, torch.Tensor], widths: Mapping[int, int], chosen_by: ChosenBy | None = None
) -> PruneNeurons | None:
    """The edit that leaves the highest neurons, by scores (neurons,) of each block; None when nothing would go."""
    removed = {index: tuple(lowest(scores[index], len(scores[index]) - width)) for index, width in widths.items()}
    removed = {index: going for index, going in removed.items() if going}
    return PruneNeurons(removed=removed, chosen_by=chosen_by) if removed else None


def _mlp(architecture: Architecture, index: int) -> Mlp:
    mlp = architecture.blocks[index].mlp
    if mlp is None:
        raise InputError(f"Block {index} has no MLP to narrow.")
    return mlp


def narrow(request: Request, method: Method) -> list[Any]:
    """The edit that leaves the neurons with the highest scores; none where all stay."""
    source, budget, rules = request.model.architecture, request.budget, request.rules
    mlps = {
        block.index: block.mlp
        for block in source.blocks
        if block.mlp is not None and not rules.protects(block.index, len(source.blocks))
    }
    if not mlps:
        raise InputError("No unprotected block has an MLP to narrow: protect fewer blocks.")
    each = _width_budget(budget, mlps.values())
    wanted = {block: min(each.wanted(mlp), mlp.width) for block, mlp in mlps.items()}  # refuses senseless numbers
    scores = request.model.neuron_scores(method, request.windows, rules.seed, request.stop)
    if budget.params is None and rules.allocation == "uniform":
        widths = {block: each.width(mlp) for block, mlp in mlps.items()}
    else:
        scale = (lambda values: values) if rules.allocation == "raw" else standardised
        layers = [Layer(block, mlp.per_neuron, scale(scores[block]).sort().values) for block, mlp in mlps.items()]
        if budget.params is not None:
            kept = float(sum(mlp.width * mlp.per_neuron for mlp in mlps.values()) - request.excess)
        else:
            kept = sum(wanted[block] * mlp.per_neuron for block, mlp in mlps.items())
        widths = request.allocated(layers, kept)
    edit = narrow_to(scores, widths, request.origin)
    return [edit] if edit else []


def _width_budget(budget: Budget, mlps: Iterable[Mlp]) -> WidthBudget:
    """How wide each MLP should be; for a parameter budget as wide as the narrowest is."""
    amounts: dict[Unit, float | None] = {
        "expansion_ratio": budget.expansion_ratio,
        "width": budget.width,
        "percent": budget.percent,
    }
    for unit, value in amounts.items():
        if value is not None:
            return WidthBudget(unit, value, budget.divisor)
    return WidthBudget("width", min(mlp.width for mlp in mlps), budget.divisor)


NEURONS = Kind(
    "neurons",
    title="Neurons",
    does="narrows MLPs",
    ops={"prune_neurons": "neuron"},
    budgets=("expansion_ratio", "width", "percent", "params"),
    rules=(*ENDS, "allocation", "sharpness", "same_width"),
    choose=narrow,
    divisor=True,
)
