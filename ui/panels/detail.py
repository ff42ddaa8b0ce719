"""The detail of the selected block: its components, its handlers, and which answers which event."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import gradio as gr

from analysis.importance import registry
from surgery.session.view import View
from ui.handlers import Update, as_it_is
from ui.panels.compare import CompareHandlers
from ui.presenters import detail as detail_words
from ui.presenters import detail_widget as detail_model
from ui.presenters import map_widget as map_model
from ui.tabs import Tab
from ui.theme import PLAIN
from ui.widgets.block_detail import BlockDetail, Cut
from ui.widgets.choice import Choice

RANKINGS = [(entry.title, entry.name) for entry in registry.METHODS if entry.kind == "neurons"]


def map_colour_field(parts: dict[str, Any]) -> None:
    """What the map is coloured by."""
    parts["map_colour"] = gr.Dropdown(
        map_model.COLOURS, value="influence", label="Colour by", container=False, elem_id="map-colour", min_width=200
    )


def detail_fields(parts: dict[str, Any]) -> None:
    """The list of blocks, what the widget shows by, the widget, and the numbers in words."""
    with gr.Row(elem_id="detail-bar"):
        parts["detail_block"] = Choice(
            [], label="Block", interactive=True, elem_id="detail-block", scale=1, min_width=130
        )
        parts["coloured_by"] = gr.Dropdown(
            detail_model.COLOURS,
            value="entropy",
            label="Heads coloured by",
            visible="hidden",
            elem_id="coloured-by",
            scale=2,
            min_width=200,
        )
        parts["ranked_by"] = gr.Dropdown(
            RANKINGS,
            value="cfsp_fine",
            label="Neurons ranked by",
            visible="hidden",
            elem_id="ranked-by",
            scale=2,
            min_width=200,
        )
        parts["detail_lock"] = gr.Checkbox(
            False,
            label="Locked: it must stay",
            visible="hidden",
            elem_id="detail-lock",
            scale=1,
            min_width=160,
        )
    parts["detail"] = BlockDetail(elem_id="detail", label="Detail of a block")
    parts["detail_words"] = gr.HTML(elem_id="detail-words", **PLAIN)


class DetailHandlers(CompareHandlers):
    """The page's handlers, those of one block's detail included."""

    def select(self, identity: str, chosen: str, *picks: str) -> Update:
        """Show another block, or none."""

        def act(tab: Tab) -> None:
            tab.selected = detail_words.chosen_block(chosen)
            tab.sent["detail_block"] = (tab.sent.get("detail_block", ((), ""))[0], chosen)  # the list shows it already

        return self._answer(identity, act, picks)

    def show_by(self, identity: str, coloured_by: str, ranked_by: str, *picks: str) -> Update:
        """Colour heads by another statistic, and rank neurons by another method."""

        def act(tab: Tab) -> None:
            tab.coloured_by, tab.ranked_by = coloured_by, ranked_by

        return self._answer(identity, act, picks)

    def colour_map(self, identity: str, colour: str, *picks: str) -> Update:
        """Colour the map by another measure."""

        def act(tab: Tab) -> None:
            tab.map_colour = colour

        return self._answer(identity, act, picks)

    def lock(self, identity: str, on: bool, *picks: str) -> Update:
        """The selected block must stay, or need not any more."""

        def act(tab: Tab) -> None:
            view = tab.session.view()
            block = detail_model.block_of(view, tab.selected)
            if block is not None:
                tab.sent["detail_lock"] = (True, on)  # the browser shows it already
                tab.session.lock({*view.locked, block.index} if on else {*view.locked} - {block.index})

        return self._answer(identity, act, picks)

    def cut(self, identity: str, value: Cut, *picks: str) -> Update:
        """A group, a head or the width of one block was moved by hand."""

        def act(tab: Tab) -> None:
            block = value["block"]
            if block is None:
                return
            tab.touched()
            tab.sent["detail_value"] = value  # the browser shows it already
            before = detail_model.decision(tab.session.view(), block)
            if (value["groups"], value["heads"]) != (before["groups"], before["heads"]):
                tab.session.switch_heads(block, value["groups"], value["heads"])
            if value["width"] != before["width"]:
                tab.session.narrow_block(block, value["width"], tab.ranked_by)

        return self._answer(identity, act, picks)

    def tick_detail(
        self, identity: str, detail: Cut, answer: str, decisions: dict[str, list[int]], ratio: float | None, *picks: str
    ) -> Update:
        """As `tick`, with what the detail shows."""
        tab = self.sessions.get(identity)
        if tab is not None:
            with tab.lock:
                tab.compare_detail(detail)
        return self.tick(identity, answer, decisions, ratio, *picks)

    def _values(self, tab: Tab, view: View) -> Iterator[tuple[str, Any, Callable[[Any], Any]]]:
        yield from super()._values(tab, view)
        block = detail_model.block_of(view, tab.selected)
        chosen = detail_words.NONE if block is None else str(block.index)
        yield "detail_block", (detail_words.block_choices(view), chosen), _choices
        yield "detail_words", detail_words.detail_text(view, tab.selected), as_it_is
        yield "detail_lock", (block is not None, block is not None and block.index in view.locked), _lock
        for name in ("coloured_by", "ranked_by"):
            yield name, block is not None, lambda shown: gr.update(visible=True if shown else "hidden")

    def _map(self, tab: Tab, view: View) -> Update:
        """Both widgets."""
        return super()._map(tab, view) | self._widget(
            tab,
            "detail",
            BlockDetail,
            detail_model.decision(view, tab.selected),
            detail_model.widget_model(view, tab.selected, tab.ranked_by, tab.coloured_by),
        )


def _lock(found: tuple[bool, bool]) -> Any:
    return gr.Checkbox(value=found[1], visible=True if found[0] else "hidden")


def _choices(found: tuple[list[tuple[str, str]], str]) -> Any:
    return Choice(choices=found[0], value=found[1])


def connect_detail(
    handlers: DetailHandlers,
    inputs: Callable[..., list[Any]],
    shown: list[Any],
    quiet: dict[str, Any],
    last: dict[str, Any],
) -> None:
    """Which handler answers which event of the panel; the arguments are those of `connect_tools`."""
    parts = handlers.parts
    parts["detail"].input(handlers.cut, inputs("detail"), shown, **last)
    parts["map_colour"].input(handlers.colour_map, inputs("map_colour"), shown, **last)
    parts["detail_lock"].input(handlers.lock, inputs("detail_lock"), shown, **last)
    parts["detail_block"].input(handlers.select, inputs("detail_block"), shown, **last)
    gr.on(
        [parts["coloured_by"].input, parts["ranked_by"].input],
        handlers.show_by,
        inputs("coloured_by", "ranked_by"),
        shown,
        **last,
    )
