"""From a session's view to what the widget of one block shows and decides. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from analysis.figures.analysis import HEAD_TITLES
from analysis.importance import registry
from analysis.model.architecture import Attention, Block, Mlp
from surgery.pruning.neurons import lowest
from surgery.recipe.edits import MergeKvHeads
from surgery.session.view import View
from surgery.structure.choices import Choices
from surgery.structure.resolve import NAMES
from surgery.structure.structure import BlockSpec, Part

MOST_POINTS = 512
"""Columns of the strip."""
STEEP = 20.0
"""The highest positive score over the lowest beyond which the strip's scale is logarithmic."""
LOWEST_COLUMN = 0.03
"""Of the strip's height: no column vanishes."""
COLOURS = [(title, name) for name, title in HEAD_TITLES.items()] + [
    (entry.title, entry.name)
    for entry in registry.METHODS
    if entry.kind == "heads" and not entry.needs_gradients and not entry.needs_seed
]
"""What heads can be coloured by: what the analysis gathers, and methods that need no gradients."""
TITLES = {name: title for title, name in COLOURS}


def block_of(view: View, selected: int | None) -> Block | None:
    """The selected block; None when there is none, or none of that number."""
    if view.model is None or selected is None or not 0 <= selected < len(view.model.architecture.blocks):
        return None
    return view.model.architecture.blocks[selected]


def specs_of(view: View, block: Block) -> list[BlockSpec]:
    """What is left of a block: none when it is removed, several when it is repeated."""
    return [spec for spec in view.structure.blocks if spec.source == block.index] if view.structure else []


def heads_off(choices: Choices, block: Block) -> tuple[set[int], set[int]]:
    """The KV groups of a block that are off, and the single query heads of the other groups."""
    groups, heads = set(choices.kv_groups.get(block.index, ())), set(choices.heads.get(block.index, ()))
    if block.attention is not None:
        size = block.attention.heads_per_group
        members = {group: set(range(group * size, (group + 1) * size)) for group in range(block.attention.kv_heads)}
        groups |= {group for group, own in members.items() if own <= heads}  # a group without query heads is gone
        heads -= set().union(*(members[group] for group in groups))
    return groups, heads


def decision(view: View, selected: int | None) -> dict[str, Any]:
    """The widget's value: KV groups and single query heads that are off, and the MLP's width."""
    block = block_of(view, selected)
    if block is None or view.history is None:
        return {"block": None, "groups": [], "heads": [], "width": 0}
    choices = Choices.of(view.history.current)
    groups, heads = heads_off(choices, block)
    whole = block.mlp.width if block.mlp is not None else 0
    width = view.analyse.pending_widths.get(block.index, whole - len(choices.neurons.get(block.index, ())))
    return {"block": block.index, "groups": sorted(groups), "heads": sorted(heads), "width": width}


def widget_model(view: View, selected: int | None, ranked_by: str, coloured_by: str) -> dict[str, Any]:
    """The widget's read-only side: neurons ranked by a method, heads coloured by one of `COLOURS`."""
    block = block_of(view, selected)
    if block is None:
        return {"block": None}
    return {
        "block": block.index,
        "attention": _attention(view, block, coloured_by),
        "mlp": _mlp(view, block, ranked_by),
    }


def _state(view: View, block: Block, part: Part) -> tuple[bool, str]:
    """Whether a part can be narrowed, and if not, why."""
    if getattr(block, part) is None:
        return False, f"This block has no {NAMES[part]} in the source model."
    specs = specs_of(view, block)
    if _gone(view, block, part):
        what = f"The {NAMES[part]} of this block" if specs else "This block"
        return False, f"{what} is removed: bring it back on the map to narrow it."
    edits = view.history.current.edits if view.history is not None else ()
    if part == "attention" and any(isinstance(edit, MergeKvHeads) and block.index in edit.blocks for edit in edits):
        return False, f"Its KV heads are merged to {len(specs[0].kv_heads)}: heads that are merged cannot go besides."
    return True, ""


def _gone(view: View, block: Block, part: Part) -> bool:
    """Whether the recipe removes a part, or its whole block."""
    return not any(getattr(spec, part) for spec in specs_of(view, block))


def _attention(view: View, block: Block, name: str) -> dict[str, Any]:
    able, why = _state(view, block, "attention")
    attention = block.attention
    if attention is None:
        return {"query": 0, "kv": 0, "able": False, "why": why}
    values = head_values(view, block.index, name)
    return {
        "query": attention.query_heads,
        "kv": attention.kv_heads,
        "single": heads_go_alone(attention),
        "able": able,
        "gone": _gone(view, block, "attention"),
        "why": why or _unit_words(attention),
        "title": TITLES.get(name, name),
        "values": None if values is None else [_rounded(value) for value in values],
        "shades": None if values is None else _shades(values),
    }


def heads_go_alone(attention: Attention) -> bool:
    """Whether a query head can go without its KV group: with several groups each must keep the same number."""
    return attention.kv_heads == 1 and attention.query_heads > 1


def _unit_words(attention: Attention) -> str:
    """What goes at once, and why."""
    if heads_go_alone(attention):
        return "All query heads share one KV head, so each can go alone."
    if attention.heads_per_group == 1:
        return "Each query head has a KV head of its own and goes with it."
    return "A KV group goes as a whole: in a checkpoint each group keeps the same number of query heads."


def head_values(view: View, block: int, name: str) -> list[float] | None:
    """A statistic or the scores of a block's query heads; None before the analysis that it needs."""
    if view.model is None:
        return None
    if name in HEAD_TITLES:
        moments = view.analyse.statistics.blocks[block].heads if view.analyse.statistics is not None else None
        return None if moments is None else [float(value) for value in moments.means()[name]]
    method = registry.method(name, "heads")
    if not view.model.knows(method, view.analyse.windows):
        return None
    return [float(value) for value in view.model.block_scores(method, view.analyse.windows, block)]


def _shades(values: Sequence[float]) -> list[float | None]:
    """Places between the block's lowest (0) and highest (1) value; None where there is no number."""
    known = [value for value in values if value == value]
    low, spread = min(known, default=0.0), max(known, default=0.0) - min(known, default=0.0)
    return [None if value != value else round((value - low) / spread, 3) if spread else 0.5 for value in values]


def _mlp(view: View, block: Block, name: str) -> dict[str, Any]:
    able, why = _state(view, block, "mlp")
    mlp = block.mlp
    if mlp is None or view.model is None:
        return {"width": 0, "able": False, "why": why}
    method = registry.method(name, "neurons")
    shown: dict[str, Any] = {
        "width": mlp.width,
        "hidden": mlp.hidden_size,
        "able": able,
        "gone": _gone(view, block, "mlp"),
        "why": why,
        "method": method.title,
        "ranked": view.model.knows(method, view.analyse.windows),
        "waiting": block.index in view.analyse.pending_widths,
    }
    if shown["ranked"]:
        scores = view.model.block_scores(method, view.analyse.windows, block.index)
        shown |= strip(scores, _removed(view, block, mlp))
    return shown


def _removed(view: View, block: Block, mlp: Mlp) -> list[int]:
    """Neurons that the recipe removes."""
    assert view.history is not None  # there is a model
    return list(Choices.of(view.history.current).neurons.get(block.index, ()))


def strip(scores: torch.Tensor, removed: Sequence[int]) -> dict[str, Any]:
    """The neurons from the most to the least important, in at most `MOST_POINTS` columns.

    Column i of n stands for the ranks from i * width // n up to (i + 1) * width // n.

    Args:
        scores: of the block's neurons, (neurons,).
        removed: neurons that are off.

    Returns:
        `scores`: mean of each column; `heights`: between 0 and 1; `scale`: what the heights are; `cut`: share of each
        column that is off; `kept`: neurons that are on; `chosen`: whether the neurons that are off are those that the
        scores would choose.
    """
    width = len(scores)
    count = min(width, MOST_POINTS)
    order = torch.argsort(scores.double(), stable=True).flip(0)
    off = torch.zeros(width)
    off[list(removed)] = 1.0
    edges = [index * width // count for index in range(count + 1)]
    sizes = [end - start for start, end in zip(edges, edges[1:])]
    means = [float(part.mean()) for part in scores.double()[order].split(sizes)]
    heights, scale = _heights(means)
    return {
        "scores": [_rounded(value) for value in means],
        "heights": heights,
        "scale": scale,
        "cut": [round(float(part.mean()), 3) for part in off[order].split(sizes)],
        "kept": width - len(removed),
        "chosen": sorted(removed) == lowest(scores, len(removed)),
    }


def _heights(means: Sequence[float]) -> tuple[list[float], str]:
    """Columns between 0 and 1 on a scale that shows them all."""
    values, scale = torch.tensor(means, dtype=torch.float64), "linear scale"
    low, high = float(values.min()), float(values.max())
    if low > 0 and high / low > STEEP:
        values, scale = values.log(), "logarithmic scale"
    elif low >= 0:
        values = torch.cat([values, torch.zeros(1, dtype=torch.float64)])
    else:
        scale = "linear scale from the lowest score"
    spread = float(values.max() - values.min())
    places = (values - values.min())[: len(means)] / spread if spread else torch.full((len(means),), 0.5)
    return [round(max(LOWEST_COLUMN, float(place)), 3) for place in places], scale


def _rounded(value: float) -> float | None:
    """Four digits, enough for what is shown; None for what is no number."""
    return float(f"{value:.4g}") if value == value and abs(value) != float("inf") else None
