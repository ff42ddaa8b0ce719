"""Plotly figures of an analysis: read-only, legible on light and dark pages, one function a figure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import plotly.graph_objects as go
import torch

INK = "#7a869a"
"""Axis and label colour with contrast on white and on near-black."""
GRID = "rgba(128, 138, 156, 0.22)"
ATTENTION, MLP, BLOCK = "#3b82c4", "#d97a1f", "#2a9d7f"
SCALE = "Viridis"
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
    count = len(influence)
    figure = go.Figure(
        go.Bar(
            x=list(range(count)),
            y=influence.tolist(),
            marker={"color": BLOCK, "pattern": {"shape": ["x" if block in removed else "" for block in range(count)]}},
            hovertemplate="Block %{x}<br>influence %{y:.4f}<extra></extra>",
        )
    )
    figure.update_yaxes(type="log", title="1 - cosine (log scale)")
    figure.update_xaxes(title="Block", dtick=_ticks(count))
    return _styled(figure)


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
    figure.update_yaxes(type="log", title="1 - cosine (log scale)")
    figure.update_xaxes(title="Block", dtick=_ticks(len(mlp)))
    return _styled(figure)


def angular_triangle(distances: torch.Tensor) -> go.Figure:
    """Heat map of the angular distance of n consecutive blocks, (blocks, blocks), NaN where there is none."""
    count = len(distances)
    figure = go.Figure(
        go.Heatmap(
            x=list(range(count)),
            y=list(range(1, count + 1)),
            z=_cells(distances.T),
            colorscale=SCALE,
            colorbar={"title": {"text": "distance"}, "thickness": 12},
            hovertemplate="Blocks %{x} to %{x} + %{y} - 1<br>distance %{z:.4f}<extra></extra>",
        )
    )
    figure.update_xaxes(title="First block of the run", dtick=_ticks(count))
    figure.update_yaxes(title="Blocks in the run")
    return _styled(figure)


def neuron_importance(scores: Mapping[int, torch.Tensor], title: str, steps: int = 40) -> go.Figure:
    """Heat map of the neurons' scores, by block: the share of the block's total that each quantile of neurons holds.

    Args:
        scores: (neurons,) by block, none negative.
        title: the method's.
        steps: quantiles shown.
    """
    blocks = sorted(scores)
    quantiles = torch.linspace(0, 1, steps)
    rows = []
    for block in blocks:
        values = torch.quantile(scores[block].float(), quantiles)
        rows.append((values / scores[block].float().mean().clamp_min(1e-30)).clamp_min(1e-4).log10())
    table = torch.stack(rows, dim=1)
    figure = go.Figure(
        go.Heatmap(
            x=blocks,
            y=[round(float(q) * 100, 1) for q in quantiles],
            z=_cells(table),
            colorscale=SCALE,
            colorbar={"title": {"text": "times the<br>mean (log10)"}, "thickness": 12},
            hovertemplate="Block %{x}, %{y:.0f}% of its neurons are lower<br>10^%{z:.2f} x the mean<extra></extra>",
        )
    )
    figure.update_xaxes(title="Block", dtick=_ticks(len(blocks)))
    figure.update_yaxes(title="Neurons, least to most important (%)")
    figure.update_layout(title={"text": title})
    return _styled(figure)


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
            hovertemplate="Block %{x}, head %{y}<br>%{z:.4f}<extra></extra>",
        )
    )
    figure.update_xaxes(title="Block", dtick=_ticks(len(values)))
    figure.update_yaxes(title="Query head", dtick=max(1, count // 12), autorange="reversed")
    figure.update_layout(title={"text": title})
    return _styled(figure)


def _cells(values: torch.Tensor) -> list[list[float | None]]:
    """Rows with None for NaN."""
    return [[None if cell != cell else cell for cell in row] for row in values.tolist()]


def _ticks(count: int) -> int:
    return max(1, count // 10)


def _styled(figure: go.Figure) -> go.Figure:
    figure.update_layout(
        template="none",
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        font={"color": INK, "size": 12},
        margin={"l": 62, "r": 16, "t": 44, "b": 48},
        height=340,
        bargap=0.25,
        legend={"orientation": "h", "y": 1.12, "x": 0},
        title={"font": {"size": 13}, "x": 0, "xref": "paper"},
    )
    figure.update_xaxes(gridcolor=GRID, zeroline=False, linecolor=GRID, automargin=True)
    figure.update_yaxes(gridcolor=GRID, zeroline=False, linecolor=GRID, automargin=True)
    return figure
