"""The curve of a healing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import plotly.graph_objects as go

from analysis.figures.analysis import BLOCK, styled


def healing_curve(history: Sequence[dict[str, Any]], before: float) -> go.Figure:
    """Training loss by step, and held-out perplexity where it was measured, on an axis of its own.

    Args:
        history: an entry a step: `step`, `loss`, and `held_out` where it was measured.
        before: held-out perplexity before the first step.
    """
    points = [(0, before), *((entry["step"], entry["held_out"]) for entry in history if "held_out" in entry)]
    steps = [entry["step"] for entry in history]
    figure = go.Figure(
        [
            go.Scatter(x=steps, y=[entry["loss"] for entry in history], name="Loss", line={"color": BLOCK, "width": 1}),
            go.Scatter(
                x=[step for step, _ in points],
                y=[value for _, value in points],
                name="Held-out perplexity",
                mode="lines+markers",
                line={"color": "#d97706"},
                yaxis="y2",
            ),
        ]
    )
    figure.update_layout(yaxis2={"title": "Perplexity", "overlaying": "y", "side": "right", "showgrid": False})
    styled(figure)
    # A legend of two rows, on a phone, grows upwards.
    figure.update_layout(margin={"r": 58, "t": 60}, legend={"y": 1.02, "yanchor": "bottom"})
    figure.update_xaxes(title="Step")
    figure.update_layout(yaxis_title="Training loss")
    return figure
