"""The detail of the selected block: its heads, its neurons, its numbers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import gradio as gr

from surgery.session.view import View
from ui.panel import Panel, Shown, Wire
from ui.presenters import detail as detail_words
from ui.presenters import detail_widget as detail_model
from ui.presenters.charts import NEURON_METHODS
from ui.tabs import Tab
from ui.theme import PLAIN
from ui.widgets.block_detail import BlockDetail, Cut
from ui.widgets.choice import Choice


class Detail(Panel):
    """The list of blocks, what the widget shows by, the widget, and the numbers in words."""

    def fields(self) -> None:
        """A row of lists, the widget, the words."""
        with gr.Row(elem_id="detail-bar"):
            block = Choice([], label="Block", interactive=True, elem_id="detail-block", scale=1, min_width=130)
            self.block = self.shows(block)
            coloured_by = gr.Dropdown(
                detail_model.COLOURS,
                value="entropy",
                label="Heads coloured by",
                visible="hidden",
                elem_id="coloured-by",
                scale=2,
                min_width=200,
            )
            self.coloured_by = self.shows(coloured_by)
            ranked_by = gr.Dropdown(
                NEURON_METHODS,
                value="cfsp_fine",
                label="Neurons ranked by",
                visible="hidden",
                elem_id="ranked-by",
                scale=2,
                min_width=200,
            )
            self.ranked_by = self.shows(ranked_by)
            lock = gr.Checkbox(
                False, label="Locked: it must stay", visible="hidden", elem_id="detail-lock", scale=1, min_width=160
            )
            self.lock = self.shows(lock)
        self.detail = self.moves(BlockDetail(elem_id="detail", label="Detail of a block"))
        self.words = self.shows(gr.HTML(elem_id="detail-words", **PLAIN))

    def events(self, wire: Wire) -> None:
        """Select, lock, cut, and show by something else."""
        wire.on(self.detail.input, self._cut, self.detail, last=True)
        wire.on(self.lock.input, self._lock, self.lock, last=True)
        wire.on(self.block.input, self._select, self.block, last=True)
        wire.on([self.coloured_by.input, self.ranked_by.input], _show_by, self.coloured_by, self.ranked_by, last=True)

    def values(self, tab: Tab, view: View) -> Iterator[Shown]:
        """The selected block, and the widget's decision only if the browser has another."""
        block = detail_model.block_of(view, tab.selected)
        chosen = detail_words.NONE if block is None else str(block.index)
        visible: Literal[True, "hidden"] = "hidden" if block is None else True
        yield Shown(self.block, gr.update(choices=detail_words.block_choices(view), value=chosen))
        yield Shown(self.words, detail_words.detail_text(view, tab.selected))
        locked = block is not None and block.index in view.locked
        yield Shown(self.lock, gr.update(value=locked, visible=visible))
        for field in (self.coloured_by, self.ranked_by):
            yield Shown(field, gr.update(visible=visible))
        decision = detail_model.decision(view, tab.selected)
        model = detail_model.widget_model(view, tab.selected, tab.ranked_by, tab.coloured_by)
        yield Shown(self.detail, model, lambda: BlockDetail(model=model))
        yield Shown(self.detail, None, lambda: BlockDetail(decision, model=model), hand=decision)

    def _select(self, tab: Tab, chosen: str) -> None:
        """Show another block, or none."""
        tab.selected = detail_words.chosen_block(chosen)
        tab.sent[self.block] = {**tab.sent.get(self.block, {}), "value": chosen}  # the list shows it already

    def _lock(self, tab: Tab, on: bool) -> None:
        """The selected block must stay, or need not any more."""
        view = tab.session.view()
        block = detail_model.block_of(view, tab.selected)
        if block is not None:
            tab.sent[self.lock] = gr.update(value=on, visible=True)  # the browser shows it already
            tab.session.edit.lock({*view.locked, block.index} if on else {*view.locked} - {block.index})

    def _cut(self, tab: Tab, value: Cut) -> None:
        """A group, a head or the width of one block was moved by hand."""
        block = value["block"]
        if block is None:
            return
        tab.moved_to(self.detail, value)
        before = detail_model.decision(tab.session.view(), block)
        if (value["groups"], value["heads"]) != (before["groups"], before["heads"]):
            tab.session.edit.switch_heads(block, value["groups"], value["heads"])
        if value["width"] != before["width"]:
            tab.session.analyse.narrow_block(block, value["width"], tab.ranked_by)


def _show_by(tab: Tab, coloured_by: str, ranked_by: str) -> None:
    """Colour heads by another statistic, and rank neurons by another method."""
    tab.coloured_by, tab.ranked_by = coloured_by, ranked_by
