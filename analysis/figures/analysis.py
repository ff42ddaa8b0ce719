"""Plotly figures of an analysis: read-only, legible on light and dark pages, one function a figure."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import plotly.graph_objects as go
import torch

INK = "#7a869a"
"""Axis and label colour with contrast on white and on near-black; the page's style sheet replaces it by its own."""
GRID = "rgba(128, 138, 156, 0.22)"
ATTENTION, MLP, BLOCK = "#3b82c4", "#d97a1f", "#2a9d7f"
PARTS = {"blocks": ("Block", BLOCK), "attention": ("Attention", ATTENTION), "mlp": ("MLP", MLP)}
SCALE = "Viridis"
FONT = "system-ui, -apple-system, Segoe UI, Roboto, sans-serif"
HEAD_TITLES = {
    "entropy": "Attention entropy (nats)",
    "distance": "Mean attention distance (tokens)",
    "first_token": "Mass on the first token (share)",
    "previous_token": "Mass on the previous token (share)",
    "output_norm": "Output norm",
    "group_similarity": "Cosine with the other heads of the KV group",
}


def block_influence(influence: torch.Tensor, removed: Sequence[int] = ()) -> go.Figure:
    """Bars of block influence, (blocks,), on a logarithmic axis; removed blocks are hatched."""
    values, gone = influence.tolist(), set(removed)
    figure = go.Figure(
        go.Bar(
            x=list(range(len(values))),
            y=values,
            marker={
                "color": BLOCK,
                "opacity": [0.35 if block in gone else 1.0 for block in range(len(values))],
                "pattern": {"shape": ["x" if block in gone else "" for block in range(len(values))]},
            },
            customdata=["removed" if block in gone else "kept" for block in range(len(values))],
            hovertemplate="Block %{x} (%{customdata})<br>influence %{y:.4f}<extra></extra>",
        )
    )
    _logarithmic(figure, values)
    figure.update_yaxes(title="Influence (1 - cosine)")
    figure.update_xaxes(title="Block", dtick=_ticks(len(values)), showgrid=False)
    return styled(figure)


def sublayer_influence(attention: torch.Tensor, mlp: torch.Tensor) -> go.Figure:
    """Attention and MLP influence, (blocks,) each, side by side on a logarithmic axis."""
    figure = go.Figure()
    for name, values, colour, symbol in (("Attention", attention, ATTENTION, "circle"), ("MLP", mlp, MLP, "square")):
        figure.add_scatter(
            x=list(range(len(values))),
            y=values.tolist(),
            name=name,
            mode="lines+markers",
            marker={"color": colour, "symbol": symbol, "size": 7},
            line={"color": colour, "width": 1.5},
            hovertemplate=f"{name} of block %{{x}}<br>influence %{{y:.4f}}<extra></extra>",
        )
    _logarithmic(figure, [*attention.tolist(), *mlp.tolist()])
    figure.update_yaxes(title="Influence (1 - cosine)")
    figure.update_xaxes(title="Block", dtick=_ticks(len(mlp)), showgrid=False, range=[-0.6, len(mlp) - 0.4])
    return styled(figure)


def predicted_and_measured(
    pairs: Mapping[str, tuple[Sequence[int], Sequence[float] | None, Sequence[float]]],
) -> go.Figure:
    """Rise of the loss without each part, measured and predicted, on an axis that is linear near zero and logarithmic
    beyond: predictions may be negative.

    Args:
        pairs: by part (`blocks`, `attention`, `mlp`): blocks, predicted rises if there are any, and measured rises, of
            one length.
    """
    figure = go.Figure()
    every: list[float] = [0.0]
    for part, (blocks, predicted, measured) in pairs.items():
        name, colour = PARTS[part]
        for kind, values, dash, symbol in (
            ("measured", measured, "solid", "circle"),
            ("predicted", predicted, "dot", "diamond-open"),
        ):
            if values is None:
                continue
            every += [value for value in values if math.isfinite(value)]
            figure.add_scatter(
                x=list(blocks),
                y=[_bent(value) if math.isfinite(value) else None for value in values],
                customdata=[value if math.isfinite(value) else None for value in values],
                name=f"{name}, {kind}",
                mode="lines+markers",
                marker={"color": colour, "symbol": symbol, "size": 7},
                line={"color": colour, "width": 1.5, "dash": dash},
                hovertemplate=f"{name} {kind}, block %{{x}}<br>%{{customdata:+.4f}} nats<extra></extra>",
            )
    marks = [sign * mark for mark in (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0) for sign in (-1, 1)]
    marks = [0.0, *(mark for mark in marks if min(every) <= mark <= max(every))]
    figure.update_yaxes(
        title="Rise of the loss (nats)",
        tickvals=[_bent(mark) for mark in marks],
        ticktext=[f"{mark:g}" for mark in marks],
    )
    count = 1 + max((max(blocks, default=0) for blocks, _, _ in pairs.values()), default=0)
    figure.update_xaxes(title="Block", dtick=_ticks(count), showgrid=False, range=[-0.6, count - 0.4])
    return styled(figure).update_layout(legend={"y": 1.02, "yanchor": "bottom"})


def _bent(value: float, linear: float = 0.005) -> float:
    """A scale that is linear up to about `linear` and logarithmic beyond, for either sign."""
    return math.asinh(value / linear)


def angular_triangle(distances: torch.Tensor) -> go.Figure:
    """Heat map of the angular distance of n consecutive blocks, (blocks, blocks), NaN where there is none."""
    count = len(distances)
    runs = [
        ["1 block" if length == 1 else f"to {first + length - 1} ({length} blocks)" for first in range(count)]
        for length in range(1, count + 1)
    ]
    figure = go.Figure(
        go.Heatmap(
            x=list(range(count)),
            y=list(range(1, count + 1)),
            z=_cells(distances.T),
            customdata=runs,
            colorscale=SCALE,
            colorbar={"title": {"text": "distance"}, "thickness": 12},
            hovertemplate="Block %{x}, %{customdata}<br>angular distance %{z:.4f}<extra></extra>",
        )
    )
    figure.update_xaxes(title="First block of the run", dtick=_ticks(count))
    figure.update_yaxes(title="Blocks in the run", dtick=_ticks(count))
    return styled(figure)


def neuron_importance(scores: Mapping[int, torch.Tensor], title: str, steps: int = 40) -> go.Figure:
    """Heat map of the neurons' scores by block, from the least to the most important.

    In multiples of the block's mean, on a logarithmic scale; where some score is negative, in standard deviations from
    the block's mean. The colours span the 1st to the 99th percentile, so that a few outliers do not flatten the rest.

    Args:
        scores: (neurons,) by block.
        steps: quantiles shown.
    """
    blocks = sorted(scores)
    quantiles = torch.linspace(0, 1, steps)
    signed = any(bool((values < 0).any()) for values in scores.values())
    columns = []
    for block in blocks:
        values = scores[block].float()
        if signed:
            values = (values - values.mean()) / values.std().clamp_min(1e-30)
        else:
            values = values / values.mean().clamp_min(1e-30)
        columns.append(torch.quantile(values, quantiles))
    shown = torch.stack(columns, dim=1)
    colours = shown if signed else shown.clamp_min(1e-6).log10()
    low, high = (float(bound) for bound in torch.quantile(colours, torch.tensor([0.01, 0.99])))
    if high - low < 1e-6:
        low, high = low - 0.5, high + 0.5
    unit = "standard deviations from the mean" if signed else "times the mean"
    ticks = {} if signed else _log_ticks(10**low, 10**high)
    figure = go.Figure(
        go.Heatmap(
            x=blocks,
            y=[round(float(q) * 100, 1) for q in quantiles],
            z=_cells(colours),
            zmin=low,
            zmax=high,
            customdata=_cells(shown),
            colorscale=SCALE,
            colorbar={"title": {"text": "deviations" if signed else "x block mean"}, "thickness": 12, **ticks},
            hovertemplate=(
                f"Block %{{x}}<br>%{{y:.0f}}% of its neurons score lower<br>%{{customdata:.3g}} {unit}<extra></extra>"
            ),
        )
    )
    figure.update_xaxes(title="Block", dtick=_ticks(len(blocks)))
    figure.update_yaxes(title="Neurons by rank (%)")
    figure.update_layout(title={"text": title})
    return styled(figure)


def head_statistic(values: Sequence[torch.Tensor], name: str) -> go.Figure:
    """Heat map of one statistic, blocks across and query heads down; blocks without attention are blank."""
    count = max((len(row) for row in values), default=0)
    padded = torch.full((count, len(values)), float("nan"))
    for block, row in enumerate(values):
        padded[: len(row), block] = row.float()
    title = HEAD_TITLES.get(name, name)
    figure = go.Figure(
        go.Heatmap(
            z=_cells(padded),
            colorscale=SCALE,
            colorbar={"thickness": 12},
            hovertemplate=f"Block %{{x}}, query head %{{y}}<br>{title}: %{{z:.4g}}<extra></extra>",
        )
    )
    figure.update_xaxes(title="Block", dtick=_ticks(len(values)))
    figure.update_yaxes(title="Query head", dtick=max(1, count // 12), autorange="reversed")
    figure.update_layout(title={"text": title})
    return styled(figure)


def _cells(values: torch.Tensor) -> list[list[float | None]]:
    """Rows with None for NaN."""
    return [[None if cell != cell else cell for cell in row] for row in values.tolist()]


def _ticks(count: int) -> int:
    return max(1, math.ceil(count / 10))


def _logarithmic(figure: go.Figure, values: Iterable[float]) -> None:
    """A logarithmic y axis around the positive values, with few labels."""
    positive = [value for value in values if 0 < value < math.inf]
    low, high = (min(positive) / 1.3, max(positive) * 1.3) if positive else (0.1, 10.0)
    ticks = _log_ticks(low, high)
    ticks["tickvals"] = [10**exponent for exponent in ticks["tickvals"]]
    figure.update_yaxes(type="log", range=[math.log10(low), math.log10(high)], **ticks)


def _log_ticks(low: float, high: float) -> dict[str, Any]:
    """Labels at the decades between two positive numbers, finer ones if those are few; `tickvals` are logarithms."""
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for factors in ((1.0,), (1.0, 2.0, 5.0), (1.0, 1.2, 1.5, 2.0, 2.5, 3.0, 4.0, 5.0, 6.0, 8.0)):
        marks = [factor * 10.0**decade for decade in decades for factor in factors]
        marks = [mark for mark in marks if low <= mark <= high]
        if len(marks) >= 3:
            break
    return {
        "tickmode": "array",
        "tickvals": [math.log10(mark) for mark in marks],
        "ticktext": [f"{mark:,.0f}" if 1 <= mark < 1e6 and mark == round(mark) else f"{mark:.3g}" for mark in marks],
    }


def styled(figure: go.Figure) -> go.Figure:
    """A figure in the page's look, which works on light and dark."""
    figure.update_layout(
        template="none",
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        font={"color": INK, "size": 12, "family": FONT},
        margin={"l": 58, "r": 12, "t": 36, "b": 44},
        height=320,
        autosize=True,
        bargap=0.25,
        legend={"orientation": "h", "y": 1.14, "x": 0},
        title={"font": {"size": 13}, "x": 0, "xref": "paper"},
        dragmode=False,
    )
    figure.update_xaxes(gridcolor=GRID, zeroline=False, linecolor=GRID, automargin=True)
    figure.update_yaxes(gridcolor=GRID, zeroline=False, linecolor=GRID, automargin=True)
    return figure
