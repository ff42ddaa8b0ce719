"""The row of numbers and the bar of the device's memory. Pure: from a view to HTML."""

from __future__ import annotations

import math
from collections.abc import Iterable

from surgery.evaluation.estimate import Estimate
from surgery.fit.fit import Fit
from surgery.session.compare import Attempt
from surgery.session.view import View
from ui.presenters.text import Html, bytes_text, count_text, loss_text, number_text

DAMAGE = (
    (0.02, "no difference that one reads"),
    (0.1, "hardly noticeable"),
    (0.3, "noticeable"),
    (0.7, "text suffers"),
    (math.inf, "text usually breaks"),
)
"""Largest loss in nats a token, against the dense model, and what that usually means: rules of thumb."""
SMALLEST_SEGMENT = 0.4
"""Percent of the bar below which a part could not be seen."""


def tiles(view: View) -> Html:
    """Parameters, file, memory, decode speed and perplexity; below them the bar of the device."""
    fit, dense = view.fit.now, view.fit.dense
    if view.structure is None or view.dense is None or fit is None or dense is None:
        return _empty(view)
    parameters, whole = view.structure.parameters, view.dense.parameters
    speed = fit.speed
    row = (
        _tile("parameters", "Parameters", count_text(parameters),
              f"{_change(parameters, whole)} of {count_text(whole)}" + _parameters_since(view, parameters),
              "arithmetic"),
        _tile("file", f"Weights in {fit.type}", bytes_text(fit.weights_bytes),
              f"{_change(fit.weights_bytes, dense.weights_bytes)} of {bytes_text(dense.weights_bytes)}", "arithmetic"),
        _tile("memory", f"Memory, {fit.context:,} tokens", bytes_text(fit.needed_bytes),
              f"{_change(fit.needed_bytes, dense.needed_bytes)} of {bytes_text(dense.needed_bytes)}", "estimated"),
        _tile("speed", "Decode speed", f"{_speed_word(fit)} {speed.decode:,.1f} tokens/s",
              f"dense {dense.speed.decode:,.1f}; at most {speed.decode_bound:,.1f}", "estimated"),
        _perplexity_tile(view),
    )  # fmt: skip
    return _row(row) + fit_bar(fit, view.device.name)


def _empty(view: View) -> Html:
    names = (("parameters", "Parameters"), ("file", f"Weights in {view.target.type}"),
             ("memory", f"Memory, {view.target.context:,} tokens"), ("speed", "Decode speed"),
             ("perplexity", "Perplexity"))  # fmt: skip
    return _row(_tile(name, title, "–", "no model is open yet", "", "stale") for name, title in names)


def _row(items: Iterable[Html]) -> Html:
    return Html('<div class="ms-tiles">{}</div>').format(Html().join(items))


def _tile(name: str, title: str, value: str, detail: str, kind: str, state: str = "") -> Html:
    return Html(
        '<div class="ms-tile {}" data-tile="{}" data-state="{}">'
        '<div class="ms-tile-title">{}</div><div class="ms-tile-value">{}</div>'
        '<div class="ms-tile-detail">{}</div><div class="ms-tile-kind">{}</div></div>'
    ).format(state, name, state or "current", title, value, detail, kind)


def _change(now: float, before: float) -> str:
    return "all" if now == before else f"{100 * now / before:.1f}%"


def _last_step(view: View) -> Attempt | None:
    """What the step before the one in force gave, if it was measured on this text."""
    history = view.history
    return view.compare.of(history.recipes[history.position - 1].key) if history and history.can_undo else None


def _parameters_since(view: View, now: int) -> str:
    before = _last_step(view)
    change = now - before.structure.parameters if before else 0
    return f"; last step {'+' if change > 0 else '-'}{count_text(abs(change))}" if change else ""


def _loss_since(view: View, estimate: Estimate) -> str:
    before = _last_step(view)
    if before is None or not estimate.complete or not view.measure.measured:
        return ""
    return f"; last step {estimate.nll - before.estimate.nll:+.3f}"


def damage(difference: float) -> str:
    """What a loss in nats a token against the dense model usually means, in plain words."""
    return next(words for most, words in DAMAGE if difference <= most)


def _perplexity_tile(view: View) -> Html:
    measure, estimate = view.measure, view.measure.estimate
    if measure.error:
        return _tile("perplexity", "Perplexity", "–", measure.error, "not measured", "failed")
    if estimate is None:
        pending = measure.compensating or view.uncompensated
        first = f"what its {view.unfinished} makes of it" if pending else "the dense model first"
        return _tile("perplexity", "Perplexity", "…", first, _state_of_measuring(view) or "measuring", "stale")
    value = number_text(estimate.perplexity)
    if estimate.standard_error is not None and math.isfinite(estimate.standard_error):
        value += f" ± {estimate.standard_error:,.2f}"
    against = "the dense model"
    if estimate.difference != 0:
        loss = loss_text(estimate.difference, estimate.difference_standard_error)
        words = f"loss {loss}: {damage(estimate.difference)}{_loss_since(view, estimate)}"
        against = f"dense {number_text(estimate.dense_perplexity)}; {words}"
    kind, state = f"measured on {estimate.tokens:,} tokens", ""
    if not measure.measured:
        doing = _state_of_measuring(view)
        kind, state = f"out of date{', ' if doing else ''}{doing}", "stale"
    elif measure.measuring and not estimate.complete:
        kind, state = f"measuring: window {estimate.windows} of {estimate.of_windows}", "stale"
    elif not estimate.complete:
        kind = f"stopped: measured on {estimate.windows} of {estimate.of_windows} windows, {estimate.tokens:,} tokens"
    return _tile("perplexity", "Perplexity", value, against, kind, state)


def _state_of_measuring(view: View) -> str:
    """What is done about a number that is out of date."""
    if view.uncompensated:
        return f"its {view.unfinished} is not computed"
    if view.measure.compensating:
        return "compensating" if view.unfinished == "compensation" else "quantising"
    return "measuring" if view.measure.measuring else ""


def _speed_word(fit: Fit) -> str:
    return "about" if fit.speed.basis == "expected" else "at most"


def fit_bar(fit: Fit, device: str) -> Html:
    """What the device's memory is needed for, as a bar to scale, and what is missing or to spare in words."""
    state, spare = ("good", bytes_text(fit.spare_bytes)) if fit.fits else ("bad", bytes_text(-fit.spare_bytes))
    words = f"Fits: {spare} to spare" if fit.fits else f"Does not fit: {spare} missing"
    parts = (
        ("weights", "Weights", fit.weights_bytes),
        ("cache", "KV cache", fit.kv_cache_bytes),
        ("activations", "Activations", fit.activation_bytes),
        ("runtime", "Runtime", fit.overhead_bytes),
    )
    scale = 100 / max(fit.needed_bytes, fit.capacity_bytes, 1)
    shown = [part for part in parts if part[2]]
    segment = Html('<i class="ms-fit-{}" style="width:{:.2f}%"></i>')
    item = Html('<li><i class="ms-fit-{}"></i>{} {}</li>')
    segments = Html().join(segment.format(name, max(size * scale, SMALLEST_SEGMENT)) for name, _, size in shown)
    legend = Html().join(item.format(name, title, bytes_text(size)) for name, title, size in shown)
    beyond = Html('<b class="ms-fit-end" style="left:{:.2f}%"></b>').format(min(fit.capacity_bytes * scale, 100))
    return Html(
        '<section class="ms-fit {0}" data-tile="fit" data-state="{0}" aria-label="Memory on the device">'
        "<p><strong>{1}</strong> on {2}, which has {3} for it. "
        '<span class="ms-tile-kind">estimated</span></p><div class="ms-fit-bar" aria-hidden="true">{4}{5}</div>'
        '<ul class="ms-fit-legend">{6}</ul></section>'
    ).format(state, words, device, bytes_text(fit.capacity_bytes), segments, "" if fit.fits else beyond, legend)
