"""How wide MLPs should be, and which neurons go. A method only suggests; the measurement decides."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch

from analysis.model.architecture import Architecture, Mlp
from surgery.errors import InputError
from surgery.pruning.allocation import nearest
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
        """Neurons that an MLP keeps, at most what it has.

        Raises:
            InputError: the numbers make no sense.
        """
        return nearest(mlp.width, self.wanted(mlp), self.divisor)

    def wanted(self, mlp: Mlp) -> float:
        """Neurons that an MLP should keep, before rounding.

        Raises:
            InputError: the numbers make no sense.
        """
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
    """The edit that narrows the MLPs of the scored blocks to the budget; None when nothing would go.

    Args:
        architecture: the source model.
        scores: neuron scores by block, (neurons,) each.
        budget: how wide each MLP should be.
        chosen_by: recorded on the edit.
    """
    return narrow_to(scores, {index: budget.width(_mlp(architecture, index)) for index in scores}, chosen_by)


def narrow_to(
    scores: Mapping[int, torch.Tensor], widths: Mapping[int, int], chosen_by: ChosenBy | None = None
) -> PruneNeurons | None:
    """The edit that leaves the highest neurons of each block; None when nothing would go.

    Args:
        scores: neuron scores by block, (neurons,) each.
        widths: neurons that stay, by block.
        chosen_by: recorded on the edit.
    """
    removed = {index: tuple(lowest(scores[index], len(scores[index]) - width)) for index, width in widths.items()}
    removed = {index: going for index, going in removed.items() if going}
    return PruneNeurons(removed=removed, chosen_by=chosen_by) if removed else None


def _mlp(architecture: Architecture, index: int) -> Mlp:
    mlp = architecture.blocks[index].mlp
    if mlp is None:
        raise InputError(f"Block {index} has no MLP to narrow.")
    return mlp
