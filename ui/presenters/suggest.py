"""What the suggestion under consideration would take away, and what that is expected to cost. Pure."""

from __future__ import annotations

from surgery.pruning.recipe_summary import recipe_words
from surgery.session.suggest import Suggestion
from surgery.session.view import View
from surgery.structure.choices import Choices
from ui.presenters.scan import KINDS
from ui.presenters.text import Html, count_text, loss_text, note, notes, number_text, row, table
from ui.presenters.tiles import damage


def suggestion_text(view: View) -> Html:
    """What the suggestion would take away, block by block, and what that is expected to cost."""
    found = view.suggest
    if found is None or view.model is None:
        return Html()
    dense = view.model.evaluator.dense
    now, then, whole = found.before.parameters, found.structure.parameters, dense.parameters
    if found.recipe.key == found.base:
        return note("The suggestion changes nothing.")
    lines = [
        f"Would be: {recipe_words(found.recipe, found.structure, dense)}.",
        f"Parameters {count_text(now)} \N{RIGHTWARDS ARROW} {count_text(then)} "
        f"({100 * then / whole:.1f}% of the dense model), arithmetic.",
        _cost_words(view, found),
        _expected_words(view, found),
    ]
    rows = (row(block, *cells) for block, cells in _changes(found))
    changes = table(("block", "KV groups", "query heads", "neurons"), rows)
    return notes(filter(None, lines)) + Html('<div class="ms-scroll">{}</div>').format(changes)


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
    scanned = view.scan
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
