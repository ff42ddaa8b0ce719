"""Which figure a chart shows, from a session's view. Pure."""

from __future__ import annotations

from typing import Any

from analysis.figures import analysis as figures
from analysis.importance import registry, similarity
from surgery.session.view import View
from ui.presenters.map_widget import decisions
from ui.presenters.scan import series
from ui.presenters.text import Html

NAMES = {
    "blocks": "Block influence",
    "sublayers": "Attention and MLP",
    "runs": "Runs of blocks",
    "neurons": "Neurons",
    "heads": "Heads",
    "predicted": "Predicted and measured",
}
NEURON_METHODS = [(entry.title, entry.name) for entry in registry.METHODS if entry.kind == "neurons"]
DRAWN_METHODS = [(title, name) for title, name in NEURON_METHODS if not registry.method(name).needs_gradients]
"""Those whose scores the analysis gives; gradients are gathered when a suggestion asks for them."""


def needs_analysis(name: str, neuron_method: str) -> bool:
    """Whether a chart can only be drawn from an analysis: a scan, or neuron scores of the weights alone, need none."""
    return name != "predicted" and (name != "neurons" or registry.method(neuron_method, "neurons").needs_text)


def key(name: str, view: View, neuron_method: str, head_statistic: str) -> tuple[object, ...]:
    """What a drawn chart depends on; the first entry is its name."""
    if name == "predicted":
        return name, view.scan
    choice = {"neurons": neuron_method, "heads": head_statistic}.get(name)
    removed = tuple(decisions(view)["blocks"]) if name == "blocks" else ()
    windows = view.analyse.windows
    analysed = windows.fingerprint if windows is not None and view.analyse.statistics is not None else None
    return name, view.model.loaded.fingerprint if view.model else None, analysed, choice, removed


def figure(name: str, view: View, neuron_method: str, head_statistic: str) -> Any:
    """The figure of a chart; None before the analysis that it needs."""
    statistics, model = view.analyse.statistics, view.model
    if model is None or (statistics is None and needs_analysis(name, neuron_method)):
        return None
    if name == "predicted":
        return None if view.scan is None else figures.predicted_and_measured(series(view.scan))
    if name == "neurons":
        method = registry.method(neuron_method, "neurons")
        if not model.knows(method, view.analyse.windows):
            return None
        scores = model.neuron_scores(method, view.analyse.windows)
        return figures.neuron_importance(scores, method.title) if scores else None
    assert statistics is not None  # checked above
    similarities = statistics.similarities
    if name == "blocks":
        return figures.block_influence(similarity.block_influence(similarities), decisions(view)["blocks"])
    if name == "sublayers":
        return figures.sublayer_influence(
            similarity.attention_influence(similarities), similarity.mlp_influence(similarities)
        )
    if name == "runs":
        return figures.angular_triangle(similarity.angular_triangle(similarities))
    rows = [
        block.heads.means()[head_statistic] if block.heads else similarities.tokens[None][:0]
        for block in statistics.blocks
    ]
    return figures.head_statistic(rows, head_statistic)


def chart_note(view: View, table: str, name: str = "blocks") -> Html:
    """What stands below a chart: its table, or, where there is none, why."""
    if table:
        return Html.escape(table)
    words = "This chart shows what the analysis finds: press Analyse."
    if name == "predicted":
        words = "This chart compares what each removal costs with what the gradients predict: measure every removal."
    if view.model is None:
        words = "There is nothing to draw before a model is open."
    elif view.working:
        words = f"This chart is drawn when the {'measurement' if name == 'predicted' else 'analysis'} is done."
    return Html('<p class="ms-empty">{}</p>').format(words)
