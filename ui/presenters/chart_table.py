"""A chart's numbers as a table, for those who do not see it, and to copy. Pure."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

from ui.presenters.text import Html


def table(figure: Any, title: str) -> Html:
    """A figure's traces as one folded table: a heat map row by row, other traces as columns over the same x.

    Where a chart draws a transformed number (its own scale), the number itself is taken.

    Args:
        figure: a plotly figure of one heat map, or of bars and lines.
        title: of the chart.
    """
    x_title, y_title = (axis.title.text or "" for axis in (figure.layout.xaxis, figure.layout.yaxis))
    traces = figure.data
    if traces[0].type == "heatmap":
        columns, rows = _heat_map(traces[0], x_title)
        corner = y_title
    else:
        places = sorted({place for trace in traces for place in trace.x})
        columns = [trace.name or y_title for trace in traces]
        shown = [dict(zip(trace.x, _numbers(trace.y, trace.customdata), strict=True)) for trace in traces]
        for trace in traces:
            if trace.customdata is not None and all(isinstance(words, str) for words in trace.customdata):
                columns.append("State")
                shown.append(dict(zip(trace.x, trace.customdata, strict=True)))
        rows = [(place, [values.get(place) for values in shown]) for place in places]
        corner = x_title
    head = Html().join(map(Html('<th scope="col">{}</th>').format, (corner, *columns)))
    cell = Html("<td>{}</td>").format
    body = Html().join(
        Html('<tr><th scope="row">{}</th>{}</tr>').format(_cell(place), Html().join(map(cell, map(_cell, values))))
        for place, values in rows
    )
    return Html(
        '<details class="ms-details ms-chart-table"><summary>As a table</summary>'
        '<div tabindex="0" role="region" aria-label="{} as a table"><table class="ms-types">'
        "<thead><tr>{}</tr></thead><tbody>{}</tbody></table></div></details>"
    ).format(title, head, body)


def _heat_map(trace: Any, x_title: str) -> tuple[list[str], list[tuple[Any, list[Any]]]]:
    """Its columns' heads, and each row with its place."""
    cells = [
        _numbers(row, None if trace.customdata is None else trace.customdata[at]) for at, row in enumerate(trace.z)
    ]
    across = list(trace.x) if trace.x is not None else list(range(max(map(len, cells), default=0)))
    down = list(trace.y) if trace.y is not None else list(range(len(cells)))
    return [f"{x_title} {_cell(place)}" for place in across], list(zip(down, cells, strict=True))


def _numbers(drawn: Iterable[Any], behind: Sequence[Any] | None) -> list[Any]:
    """The numbers behind what is drawn, if the chart carries them, else what is drawn."""
    if behind is not None and all(value is None or isinstance(value, int | float) for value in behind):
        return list(behind)
    return list(drawn)


def _cell(value: Any) -> str:
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return ""
    return f"{value:.4g}" if isinstance(value, float) else str(value)
