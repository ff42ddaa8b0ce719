"""The kind that removes attention heads: scores of query heads and a budget to explicit KV groups or query heads."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from analysis.importance import heads, registry
from analysis.importance.registry import Method
from analysis.model.architecture import Architecture, Attention
from surgery.errors import InputError
from surgery.pruning.allocation import Layer
from surgery.pruning.budget import HeadUnit, Rules
from surgery.pruning.kinds import ENDS, Kind
from surgery.pruning.neurons import lowest
from surgery.pruning.request import Request
from surgery.recipe.base import ChosenBy
from surgery.recipe.edits import PruneHeads, PruneKvGroups


def prune(request: Request, method: Method) -> list[Any]:
    """The edit that removes KV groups, or query heads of each of them; none where nothing would go."""
    source, budget, rules = request.model.architecture, request.budget, request.rules
    attentions = movable(source, rules)
    count = parameters_in_step if budget.params is not None else heads_in_step
    scores = {block: registry.score_units(method, request.evidence, block) for block in attentions}
    layers = [
        layer(block, attention, scores[block], rules, count(attention, rules.unit))
        for block, attention in attentions.items()
    ]
    there = sum(layer.count * layer.cost for layer in layers)
    if budget.percent is not None:
        if not 0 <= budget.percent < 100:
            raise InputError(f"{budget.percent:g} is not a percentage of heads that can go: give 0 to 99.")
        kept = there * (1 - budget.percent / 100)
    else:
        kept = float(there - (request.excess if budget.params is not None else (budget.heads or 0)))
    stay = request.allocated(layers, kept)
    going = {layer.block: layer.count - stay[layer.block] for layer in layers}
    edit = (prune_kv_groups if rules.unit == "kv_groups" else prune_heads)(source, scores, going, request.origin)
    return [edit] if edit else []


def movable(architecture: Architecture, rules: Rules) -> dict[int, Attention]:
    """Attentions of unprotected blocks from which the rules' unit can leave, by block; InputError if there is none."""
    found = {
        block.index: block.attention
        for block in architecture.blocks
        if block.attention is not None and not rules.protects(block.index, len(architecture.blocks))
    }
    found = {block: attention for block, attention in found.items() if steps(attention, rules.unit) > 1}
    if found:
        return found
    if rules.unit == "query_heads":
        raise InputError(
            "No query head can go alone where each has a key/value head of its own: use --unit kv_groups, or protect "
            "fewer blocks."
        )
    raise InputError("No KV group can go where a block has only one: use --unit query_heads, or protect fewer blocks.")


def steps(attention: Attention, unit: HeadUnit) -> int:
    """Units of a block: its KV groups; or its query heads counted one from every group, as only they can go."""
    return attention.kv_heads if unit == "kv_groups" else attention.heads_per_group


def heads_in_step(attention: Attention, unit: HeadUnit) -> int:
    """KV groups, or query heads, that leave with one unit."""
    return 1 if unit == "kv_groups" else attention.kv_heads


def parameters_in_step(attention: Attention, unit: HeadUnit) -> int:
    """Parameters that leave with one unit."""
    if unit == "kv_groups":
        return attention.per_kv_head + attention.heads_per_group * attention.per_query_head
    return attention.kv_heads * attention.per_query_head


def layer(block: int, attention: Attention, scores: torch.Tensor, rules: Rules, cost: int) -> Layer:
    """A block's units, by scores (query heads,), in the order in which they go; each costs `cost` in the budget.

    Scores are L2-normalised over the block's query heads first, so that they can be ranked across blocks (Michel et
    al. 2019, section 3.2), unless the allocation takes them as they are. A KV group counts as the sum of its query
    heads, a step of query heads as the sum of those that go together.
    """
    values = scores.double()
    if rules.allocation != "raw" and values.norm() > 0:
        values = values / values.norm()
    if rules.unit == "kv_groups":
        ordered = heads.group_scores(values, attention.kv_heads).sort().values
    else:
        ordered = values.view(attention.kv_heads, -1).sort(dim=1).values.sum(dim=0)
    return Layer(block, cost, ordered)


def prune_heads(
    architecture: Architecture,
    scores: Mapping[int, torch.Tensor],
    per_group: Mapping[int, int],
    chosen_by: ChosenBy | None = None,
) -> PruneHeads | None:
    """The edit that removes the lowest query heads inside each KV group; None when nothing would go.

    Raises InputError where a group would lose all its heads. `scores`: (query heads,) by block.
    """
    removed: dict[int, tuple[int, ...]] = {}
    for index, count in per_group.items():
        attention = _attention(architecture, index)
        size = attention.heads_per_group
        if count >= size:
            raise InputError(f"Block {index} has {size} query heads for each KV group: fewer than that can go.")
        groups = scores[index].view(attention.kv_heads, size)
        going = [group * size + head for group, row in enumerate(groups) for head in lowest(row, count)]
        if going:
            removed[index] = tuple(going)
    return PruneHeads(removed=removed, chosen_by=chosen_by) if removed else None


def prune_kv_groups(
    architecture: Architecture,
    scores: Mapping[int, torch.Tensor],
    groups: Mapping[int, int],
    chosen_by: ChosenBy | None = None,
) -> PruneKvGroups | None:
    """The edit that removes the lowest KV groups, by the sum over their query heads; None when nothing would go.

    Raises InputError where a block would lose all its groups. `scores`: (query heads,) by block.
    """
    removed: dict[int, tuple[int, ...]] = {}
    for index, count in groups.items():
        attention = _attention(architecture, index)
        if count >= attention.kv_heads:
            raise InputError(f"Block {index} has {attention.kv_heads} KV groups: fewer than that can go.")
        going = lowest(heads.group_scores(scores[index], attention.kv_heads), count)
        if going:
            removed[index] = tuple(going)
    return PruneKvGroups(removed=removed, chosen_by=chosen_by) if removed else None


def _attention(architecture: Architecture, index: int) -> Attention:
    attention = architecture.blocks[index].attention
    if attention is None:
        raise InputError(f"Block {index} has no attention to narrow.")
    return attention


HEADS = Kind(
    "heads",
    title="Heads",
    does="removes attention heads",
    ops={"prune_kv_groups": "KV group", "prune_heads": "query head"},
    budgets=("heads", "percent", "params"),
    rules=(*ENDS, "unit", "allocation", "sharpness", "same_width"),
    choose=prune,
)
