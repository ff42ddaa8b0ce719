"""From a session's view to what the page shows. Pure: no gradio, no state, no input or output."""

from __future__ import annotations

import html
import math
from pathlib import Path

from analysis.model.architecture import Mlp
from surgery.common.jobs import Job
from surgery.fit.fit import Fit
from surgery.pruning.neurons import WidthBudget
from surgery.recipe.recipe import Recipe
from surgery.session.view import View
from surgery.structure.choices import Choices
from ui.presenters.suggest_form import in_page_words

CLASSES = {"mlp": "MLP", "norms": "norms and biases"}
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


def download_text(file: Path, size: int) -> str:
    """What the button says that gives a file of so many bytes."""
    return f"Download {file.name} ({bytes_text(size)})"


def count_text(count: int) -> str:
    """A parameter count: 134.5 M, 7.24 B."""
    if count >= 1e9:
        return f"{count / 1e9:.2f} B"
    return f"{count / 1e6:.1f} M" if count >= 1e6 else f"{count:,}"


def number_text(value: float) -> str:
    """A perplexity with three decimals; very large ones shortened, an overflow as `inf`."""
    if not math.isfinite(value):
        return str(value)
    return f"{value:,.3f}" if value < 1e6 else f"{value:.2e}"


def loss_text(difference: float, error: float | None) -> str:
    """A difference of losses in nats a token, with its paired standard error where there is one."""
    spread = "" if error is None or not math.isfinite(error) else f" ± {error:.3f}"
    return f"{difference:+.3f}{spread} nats"


RUNTIMES = {
    "llama.cpp": "llama.cpp",
    "transformers": "Python and transformers",
    "microcontroller": "a program without an operating system",
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


def fit_table(view: View) -> str:
    """The itemised memory of the edited model on the device."""
    fit = view.fit
    if fit is None or view.model is None:
        return ""
    items = [(f"Weights: {CLASSES.get(name, name)}", size, "arithmetic") for name, size in fit.weights.items()]
    items += [
        (f"KV cache, {fit.context:,} tokens in {fit.kv_type}", fit.kv_cache_bytes, "arithmetic"),
        ("Activations, at their peak", fit.activation_bytes, "estimated"),
        (f"Runtime: {RUNTIMES[fit.runtime]}", fit.overhead_bytes, "estimated"),
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
        '<td></td><td class="ms-kind">estimated</td></tr>'
        f"<tr><td>Capacity of {escape(view.device.name)}, less what its system keeps</td>"
        f'<td class="ms-number">{bytes_text(fit.capacity_bytes)}</td>'
        '<td></td><td class="ms-kind">from the device file</td></tr>'
    )
    notes = escape(" ".join((_speed_words(fit), *fit.notes)))
    return f'<table class="ms-table"><tbody>{rows}{total}</tbody></table><p class="ms-note">{notes}</p>'


def _speed_words(fit: Fit) -> str:
    speed = fit.speed
    words = (
        f"Decoding at most {speed.decode_bound:,.1f} tokens/s (bandwidth and compute), "
        f"reading a prompt at most {speed.prefill_bound:,.0f} tokens/s (compute): upper bounds, estimated."
    )
    if speed.basis == "expected":
        words = (
            f"Expected of llama.cpp: decoding {speed.decode:,.1f} tokens/s, reading a prompt {speed.prefill:,.0f} "
            f"tokens/s, estimated from what its kernels reach on a CPU. {words}"
        )
    if speed.energy_joules_per_token is not None:
        words += f" Energy for each decoded token about {speed.energy_joules_per_token:.2g} J, estimated."
    return words


def status(view: View) -> str:
    """What the model is, and below it an error, the running job, or what can be done next."""
    state, words = _sentence(view)
    model = f'<p class="ms-model">{escape(summary(view))}</p>' if view.model is not None else ""
    message = f'<p class="ms-message">{escape(words)}</p>'
    if state == "error":
        message = _alert(words)
    elif view.job is not None and state == "busy":
        message = _progress(view.job, words)
    return f'<div class="ms-status" data-state="{state}">{model}{message}</div>'


def _alert(words: str) -> str:
    return f'<p class="ms-message ms-error" role="alert">{escape(words)}</p>'


def spoken(view: View) -> str:
    """What a screen reader is told when it changes: no numbers that tick, and no errors, which are alerts already."""
    state, words = _sentence(view)
    job = view.job
    if state == "error":
        return ""
    if state == "busy" and job is not None:
        return words if job.state == "queued" else f"{job.title}, {25 * math.floor(4 * job.progress)}%"
    if state == "ready" and view.estimate is not None and view.measured and view.estimate.complete:
        words = f"Perplexity {number_text(view.estimate.perplexity)}. {words}"
    return words


def _sentence(view: View) -> tuple[str, str]:
    """The state of the session, and what is said about it."""
    job = view.job
    if view.error:
        return "error", in_page_words(view.error)
    if job is not None and job.state == "queued":
        return "busy", f"{job.title}: waiting, {view.queue} before it" if view.queue else f"{job.title}: starting"
    if job is not None and job.state == "running":
        return "busy", job.title if job.message in ("", job.title) else f"{job.title}: {job.message}"
    if job is not None and job.state == "failed":
        return "error", in_page_words(job.error)
    if view.uncompensated and job is not None and job.state == "cancelled":
        return "cancelled", (
            f"The {view.unfinished} was cancelled, and the recipe is kept: compute it, or switch it off, to get its "
            "number."
        )
    if job is not None and job.state == "cancelled":
        return "cancelled", f"{job.title} was cancelled; start again."
    return "ready", next_step(view)


def next_step(view: View) -> str:
    """What a person can do now, in one sentence."""
    if view.model is None or view.history is None:
        return "No model is open: name one under “Model, text and device” and press Open model."
    if view.statistics is None:
        return "Press Analyse to see which parts matter, or click parts of the map away and watch the numbers."
    if not view.history.current.edits:
        return "Click away the tiles with the least influence, or lower the expansion ratio, and watch the numbers."
    return "Go on, or take it away: export the recipe, or build the model. Undo takes the last step back."


def chart_note(view: View, table: str, name: str = "blocks") -> str:
    """What stands below a chart: its table, or, where there is none, why."""
    if table:
        return table
    words = "This chart shows what the analysis finds: press Analyse."
    if name == "predicted":
        words = "This chart compares what each removal costs with what the gradients predict: measure every removal."
    if view.model is None:
        words = "There is nothing to draw before a model is open."
    elif view.working:
        words = f"This chart is drawn when the {'measurement' if name == 'predicted' else 'analysis'} is done."
    return f'<p class="ms-empty">{escape(words)}</p>'


def summary(view: View) -> str:
    """One line on the model and its analysis."""
    if view.model is None:
        return ""
    source, loaded = view.model.architecture, view.model.loaded
    name = loaded.id if loaded.revision is None else f"{loaded.id} at {loaded.revision}"
    text = (
        f"{name}: {source.family}, {len(source.blocks)} blocks, hidden size {source.hidden_size}, "
        f"{count_text(source.parameters)} parameters."
    )
    if view.statistics is not None:
        text += f" Analysed on {view.statistics.tokens:,} tokens."
    return f"{text} {loaded.note}".strip()


def _progress(job: Job, words: str) -> str:
    percent, left = round(100 * job.progress), job.seconds_left
    time_left = "" if left is None else f", about {math.ceil(left)} s left"
    return (
        f'<p class="ms-message">{escape(words)} ({percent}%{time_left})</p>'
        f'<div class="ms-progress" role="progressbar" aria-valuenow="{percent}" aria-valuemin="0" aria-valuemax="100" '
        f'aria-label="{escape(job.title)}"><i style="width:{percent}%"></i></div>'
    )


def ended(sentence: str) -> str:
    """The status of a page whose session is gone."""
    return f'<div class="ms-status" data-state="error">{_alert(in_page_words(sentence))}</div>'


def buttons(view: View) -> dict[str, bool]:
    """Which buttons can be pressed."""
    history = view.history
    return {
        "undo": bool(history and history.can_undo),
        "redo": bool(history and history.can_redo),
        "reset": bool(history and history.current.edits),
        "export": view.model is not None,
        "import": view.model is not None,
        "analyse": view.model is not None and not view.working,
        "cancel": view.can_cancel,
        **dict.fromkeys(("suggest", "scan", "build"), view.model is not None and not view.working),
    }


def ratios(view: View, blocks: tuple[int, ...] | None = None) -> tuple[int, int] | None:
    """The slider's value and maximum, in percent: the ratio that was asked for, and the source's widest.

    Args:
        view: what there is to show.
        blocks: those that the slider narrows; all when None.
    """
    if view.structure is None or view.dense is None or view.history is None:
        return None
    most = math.ceil(100 * max(view.dense.expansion_ratios, default=0))
    if view.pending_ratio is not None:
        return min(round(100 * view.pending_ratio), most), most
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
