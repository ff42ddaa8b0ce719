"""Which figure a chart shows, from a session's view. Pure."""

from __future__ import annotations

from typing import Any

from analysis import figures, registry, similarity
from surgery.session import View
from ui import presenters


def figure(name: str, view: View, neuron_method: str, head_statistic: str) -> Any:
    """The figure of a chart; None before the analysis that it needs."""
    statistics = view.statistics
    if view.model is None or statistics is None or view.analysed is None:
        return None
    similarities = statistics.similarities
    if name == "blocks":
        return figures.block_influence(similarity.block_influence(similarities), presenters.decisions(view)["blocks"])
    if name == "sublayers":
        return figures.sublayer_influence(
            similarity.attention_influence(similarities), similarity.mlp_influence(similarities)
        )
    if name == "runs":
        return figures.angular_triangle(similarity.angular_triangle(similarities))
    if name == "neurons":
        method = registry.method(neuron_method, "neurons")
        scores = view.model.neuron_scores(method, statistics, view.analysed.fingerprint)
        return figures.neuron_importance(scores, method.title)
    rows = [
        block.heads.means()[head_statistic] if block.heads else similarities.tokens[None][:0]
        for block in statistics.blocks
    ]
    return figures.head_statistic(rows, head_statistic)
