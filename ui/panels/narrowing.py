"""The expansion ratio: MLPs are narrowed by a slider, the least important neurons first."""

from __future__ import annotations

from collections.abc import Iterator

import gradio as gr

from surgery.session.view import View
from ui import inputs
from ui.panel import Panel, Shown, Wire
from ui.presenters.charts import NEURON_METHODS
from ui.presenters.map_widget import ratios
from ui.tabs import Tab
from ui.widgets.ratio import Ratio

DIVISORS = [1, 8, 32, 64, 128]


class Narrowing(Panel):
    """The slider, the blocks that it is of, the method and the divisor."""

    def fields(self) -> None:
        """One row."""
        with gr.Row(elem_id="narrowing"):
            slider = Ratio(
                10,
                400,
                value=267,
                step=1,
                label="Expansion ratio of the MLPs (%)",
                info="Width over hidden size. The least important neurons go first.",
                elem_id="ratio",
                interactive=False,
                buttons=[],
                scale=3,
                min_width=280,
            )
            self.slider = self.moves(slider)
            self.blocks = gr.Textbox(
                "",
                label="Blocks",
                info="A range, such as 4-12.",
                placeholder="all",
                elem_id="narrow-blocks",
                max_lines=1,
                min_width=110,
            )
            self.method = gr.Dropdown(
                NEURON_METHODS,
                value="cfsp_fine",
                label="Method",
                info="How neurons are ranked.",
                elem_id="method",
                scale=2,
                min_width=200,
            )
            self.divisor = gr.Dropdown(
                DIVISORS, value=1, label="Divisor", info="Widths are its multiples.", elem_id="divisor", min_width=120
            )

    def events(self, wire: Wire) -> None:
        """Narrow; otherwise; elsewhere."""
        wire.on(self.slider.input, self._narrow, self.slider, self.method, self.divisor, last=True)
        wire.on([self.method.input, self.divisor.input], _narrow_otherwise, self.method, self.divisor, last=True)
        wire.on([self.blocks.submit, self.blocks.blur], _narrow_where, self.blocks, last=True)

    def values(self, tab: Tab, view: View) -> Iterator[Shown]:
        """The ratio in force and the largest, in percent."""
        found = ratios(view, tab.narrowed_blocks)
        if found is not None:
            ratio, most = found
            yield Shown(self.slider, most, lambda: Ratio(value=ratio, maximum=most, interactive=True), hand=ratio)

    def _narrow(self, tab: Tab, ratio: float | None, method: str, divisor: int) -> None:
        """The slider was moved; None while its box is empty."""
        if ratio is None:
            return
        tab.narrowing = (method, divisor)
        most = tab.held[self.slider][1] if self.slider in tab.held else 0
        tab.moved_to(self.slider, ratio)
        tab.session.analyse.narrow(method, inputs.ratio(ratio, most), int(divisor), tab.narrowed_blocks)


def _narrow_otherwise(tab: Tab, method: str, divisor: int) -> None:
    """Another method or divisor: applied at once if the MLPs are narrowed."""
    if tab.narrowing == (method, divisor):  # Gradio also reports a list that merely loses the focus
        return
    tab.narrowing = (method, divisor)
    found = ratios(tab.session.view(), tab.narrowed_blocks)
    if found is not None and found[0] < found[1]:
        tab.session.analyse.narrow(method, found[0] / 100, int(divisor), tab.narrowed_blocks)


def _narrow_where(tab: Tab, blocks: str) -> None:
    """Other blocks for the slider, which shows their ratio from now on."""
    tab.narrowed_blocks = inputs.blocks(blocks, tab.session.view())
