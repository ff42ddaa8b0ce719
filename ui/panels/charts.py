"""The charts of the analysis, and the measurement of every removal."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import gradio as gr

from analysis.figures.analysis import HEAD_TITLES
from surgery.session.view import View
from ui.panel import Panel, Shown, Wire
from ui.presenters import charts
from ui.presenters.chart_table import table
from ui.presenters.scan import scan_text
from ui.presenters.status import can_start
from ui.presenters.text import Html
from ui.tabs import Tab
from ui.theme import PLAIN


class Charts(Panel):
    """A tab for each chart, what two of them show, and the numbers of the open one as a table."""

    def fields(self) -> None:
        """The tabs, and below them the table or why there is none."""
        self.tabs: dict[str, Any] = {}
        self.plots: dict[str, Any] = {}
        with gr.Tabs(elem_id="charts"):
            for name, title in charts.NAMES.items():
                with gr.Tab(title, id=name, elem_id=f"tab-{name}") as self.tabs[name]:
                    self._chart_fields(name)
                    plot = gr.Plot(show_label=False, elem_id=f"chart-{name}", elem_classes="ms-chart")
                    self.plots[name] = self.shows(plot)
        self.note = self.shows(gr.HTML(elem_id="chart-note", **PLAIN))

    def _chart_fields(self, name: str) -> None:
        """What belongs to one chart."""
        match name:
            case "neurons":
                self.method = gr.Dropdown(
                    charts.DRAWN_METHODS, value="cfsp_fine", label="Method", elem_id="neuron-method"
                )
            case "heads":
                self.statistic = gr.Dropdown(
                    [(words, key) for key, words in HEAD_TITLES.items()],
                    value="entropy",
                    label="Statistic",
                    elem_id="head-statistic",
                )
            case "predicted":
                self._scan_fields()

    def _scan_fields(self) -> None:
        """What is removed one at a time, and the button that measures it."""
        with gr.Row(elem_classes="ms-actions"):
            self.scan = self.button("Measure every removal", "scan", able=can_start)
            self.kinds = gr.CheckboxGroup(
                [("Blocks", "blocks"), ("Attention", "attention"), ("MLPs", "mlp")],
                value=["blocks"],
                show_label=False,
                container=False,
                elem_id="scan-kinds",
                min_width=240,
            )
        self.html("scan-note", lambda view: scan_text(view.scan))

    def events(self, wire: Wire) -> None:
        """Open a chart, choose what it shows, measure every removal."""
        for name, tab in self.tabs.items():
            wire.on(tab.select, partial(_draw, name=name), self.method, self.statistic)
        wire.on(self.method.input, partial(_draw, name="neurons"), self.method, self.statistic)
        wire.on(self.statistic.input, partial(_draw, name="heads"), self.method, self.statistic)
        wire.on(self.scan.click, lambda tab, kinds: tab.session.scan.start(tuple(kinds)), self.kinds)

    def values(self, tab: Tab, view: View) -> Iterator[Shown]:
        """The open chart besides; the others are drawn when their tab is opened."""
        yield from super().values(tab, view)
        name, picks = tab.chart, (tab.neuron_method, tab.head_statistic)

        def draw() -> Any:
            figure = charts.figure(name, view, *picks)
            tab.tables[name] = Html() if figure is None else table(figure, charts.NAMES[name])
            return figure

        yield Shown(self.plots[name], charts.key(name, view, *picks), draw)
        # The chart has been drawn by now, if it had to be.
        yield Shown(self.note, charts.chart_note(view, tab.tables.get(name, Html()), name))


def _draw(tab: Tab, neuron_method: str, head_statistic: str, name: str) -> None:
    """Show one chart: its tab is opened, or its choice has changed."""
    tab.chart, tab.neuron_method, tab.head_statistic = name, neuron_method, head_statistic
