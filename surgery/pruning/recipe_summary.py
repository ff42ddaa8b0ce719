"""What a recipe leaves of a model, in words: for the page and for model cards. Nothing here is escaped."""

from __future__ import annotations

from surgery.common.ranges import format_runs
from surgery.pruning import catalogue
from surgery.pruning.blocks import ATTENTION, MLP
from surgery.pruning.heads import HEADS
from surgery.recipe.edits import ArrangeBlocks, Compensate, Eora, MergeKvHeads, PruneHidden
from surgery.recipe.healing import Heal
from surgery.recipe.recipe import Recipe
from surgery.recipe.storage import Quantize
from surgery.structure.choices import FIELDS, Choices
from surgery.structure.structure import Structure

HOW = {"least_squares": "Least squares", "linear_patch": "Linear patch", "bias": "Bias"}
"""Names of the compensations."""
MOST_RUNS = 12
"""Runs of arranged blocks that are spelt out."""
STORED = (Quantize, Eora)
"""Edits that change how weights are stored, not which there are."""


def recipe_words(recipe: Recipe, structure: Structure, dense: Structure) -> str:
    """One sentence without its full stop: what stays, what goes and by which method, what makes up for it."""
    choices = Choices.of_edits(edit for edit in recipe.edits if not isinstance(edit, STORED))
    words = [f"{len(structure.blocks)} blocks kept, {len(choices.blocks)} removed{_by(choices, 'remove_blocks')}"]
    words += [
        f"{_count(len(gone), one)} removed{_by(choices, op)}"
        for kind in (ATTENTION, MLP)
        for op, one in kind.ops.items()
        if (gone := getattr(choices, FIELDS[op]))
    ]
    words += _unseen(choices, structure, dense)
    origin = choices.origins.get("prune_neurons")
    by = f", neurons chosen by {_method_title(origin.method)}" if origin else ""
    words.append(f"expansion ratio {_ratios(structure)}{by}")
    hows = [HOW[edit.how].lower() for edit in choices.others if isinstance(edit, Compensate)]
    words += [f"compensated by {' and '.join(hows)}"] if hows else []
    words += [_healed_words(edit) for edit in choices.others if isinstance(edit, Heal)]
    words += [_stored_words(edit) for edit in recipe.edits if isinstance(edit, STORED)]
    return "; ".join(words)


def _healed_words(edit: Heal) -> str:
    """How it was trained."""
    what = {"lora": f"LoRA of rank {edit.rank}", "dora": f"DoRA of rank {edit.rank}", "weights": "trained weights"}
    loss = "distillation from the dense model, " if edit.distillation is not None else ""
    return (
        f"healed by {loss}{what[edit.train]}, {_count(edit.steps, 'step')} of {edit.batch * edit.text.window:,} tokens"
    )


def _stored_words(edit: Quantize | Eora) -> str:
    """How weights are stored."""
    if isinstance(edit, Eora):
        return f"repaired by EoRA of rank {edit.rank}"
    words = f"quantised to {edit.type} ({edit.format})"
    if edit.method == "gptq":
        return f"{words} by GPTQ"
    return f"{words} with an importance matrix" if edit.text is not None else words


def _ratios(structure: Structure) -> str:
    """The MLPs' expansion ratios."""
    found = {f"{100 * ratio:.1f}%": ratio for ratio in structure.expansion_ratios if ratio}
    if len(found) < 2:
        return next(iter(found), "none")
    return f"{min(found, key=found.__getitem__)} to {max(found, key=found.__getitem__)}, {len(found)} different ones"


def _count(number: int, one: str) -> str:
    return f"{number:,} {one}{'' if number == 1 else 's'}"


def _by(choices: Choices, op: str) -> str:
    origin = choices.origins.get(op)
    return f" (by {_method_title(origin.method)})" if origin else ""


def _method_title(name: str) -> str:
    return {item.name: item.title for item in catalogue.everything()}.get(name, name)


def _unseen(choices: Choices, structure: Structure, dense: Structure) -> list[str]:
    """What the map cannot show: heads, merged heads, channels, arranged blocks."""
    words = [
        f"{_count(sum(map(len, removed.values())), one)} removed{_by(choices, op)}"
        for op, one in HEADS.ops.items()
        if (removed := getattr(choices, FIELDS[op]))
    ]
    for edit in choices.others:
        if isinstance(edit, MergeKvHeads):
            blocks = _count(len(edit.blocks), "block")
            words.append(f"KV heads merged to {edit.kv_heads} in {blocks} ({edit.how})")
        elif isinstance(edit, PruneHidden):
            words.append(f"{len(edit.removed):,} of {dense.architecture.hidden_size:,} channels removed")
        elif isinstance(edit, ArrangeBlocks):
            runs = format_runs(spec.source for spec in structure.blocks)
            shown = runs if len(runs) <= MOST_RUNS else [*runs[:MOST_RUNS], "…"]
            words.append(f"blocks arranged as {', '.join(shown)}")
    return words
