"""What the model is, what is going on, and what can be done next. Pure: no gradio, no state, no input or output."""

from __future__ import annotations

import math

from surgery.common.jobs import Job
from surgery.session.view import View
from ui.presenters.suggest_form import in_page_words
from ui.presenters.text import Html, count_text, number_text


def status(view: View) -> Html:
    """What the model is, and below it an error, the running job, or what can be done next."""
    state, words = _sentence(view)
    model = Html('<p class="ms-model">{}</p>').format(summary(view)) if view.model is not None else ""
    message = Html('<p class="ms-message">{}</p>').format(words)
    if state == "error":
        message = _alert(words)
    elif view.job is not None and state == "busy":
        message = _progress(view.job, words)
    return Html('<div class="ms-status" data-state="{}">{}{}</div>').format(state, model, message)


def _alert(words: str) -> Html:
    return Html('<p class="ms-message ms-error" role="alert">{}</p>').format(words)


def spoken(view: View) -> str:
    """What a screen reader is told when it changes: no numbers that tick, and no errors, which are alerts already."""
    state, words = _sentence(view)
    job = view.job
    if state == "error":
        return ""
    if state == "busy" and job is not None:
        return words if job.state == "queued" else f"{job.title}, {25 * math.floor(4 * job.progress)}%"
    estimate = view.measure.estimate
    if state == "ready" and estimate is not None and view.measure.measured and estimate.complete:
        words = f"Perplexity {number_text(estimate.perplexity)}. {words}"
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
    if view.analyse.statistics is None:
        return "Press Analyse to see which parts matter, or click parts of the map away and watch the numbers."
    if not view.history.current.edits:
        return "Click away the tiles with the least influence, or lower the expansion ratio, and watch the numbers."
    return "Go on, or take it away: export the recipe, or build the model. Undo takes the last step back."


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
    if view.analyse.statistics is not None:
        text += f" Analysed on {view.analyse.statistics.tokens:,} tokens."
    return f"{text} {loaded.note}".strip()


def _progress(job: Job, words: str) -> Html:
    percent, left = round(100 * job.progress), job.seconds_left
    time_left = "" if left is None else f", about {math.ceil(left)} s left"
    return Html(
        '<p class="ms-message">{0} ({1}%{2})</p>'
        '<div class="ms-progress" role="progressbar" aria-valuenow="{1}" aria-valuemin="0" aria-valuemax="100" '
        'aria-label="{3}"><i style="width:{1}%"></i></div>'
    ).format(words, percent, time_left, job.title)


def ended(sentence: str) -> Html:
    """The status of a page whose session is gone."""
    return Html('<div class="ms-status" data-state="error">{}</div>').format(_alert(in_page_words(sentence)))


def can_start(view: View) -> bool:
    """Whether a heavy job can be started: there is a model, and no other one is running."""
    return view.model is not None and not view.working
