"""From a session's view to what the page shows. Pure: no gradio, no state, no input or output."""

from __future__ import annotations

import html
import math
from typing import Any

from analysis.similarity import attention_influence, block_influence, mlp_influence
from surgery.editing import Choices
from surgery.jobs import Job
from surgery.memory import Fit
from surgery.session import View

UNSAFE = str.maketrans({"$": "&#36;", "{": "&#123;", "}": "&#125;", "`": "&#96;"})


def escape(text: object) -> str:
    """Text for HTML that Gradio may also read as a template."""
    return html.escape(str(text)).translate(UNSAFE)


def bytes_text(count: float) -> str:
    """A size in the largest fitting decimal unit."""
    sign, size = ("-" if count < 0 else ""), abs(count)
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000 or unit == "GB":
            return f"{sign}{size:.0f} {unit}" if unit in ("B", "kB") else f"{sign}{size:.1f} {unit}"
        size /= 1000
    raise AssertionError("unreachable")


def count_text(count: int) -> str:
    """A parameter count: 134.5 M, 7.24 B."""
    if count >= 1e9:
        return f"{count / 1e9:.2f} B"
    return f"{count / 1e6:.1f} M" if count >= 1e6 else f"{count:,}"


def number_text(value: float) -> str:
    """A perplexity with three decimals; very large ones shortened."""
    if math.isinf(value):
        return "inf"
    return f"{value:,.3f}" if value < 1e6 else f"{value:.2e}"


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


def block_map_model(view: View) -> dict[str, Any]:
    """The block map's read-only side."""
    if view.model is None or view.dense is None or view.structure is None:
        return {"blocks": 0, "analysed": False}
    blocks = view.model.architecture.blocks
    similarities = view.statistics.similarities if view.statistics else None
    nothing: list[float | None] = [None] * len(blocks)
    kept = {spec.source: spec for spec in view.structure.blocks}

    def share(index: int, part: str) -> float:
        whole = len(getattr(view.dense.blocks[index], part)) if view.dense else 0
        count = len(getattr(kept[index], part)) if index in kept else 0
        return round(count / whole, 4) if whole and count else 1.0

    return {
        "blocks": len(blocks),
        "block": block_influence(similarities).tolist() if similarities else nothing,
        "attention": attention_influence(similarities).tolist() if similarities else nothing,
        "mlp": mlp_influence(similarities).tolist() if similarities else nothing,
        "width": [share(index, "neurons") for index in range(len(blocks))],
        "heads": [share(index, "kv_heads") for index in range(len(blocks))],
        "analysed": similarities is not None,
        "editable_attention": [block.attention is not None for block in blocks],
        "editable_mlp": [block.mlp is not None for block in blocks],
    }


def _tile(name: str, title: str, value: str, detail: str, kind: str, state: str = "") -> str:
    return (
        f'<div class="ms-tile {state}" data-tile="{name}" data-state="{state or "current"}">'
        f'<div class="ms-tile-title">{escape(title)}</div><div class="ms-tile-value">{escape(value)}</div>'
        f'<div class="ms-tile-detail">{escape(detail)}</div><div class="ms-tile-kind">{escape(kind)}</div></div>'
    )


def tiles(view: View) -> str:
    """The row of tiles: parameters, weights, perplexity, fit."""
    if view.structure is None or view.dense is None or view.fit is None or view.dense_fit is None:
        empty = ("parameters", "Parameters"), ("memory", "Weights"), ("perplexity", "Perplexity"), ("fit", "Fit")
        return _row(_tile(name, title, "–", "waiting for the model", "", "stale") for name, title in empty)
    parameters, whole = view.structure.parameters, view.dense.parameters
    fit, dense_fit = view.fit, view.dense_fit
    return _row(
        (
            _tile(
                "parameters",
                "Parameters",
                count_text(parameters),
                f"{_change(parameters, whole)} of {count_text(whole)}",
                "arithmetic",
            ),
            _tile(
                "memory",
                f"Weights in {fit.type}",
                bytes_text(fit.weights_bytes),
                f"{_change(fit.weights_bytes, dense_fit.weights_bytes)} of {bytes_text(dense_fit.weights_bytes)}",
                "arithmetic",
            ),
            _perplexity_tile(view),
            _fit_tile(fit),
        )
    )


def _row(items: Any) -> str:
    return f'<div class="ms-tiles" aria-live="polite">{"".join(items)}</div>'


def _change(now: float, before: float) -> str:
    return "all" if now == before else f"{100 * now / before:.1f}%"


def _perplexity_tile(view: View) -> str:
    estimate = view.estimate
    if view.measure_error:
        return _tile("perplexity", "Perplexity", "–", view.measure_error, "not measured", "failed")
    if estimate is None:
        return _tile("perplexity", "Perplexity", "…", "measuring", "measuring", "stale")
    error = "" if estimate.standard_error is None else f" ± {estimate.standard_error:,.2f}"
    against = "dense model"
    if estimate.difference != 0:
        spread = estimate.difference_standard_error
        paired = "" if spread is None else f" ± {spread:.3f}"
        against = (
            f"dense {number_text(estimate.dense_perplexity)}; loss {estimate.difference:+.3f}{paired} nats, paired"
        )
    kind = f"measured on {estimate.tokens:,} tokens"
    state = ""
    if not view.measured:
        kind, state = ("out of date, measuring" if view.measuring else "out of date"), "stale"
    elif view.measuring and not estimate.complete:
        kind, state = f"measuring: window {estimate.windows} of {estimate.of_windows}", "stale"
    return _tile("perplexity", "Perplexity", number_text(estimate.perplexity) + error, against, kind, state)


def _fit_tile(fit: Fit) -> str:
    word = "Fits" if fit.fits else "Does not fit"
    detail = f"{bytes_text(fit.spare_bytes)} to spare" if fit.fits else f"{bytes_text(-fit.spare_bytes)} missing"
    speed = f"at most {fit.decode_tokens_per_second:,.1f} tokens/s"
    return _tile("fit", "On the device", word, f"{detail}; {speed}", "estimated", "good" if fit.fits else "bad")


def fit_table(view: View) -> str:
    """The itemised memory of the edited model on the device."""
    fit = view.fit
    if fit is None or view.model is None:
        return ""
    items = [(f"Weights: {name}", size, "arithmetic") for name, size in fit.weights.items()]
    items += [
        (f"KV cache, {fit.context:,} tokens in F16", fit.kv_cache_bytes, "arithmetic"),
        ("Activations, at their peak", fit.activation_bytes, "estimated"),
        ("Runtime", fit.overhead_bytes, "estimated"),
    ]
    largest = max(fit.capacity_bytes, fit.needed_bytes, 1)
    rows = "".join(
        f'<tr><td>{escape(name)}</td><td class="ms-number">{bytes_text(size)}</td>'
        f'<td><div class="ms-bar"><i style="width:{100 * size / largest:.2f}%"></i></div></td>'
        f'<td class="ms-kind">{kind}</td></tr>'
        for name, size, kind in items
    )
    total = (
        f'<tr class="ms-total"><td>Needed</td><td class="ms-number">{bytes_text(fit.needed_bytes)}</td>'
        f"<td></td><td></td></tr>"
        f'<tr><td>Capacity, less what the system keeps</td><td class="ms-number">{bytes_text(fit.capacity_bytes)}</td>'
        f"<td></td><td></td></tr>"
    )
    speeds = (
        f"Decoding at most {fit.decode_tokens_per_second:,.1f} tokens/s (bandwidth and compute), "
        f"reading a prompt at most {fit.prefill_tokens_per_second:,.0f} tokens/s (compute): upper bounds, estimated."
    )
    return f'<table class="ms-table"><tbody>{rows}{total}</tbody></table><p class="ms-note">{speeds}</p>'


def status(view: View) -> str:
    """The status line: an error, the running job, or what the model is."""
    if view.error:
        return f'<div class="ms-status ms-error" role="alert">{escape(view.error)}</div>'
    job = view.job
    if job is not None and job.state in ("queued", "running"):
        return _progress(job, view.queue)
    if job is not None and job.state in ("failed", "cancelled"):
        return f'<div class="ms-status ms-error" role="alert">{escape(job.error)}</div>'
    if view.model is None:
        return '<div class="ms-status" role="status">No model is open.</div>'
    return f'<div class="ms-status" role="status">{escape(summary(view))}</div>'


def summary(view: View) -> str:
    """One line on the model and its analysis."""
    if view.model is None:
        return ""
    source, loaded = view.model.architecture, view.model.loaded
    text = (
        f"{loaded.id}: {source.family}, {len(source.blocks)} blocks, hidden size {source.hidden_size}, "
        f"{count_text(source.parameters)} parameters."
    )
    if view.statistics is not None:
        text += f" Analysed on {view.statistics.tokens:,} tokens."
    return f"{text} {loaded.note}".strip()


def _progress(job: Job, queue: int) -> str:
    percent = round(100 * job.progress)
    left = job.seconds_left
    words = job.message or job.title
    if job.state == "queued":
        words = f"{job.title}: waiting, {queue} before it" if queue else f"{job.title}: starting"
    time_left = "" if left is None else f", about {math.ceil(left)} s left"
    return (
        f'<div class="ms-status" role="status"><span>{escape(words)} ({percent}%{time_left})</span>'
        f'<div class="ms-progress" role="progressbar" aria-valuenow="{percent}" aria-valuemin="0" aria-valuemax="100" '
        f'aria-label="{escape(job.title)}"><i style="width:{percent}%"></i></div></div>'
    )


def removed_text(view: View) -> str:
    """What the recipe removes, in words."""
    if view.structure is None or view.dense is None:
        return ""
    gone = len(view.dense.blocks) - len(view.structure.blocks)
    ratios = {f"{100 * ratio:.1f}%" for ratio in view.structure.expansion_ratios if ratio}
    widths = next(iter(ratios)) if len(ratios) == 1 else f"{len(ratios)} different"
    return f"{len(view.structure.blocks)} blocks kept, {gone} removed; expansion ratio {widths or 'none'}."


def ratios(view: View) -> tuple[int, int] | None:
    """The slider's value and maximum, in percent: the widest kept MLP's expansion ratio, and the source's widest."""
    if view.structure is None or view.dense is None:
        return None
    most = math.ceil(100 * max(view.dense.expansion_ratios, default=0))
    now = round(100 * max(view.structure.expansion_ratios, default=0)) or most
    return min(now, most), most
