"""From a session's view to the words about compensations, the scan and the build. Pure, like `presenters`."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from analysis.importance.predictions import rank_correlation
from surgery.compensation.compensator import Entry
from surgery.pruning.recipe_summary import HOW, recipe_words
from surgery.recipe.edits import Compensate
from surgery.session.view import Scanned, Suggestion, View
from surgery.shipping.download import checkpoint_bytes
from surgery.structure.choices import Choices
from surgery.structure.removal import RemovalKind
from ui.presenters.status import bytes_text, count_text, download_text, escape, loss_text, number_text
from ui.presenters.tiles import damage

PARTS = {"attention": "attention", "mlp": "MLP", "run": "run behind it"}
KINDS: dict[RemovalKind, str] = {"blocks": "blocks", "attention": "attention parts", "mlp": "MLPs"}


def compensations(view: View) -> list[Compensate]:
    """The compensations of the current recipe."""
    edits = view.history.current.edits if view.history is not None else ()
    return [edit for edit in edits if isinstance(edit, Compensate)]


def compensation_text(view: View) -> str:
    """What the compensations of the current recipe have reached."""
    wanted = compensations(view)
    if view.model is None or not wanted:
        return ""
    text = wanted[0].text
    source = f"the {text.source} text" if text.source in ("embedded", "pasted") else text.source
    where = f"{text.windows * text.window:,} tokens of {source}"
    if view.compensating:
        return note(f"Being computed on {where}; the number above is out of date until then.")
    if view.compensated is None:
        return note("It is not computed, so the recipe cannot be measured: compute it, or switch it off.", "ms-error")
    entries = view.compensated.entries
    lines = [_reached(edit, entries, view) for edit in wanted]
    rows = "".join(_row(entry) for entry in entries)
    table = (
        '<details class="ms-details"><summary>Every place</summary><div><table class="ms-refits"><thead><tr>'
        "<th>block</th><th>part</th><th>refit</th><th>before</th><th>after</th></tr></thead>"
        f"<tbody>{rows}</tbody></table></div></details>"
    )
    kept = f"Computed on {where}; errors are measured on the quarter of it that is kept aside."
    return "".join(note(line) for line in (*lines, kept)) + (table if entries else "")


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


def _row(entry: Entry) -> str:
    return (
        f"<tr><td>{entry.block}</td><td>{PARTS.get(entry.part, entry.part)}</td>"
        f"<td>{'applied' if entry.applied else 'left out'}</td>"
        f"<td>{_percent(entry.plain_error_aside)}</td><td>{_percent(entry.error_aside)}</td></tr>"
    )


def _percent(share: float) -> str:
    return f"{100 * share:.3g}%" if math.isfinite(share) else str(share)


def scan_text(scanned: Scanned | None) -> str:
    """How well the predictions rank what was measured."""
    if scanned is None:
        return ""
    tokens = scanned.scan.baseline.tokens
    words = f"Rise of the loss without each part, measured on {tokens:,} tokens"
    if scanned.predicted is None:
        return note(f"{words}. The predictions are missing: measure again to gather them.")
    parts = [
        f"{KINDS[kind]} {_correlation(scanned, kind, 'second')} (first order {_correlation(scanned, kind, 'first')})"
        for kind in KINDS
        if kind in scanned.scan.removals
    ]
    return note(
        f"{words}, and predicted to second order from one backward pass over the calibration text. "
        f"Rank correlation (Spearman): {', '.join(parts)}."
    )


def _correlation(scanned: Scanned, kind: RemovalKind, order: str) -> str:
    predicted, measured = pairs(scanned, kind, order)
    value = rank_correlation(predicted, measured)
    return f"{value:.2f}" if math.isfinite(value) else "none"


def pairs(scanned: Scanned, kind: RemovalKind, order: str = "second") -> tuple[torch.Tensor, torch.Tensor]:
    """Predicted and measured rises of the loss, (parts,) each, of the blocks that have the part."""
    assert scanned.predicted is not None  # the caller has checked
    found = [(block, row) for block, row in enumerate(scanned.scan.removals[kind]) if row is not None]
    predicted = getattr(getattr(scanned.predicted, order), kind)
    blocks = [block for block, _ in found]
    return predicted[blocks].double(), torch.tensor([row.difference for _, row in found], dtype=torch.float64)


def series(scanned: Scanned) -> dict[str, tuple[list[int], list[float] | None, list[float]]]:
    """What the chart shows of a scan, by part: blocks, predicted rises, measured ones."""
    found: dict[str, tuple[list[int], list[float] | None, list[float]]] = {}
    for kind in (kind for kind in KINDS if kind in scanned.scan.removals):
        rows = [(block, row.difference) for block, row in enumerate(scanned.scan.removals[kind]) if row is not None]
        predicted = pairs(scanned, kind)[0].tolist() if scanned.predicted is not None else None
        found[kind] = ([block for block, _ in rows], predicted, [rise for _, rise in rows])
    return found


def suggestion_text(view: View) -> str:
    """What the suggestion would take away, block by block, and what that is expected to cost."""
    found = view.suggestion
    if found is None or view.model is None:
        return ""
    now, then, whole = found.before.parameters, found.structure.parameters, view.model.evaluator.dense.parameters
    if found.recipe.key == found.base:
        return note("The suggestion changes nothing.")
    lines = [
        f"Would be: {recipe_words(found.recipe, found.structure, view.model.evaluator.dense)}.",
        f"Parameters {count_text(now)} \N{RIGHTWARDS ARROW} {count_text(then)} "
        f"({100 * then / whole:.1f}% of the dense model), arithmetic.",
    ]
    lines += [_cost_words(view, found), _expected_words(view, found)]
    rows = "".join(
        f"<tr><td>{block}</td>{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>" for block, cells in _changes(found)
    )
    head = "".join(f"<th>{words}</th>" for words in ("block", "KV groups", "query heads", "neurons"))
    table = f'<table class="ms-types"><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>'
    return "".join(note(line) for line in lines if line) + f'<div class="ms-scroll">{table}</div>'


def _changes(found: Suggestion) -> list[tuple[int, list[str]]]:
    """Blocks that would change, with what they have and would have."""
    before = {spec.source: spec for spec in found.before.blocks}
    after = {spec.source: spec for spec in found.structure.blocks}
    parts = ("kv_heads", "query_heads", "neurons")
    return [
        (source, [_step(len(getattr(spec, part)), len(getattr(after.get(source), part, ()))) for part in parts])
        for source, spec in before.items()
        if after.get(source) != spec
    ]


def _step(before: int, after: int) -> str:
    return f"{before:,}" if before == after else f"{before:,} \N{RIGHTWARDS ARROW} {after:,}"


def _cost_words(view: View, found: Suggestion) -> str:
    """What it costs, measured; or why that is not known."""
    cost = found.cost
    if cost is None or cost.text != view.text:
        return "What it costs is being measured." if view.working else "What it costs is measured once it is taken."
    estimate = cost.estimate
    loss = loss_text(estimate.difference, estimate.difference_standard_error)
    return (
        f"Perplexity would be {number_text(estimate.perplexity)} (measured), {loss} against the dense model: "
        f"{damage(estimate.difference)}."
    )


def _expected_words(view: View, found: Suggestion) -> str:
    """The measured cost of each removal by itself, added up, where a scan has measured them."""
    scanned = view.scanned
    assert view.history is not None  # there is a suggestion
    old, new = Choices.of(view.history.current), Choices.of(found.recipe)
    kinds = {kind: getattr(new, kind) - getattr(old, kind) for kind in KINDS}
    if scanned is None or not any(kinds.values()):
        return ""
    costs = [
        row.difference
        for kind, blocks in kinds.items()
        for block, row in enumerate(scanned.scan.removals.get(kind, ()))
        if block in blocks and row is not None
    ]
    if len(costs) < sum(map(len, kinds.values())):
        return ""
    return f"Removed one at a time they cost {sum(costs):+.3f} nats in sum (measured): an estimate of them together."


def build_text(view: View) -> str:
    """How large a build would be, or what the last one is."""
    if view.model is None or view.structure is None or view.history is None:
        return ""
    dtype = next(iter(view.model.architecture.bytes_by_dtype))
    size = bytes_text(checkpoint_bytes(view.model, view.structure))
    count = count_text(view.structure.parameters)
    words = f"The recipe makes a checkpoint of about {size} ({count} parameters in {dtype})."
    packed = view.packed
    if packed is None:
        return note(words)
    loads = (
        "transformers loads it as it is"
        if packed.plain
        else "its blocks differ, so transformers loads it with trust_remote_code=True and the file that is inside"
    )
    old = "" if packed.recipe == view.history.current.key else " It was built from an earlier recipe."
    return note(f"Built: {count_text(packed.parameters)} parameters, {bytes_text(packed.bytes)}; {loads}.{old}") + (
        note(words) if old else ""
    )


def download_label(view: View) -> str:
    """What the download button says."""
    return "" if view.packed is None else download_text(view.packed.path, view.packed.bytes)


def note(words: str, kind: str = "") -> str:
    """A line of small text."""
    return f'<p class="ms-note {kind}">{escape(words)}</p>'
