"""From scores and a budget to the explicit indices of an edit. A method only suggests; the measurement decides."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch

from analysis import heads
from analysis.architecture import Architecture, Block, Mlp
from surgery.errors import InputError
from surgery.recipe import ChosenBy, PruneHeads, PruneKvGroups, PruneNeurons

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
        if wanted >= mlp.width:
            return mlp.width
        multiples = max(1, int(wanted / self.divisor + 0.5))
        return min(multiples * self.divisor, mlp.width)

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
    removed: dict[int, tuple[int, ...]] = {}
    for index, values in scores.items():
        mlp = architecture.blocks[index].mlp
        if mlp is None:
            raise InputError(f"Block {index} has no MLP to narrow.")
        going = lowest(values, mlp.width - budget.width(mlp))
        if going:
            removed[index] = tuple(going)
    return PruneNeurons(removed=removed, chosen_by=chosen_by) if removed else None


def prune_heads(
    architecture: Architecture, scores: dict[int, torch.Tensor], per_group: int, chosen_by: ChosenBy | None = None
) -> PruneHeads | None:
    """The edit that removes the `per_group` lowest query heads inside each KV group of the scored blocks.

    Raises:
        InputError: a group would lose all its heads.
    """
    removed: dict[int, tuple[int, ...]] = {}
    for index, values in scores.items():
        attention = architecture.blocks[index].attention
        if attention is None:
            raise InputError(f"Block {index} has no attention to narrow.")
        size = attention.heads_per_group
        if per_group >= size:
            raise InputError(f"Block {index} has {size} query heads for each KV group: fewer than that can go.")
        going = [
            group * size + head
            for group in range(attention.kv_heads)
            for head in lowest(values[group * size : (group + 1) * size], per_group)
        ]
        if going:
            removed[index] = tuple(sorted(going))
    return PruneHeads(removed=removed, chosen_by=chosen_by) if removed else None


def prune_kv_groups(
    architecture: Architecture, scores: dict[int, torch.Tensor], groups: int, chosen_by: ChosenBy | None = None
) -> PruneKvGroups | None:
    """The edit that removes the `groups` lowest KV groups of each scored block, by the sum over their query heads.

    Raises:
        InputError: a block would lose all its groups.
    """
    removed: dict[int, tuple[int, ...]] = {}
    for index, values in scores.items():
        attention = architecture.blocks[index].attention
        if attention is None:
            raise InputError(f"Block {index} has no attention to narrow.")
        if groups >= attention.kv_heads:
            raise InputError(f"Block {index} has {attention.kv_heads} KV groups: fewer than that can go.")
        going = lowest(heads.group_scores(values, attention.kv_heads), groups)
        if going:
            removed[index] = tuple(going)
    return PruneKvGroups(removed=removed, chosen_by=chosen_by) if removed else None


def parameter_target(text: str, parameters: int) -> int:
    """Parameters that should stay: "-20%" (that share less), "80%" (that share), or a plain count.

    Raises:
        InputError: not one of these, or not between 0 and what the model has.
    """
    match = re.fullmatch(r"\s*(-?)(\d+(?:\.\d+)?)\s*(%?)\s*", text)
    if not match or (match[1] and not match[3]):
        raise InputError(f"{text!r} is not a parameter budget: write -20%, 80% or a number of parameters.")
    value = float(match[2])
    target = int(parameters * (1 - value / 100 if match[1] else value / 100)) if match[3] else int(value)
    if not 0 < target <= parameters:
        raise InputError(f"A budget of {text} leaves {target:,} parameters, and the model has {parameters:,}.")
    return target


def nearest_width(blocks: Sequence[Block], excess: int) -> int:
    """Neurons to keep in every MLP so that about `excess` parameters go, the same number in each.

    Raises:
        InputError: the MLPs do not hold that many parameters.
    """
    mlps = [block.mlp for block in blocks if block.mlp is not None]
    if not mlps:
        raise InputError("The model has no MLP to narrow.")
    going = round(excess / sum(mlp.per_neuron for mlp in mlps))
    width = min(mlp.width for mlp in mlps) - going
    if width < 1:
        raise InputError("The MLPs do not hold that many parameters: remove blocks as well, or ask for less.")
    return width


def count_for(sizes: Iterable[int], excess: int) -> int:
    """How many of the first `sizes` must go so that their sum comes nearest to `excess`.

    Raises:
        InputError: all but one together are not enough.
    """
    items = list(sizes)
    total, best, nearest = 0, 0, excess
    for count, size in enumerate(items[:-1], 1):
        total += size
        if abs(excess - total) < nearest:
            best, nearest = count, abs(excess - total)
    if excess > total + (items[-1] if items else 0) / 2:
        raise InputError("That budget is more than these parts hold: combine methods, or ask for less.")
    return best
