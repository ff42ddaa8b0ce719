"""What is trained: which blocks, which of their linears, and of what rank."""

from __future__ import annotations

import math
from collections.abc import Sequence

from analysis.model.architecture import Block, Projection
from surgery.errors import RecipeError
from surgery.recipe.healing import Heal, Role
from surgery.structure.structure import BlockSpec, Structure


def positions_of(edit: Heal, structure: Structure) -> tuple[int, ...]:
    """Positions (in the built model) of the blocks that are trained, ascending. Raises RecipeError where none is."""
    kept = structure.kept
    if edit.blocks is not None:
        found = [place for place, spec in enumerate(kept) if spec.source in edit.blocks]
        hint = "name blocks that stay"
    elif edit.where == "all":
        return tuple(range(len(kept)))
    else:
        found = around_cuts(structure)
        hint = "nothing is cut, so train all blocks"
    if not found:
        raise RecipeError(f"heal: there is no block to train: {hint}.")
    return tuple(found)


def around_cuts(structure: Structure) -> list[int]:
    """Positions of blocks that lost something themselves, or stand beside a block that is gone or moved."""
    kept = structure.kept
    blocks = structure.architecture.blocks
    found = {place for place, spec in enumerate(kept) if not _entire(spec, blocks[spec.source])}
    sources = [-1, *(spec.source for spec in kept), len(blocks)]
    for gap, (before, after) in enumerate(zip(sources, sources[1:], strict=False)):
        if after != before + 1:
            found |= {gap - 1, gap} & set(range(len(kept)))
    return list(range(len(kept))) if structure.hidden is not None else sorted(found)


def _entire(spec: BlockSpec, block: Block) -> bool:
    heads = (block.attention.query_heads, block.attention.kv_heads) if block.attention else (0, 0)
    neurons = block.mlp.width if block.mlp else 0
    return (len(spec.query_heads), len(spec.kv_heads), len(spec.neurons)) == (*heads, neurons)


def linears_of(block: Block, spec: BlockSpec, roles: Sequence[Role] | None) -> tuple[str, ...]:
    """Paths of a kept block's linears that hold one of the roles, in the order of their use."""
    by_role: dict[Role, Projection | None] = {}
    if block.attention is not None and spec.attention:
        attention = block.attention
        by_role = {"query": attention.query, "key": attention.key, "value": attention.value, "output": attention.output}
    if block.mlp is not None and spec.mlp:
        by_role |= {"gate": block.mlp.gate, "up": block.mlp.up, "down": block.mlp.down}
    chosen = (projection for role, projection in by_role.items() if roles is None or role in roles)
    return tuple(dict.fromkeys(projection.module for projection in chosen if projection is not None))


def ranks_by_importance(importance: Sequence[float], mean: int) -> list[int]:
    """A rank for each block in proportion to its coarse importance (at least 0), at least 1, the mean as given.

    What rounding down leaves over goes to the largest remainders. Source: CFSP (2409.13199), importance-guided ranks.
    """
    total = sum(importance)
    if total <= 0:
        return [mean] * len(importance)
    free = (mean - 1) * len(importance)
    wanted = [1 + free * value / total for value in importance]
    ranks = [math.floor(value) for value in wanted]
    order = sorted(range(len(wanted)), key=lambda place: (ranks[place] - wanted[place], place))
    for place in order[: mean * len(importance) - sum(ranks)]:
        ranks[place] += 1
    return ranks
