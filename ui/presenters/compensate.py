"""From a session's view to the words about compensations. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence

from surgery.compensation.compensator import Entry
from surgery.pruning.recipe_summary import HOW
from surgery.recipe.edits import Compensate
from surgery.session.view import View
from ui.presenters.text import Html, note, notes, row, table

PARTS = {"attention": "attention", "mlp": "MLP", "run": "run behind it"}


def compensations(view: View) -> list[Compensate]:
    """The compensations of the current recipe."""
    edits = view.history.current.edits if view.history is not None else ()
    return [edit for edit in edits if isinstance(edit, Compensate)]


def compensation_text(view: View) -> Html:
    """What the compensations of the current recipe have reached."""
    wanted = compensations(view)
    if view.model is None or not wanted:
        return Html()
    text = wanted[0].text
    source = f"the {text.source} text" if text.source in ("embedded", "pasted") else text.source
    where = f"{text.windows * text.window:,} tokens of {source}"
    if view.measure.compensating:
        return note(f"Being computed on {where}; the number above is out of date until then.")
    if view.measure.compensated is None:
        return note("It is not computed, so the recipe cannot be measured: compute it, or switch it off.", "ms-error")
    entries = view.measure.compensated.entries
    lines = [_reached(edit, entries, view) for edit in wanted]
    places = table(("block", "part", "refit", "before", "after"), map(_row, entries), "ms-refits")
    folded = Html('<details class="ms-details"><summary>Every place</summary><div>{}</div></details>').format(places)
    kept = f"Computed on {where}; errors are measured on the quarter of it that is kept aside."
    return notes((*lines, kept)) + (folded if entries else "")


def _reached(edit: Compensate, entries: Sequence[Entry], view: View) -> str:
    """One compensation in one sentence."""
    name = HOW[edit.how]
    if edit.how == "bias":
        count = sum(len(spec.biases) for spec in view.structure.blocks) if view.structure else 0
        return f"{name}: added in {count} places." if count else f"{name}: nothing is narrowed, so nothing is added."
    found = [entry for entry in entries if (entry.part == "run") == (edit.how == "linear_patch")]
    if not found:
        missing = (
            "no run of removed blocks has an MLP before it" if edit.how == "linear_patch" else "nothing is narrowed"
        )
        return f"{name}: {missing}, so nothing is refitted."
    applied = sum(entry.applied for entry in found)
    before = sum(entry.plain_error_aside for entry in found) / len(found)
    after = sum(entry.error_aside for entry in found) / len(found)
    return (
        f"{name}: applied in {applied} of {len(found)} {'place' if len(found) == 1 else 'places'}, where it helps; "
        f"mean error {_percent(before)} → {_percent(after)} of the output."
    )


def _row(entry: Entry) -> Html:
    errors = _percent(entry.plain_error_aside), _percent(entry.error_aside)
    return row(entry.block, PARTS.get(entry.part, entry.part), "applied" if entry.applied else "left out", *errors)


def _percent(share: float) -> str:
    return f"{100 * share:.3g}%" if math.isfinite(share) else str(share)
