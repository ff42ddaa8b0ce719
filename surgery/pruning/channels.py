"""The kind that removes channels of the residual stream: a budget to a width, scores to channels."""

from __future__ import annotations

from typing import Any

from analysis.importance import registry
from analysis.importance.registry import Method
from surgery.errors import InputError
from surgery.pruning.allocation import nearest
from surgery.pruning.kinds import Kind
from surgery.pruning.neurons import lowest
from surgery.pruning.request import Request
from surgery.recipe.edits import PruneHidden


def narrow(request: Request, method: Method) -> list[Any]:
    """The edit that removes the channels with the lowest scores; none where all stay."""
    size = request.model.architecture.hidden_size
    count = size - _width(request, size)
    going = lowest(registry.score_hidden(method, request.evidence), count)
    return [PruneHidden(removed=tuple(going), chosen_by=request.origin)] if going else []


def _width(request: Request, size: int) -> int:
    """Channels that stay."""
    source, budget, divisor = request.model.architecture, request.budget, request.budget.divisor
    if not 1 <= divisor <= size:
        raise InputError(f"The divisor must be between 1 and the hidden size ({size}).")
    if budget.params is not None:
        target = source.parameters - request.excess
        counts = {value: source.with_hidden(value).parameters for value in (*range(divisor, size, divisor), size)}
        step = source.parameters - source.with_hidden(max(size - divisor, 1)).parameters
        if target < counts[divisor] - step / 2:
            raise InputError("That budget is more than fewer channels can save: combine methods, or ask for less.")
        return min(counts, key=lambda value: abs(counts[value] - target))
    wanted = float(budget.width) if budget.width is not None else size * (1 - (budget.percent or 0) / 100)
    if not 0 < wanted <= size:
        raise InputError(f"The residual stream has {size} channels: between 1 and {size} can stay.")
    return nearest(size, wanted, divisor)


HIDDEN = Kind(
    "hidden",
    title="Channels",
    does="removes channels of the residual stream",
    ops={"prune_hidden": "channel"},
    budgets=("width", "percent", "params"),
    rules=(),
    choose=narrow,
    divisor=True,
    probe=PruneHidden(removed=(0,)),
)
