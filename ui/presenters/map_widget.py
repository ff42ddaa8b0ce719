"""From a session's view to what the block map and the expansion ratio show. Pure."""

from __future__ import annotations

import math
from typing import Any

import torch

from analysis.importance.similarity import attention_influence, block_influence, mlp_influence
from analysis.model.architecture import Block, Mlp
from surgery.pruning.neurons import WidthBudget
from surgery.recipe.recipe import Recipe
from surgery.session.view import View
from surgery.structure.choices import Choices
from surgery.structure.removal import RemovalKind
from surgery.structure.structure import Structure
from ui.presenters.detail_widget import heads_off

COLOURS = [
    ("Coloured by influence (1 − cosine similarity)", "influence"),
    ("Coloured by measured loss without it", "measured loss"),
    ("Coloured by predicted loss without it", "predicted loss"),
]
"""What the map can be coloured by; the values are the words that the map says of a part."""
KINDS: dict[str, RemovalKind] = {"block": "blocks", "attention": "attention", "mlp": "mlp"}
MOST_GROUPS = 12
"""KV groups that a tile has room for."""

Values = dict[str, list[float | None]]


def block_map_model(view: View, colour: str = "influence") -> dict[str, Any]:
    """The block map's read-only side, coloured by one of `COLOURS`; anything else is the first."""
    if view.model is None or view.dense is None or view.structure is None or view.history is None:
        return {"blocks": 0, "analysed": False}
    blocks = view.model.architecture.blocks
    measure = colour if colour in dict(COLOURS).values() else "influence"
    values, choices = _measured(view, measure), Choices.of(view.history.current)
    nothing: list[float | None] = [None] * len(blocks)
    kept = {spec.source: spec for spec in view.structure.blocks}

    def share(index: int, part: str) -> float:
        whole = len(getattr(view.dense.blocks[index], part)) if view.dense else 0
        count = len(getattr(kept[index], part)) if index in kept else 0
        return round(count / whole, 4) if whole and count else 1.0

    return {
        "blocks": len(blocks),
        "measure": measure,
        **{part: (values or {}).get(part, nothing) for part in KINDS},
        "width": [share(index, "neurons") for index in range(len(blocks))],
        "heads": [share(index, "kv_heads") for index in range(len(blocks))],
        "groups": [_groups(choices, block) for block in blocks],
        "locked": list(view.locked),
        "going": _going(view),
        "analysed": view.analyse.statistics is not None,
        "editable_attention": [block.attention is not None for block in blocks],
        "editable_mlp": [block.mlp is not None for block in blocks],
    }


def _measured(view: View, measure: str) -> Values | None:
    """The values by part; None where they are not known."""
    if measure == "influence":
        if view.analyse.statistics is None:
            return None
        found = view.analyse.statistics.similarities
        functions = {"block": block_influence, "attention": attention_influence, "mlp": mlp_influence}
        return {part: function(found).tolist() for part, function in functions.items()}
    scanned = view.scan
    if scanned is None:
        return None
    if measure == "measured loss":
        rows = {part: scanned.scan.removals.get(kind, []) for part, kind in KINDS.items()}
        return {
            part: [None if row is None else row.difference for row in found] for part, found in rows.items() if found
        }
    if scanned.predicted is None:
        return None
    return {part: _finite(getattr(scanned.predicted.second, kind)) for part, kind in KINDS.items()}


def _finite(values: torch.Tensor) -> list[float | None]:
    return [value if math.isfinite(value) else None for value in values.tolist()]


def _groups(choices: Choices, block: Block) -> list[bool]:
    """Which KV groups of a block stay; empty where a tile has no room for them, or there is no choice."""
    if block.attention is None or not 1 < block.attention.kv_heads <= MOST_GROUPS:
        return []
    off, _ = heads_off(choices, block)
    return [group not in off for group in range(block.attention.kv_heads)]


def _going(view: View) -> dict[str, list[int]]:
    """What the suggestion under consideration would take besides: blocks, parts, and parts that would be narrower."""
    if view.suggest is None or view.structure is None:
        return {"blocks": [], "attention": [], "mlp": [], "narrower_attention": [], "narrower_mlp": []}
    now, then = _sizes(view.structure), _sizes(view.suggest.structure)
    found: dict[str, list[int]] = {"blocks": sorted(now.keys() - then.keys())}
    for place, part in enumerate(("attention", "mlp")):
        both = [(block, now[block][place], then[block][place]) for block in sorted(now.keys() & then.keys())]
        found[part] = [block for block, before, after in both if before and not after]
        found[f"narrower_{part}"] = [block for block, before, after in both if 0 < after < before]
    return found


def _sizes(structure: Structure) -> dict[int, tuple[int, int]]:
    """By source block: query and KV heads together, and neurons; 0 where the part is removed."""
    return {
        spec.source: (
            len(spec.query_heads) + len(spec.kv_heads) if spec.attention else 0,
            len(spec.neurons) if spec.mlp else 0,
        )
        for spec in structure.blocks
    }


def decisions(view: View) -> dict[str, list[int]]:
    """The block map's value."""
    if view.history is None:
        return {"blocks": [], "attention": [], "mlp": []}
    choices = Choices.of(view.history.current)
    return {
        "blocks": sorted(choices.blocks),
        "attention": sorted(choices.attention - choices.blocks),
        "mlp": sorted(choices.mlp - choices.blocks),
    }


def changed_block(before: dict[str, list[int]], now: dict[str, list[int]]) -> int | None:
    """The one block in which two values of the block map differ; None if it is none or several."""
    changed = {block for name, blocks in now.items() for block in set(blocks) ^ set(before.get(name, []))}
    return changed.pop() if len(changed) == 1 else None


def ratios(view: View, blocks: tuple[int, ...] | None = None) -> tuple[int, int] | None:
    """The slider's value, asked for by these blocks or all, and the source's widest ratio, its maximum; in percent."""
    if view.structure is None or view.dense is None or view.history is None:
        return None
    most = math.ceil(100 * max(view.dense.expansion_ratios, default=0))
    if view.analyse.pending_ratio is not None:
        return min(round(100 * view.analyse.pending_ratio), most), most
    narrowed = [spec for spec in view.structure.blocks if blocks is None or spec.source in blocks]
    widest = max(narrowed or view.structure.blocks, key=lambda spec: len(spec.neurons))
    source = view.structure.architecture.blocks[widest.source].mlp
    if source is None or len(widest.neurons) == source.width:
        return most, most
    now = len(widest.neurons) / view.structure.architecture.hidden_size
    asked = _asked_ratio(view.history.current, source, len(widest.neurons))
    return max(1, min(round(100 * (now if asked is None else asked)), most)), most


def _asked_ratio(recipe: Recipe, mlp: Mlp, width: int) -> float | None:
    """The expansion ratio that was asked for; notes are not what counts, so it must give this very width."""
    origin = Choices.of(recipe).origins.get("prune_neurons")
    budget = origin.budget if origin else {}
    asked, divisor = budget.get("expansion_ratio"), budget.get("divisor", 1)
    if not isinstance(asked, int | float) or not isinstance(divisor, int):
        return None
    if not 0 < asked < 100 or not 0 < divisor <= mlp.width:
        return None
    return asked if WidthBudget("expansion_ratio", asked, divisor).width(mlp) == width else None
