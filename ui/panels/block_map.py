"""The map of the blocks: parts are switched off by a click."""

from __future__ import annotations

from collections.abc import Iterator

import gradio as gr

from surgery.session.view import View
from ui.panel import Panel, Shown, Wire
from ui.presenters import map_widget as map_model
from ui.presenters.recipe import removed_text
from ui.tabs import Tab
from ui.widgets import block_map as widget


class BlockMap(Panel):
    """The map, what it is coloured by, and the line that says what is left."""

    def fields(self) -> None:
        """The list of colours, the map, the line."""
        self.colour = gr.Dropdown(
            map_model.COLOURS,
            value="influence",
            label="Colour by",
            container=False,
            elem_id="map-colour",
            min_width=200,
        )
        self.map = self.moves(widget.BlockMap(elem_id="map", label="Blocks"))
        self.html("removed", removed_text)

    def events(self, wire: Wire) -> None:
        """A click on the map, and another colour."""
        wire.on(self.map.input, self._switch, self.map, last=True)
        wire.on(self.colour.input, _colour, self.colour, last=True)

    def values(self, tab: Tab, view: View) -> Iterator[Shown]:
        """The map besides: its decisions only if the browser has others, as a click may be under way there."""
        yield from super().values(tab, view)
        decisions, model = map_model.decisions(view), map_model.block_map_model(view, tab.map_colour)
        yield Shown(self.map, model, lambda: widget.BlockMap(model=model))
        yield Shown(self.map, None, lambda: widget.BlockMap(decisions, model=model), hand=decisions)

    def _switch(self, tab: Tab, value: dict[str, list[int]]) -> None:
        """A click on the map; if it is of one block, that is shown in detail."""
        tab.moved_to(self.map, value)
        changed = map_model.changed_block(map_model.decisions(tab.session.view()), value)
        tab.selected = tab.selected if changed is None else changed
        tab.session.edit.switch(value["blocks"], value["attention"], value["mlp"])


def _colour(tab: Tab, colour: str) -> None:
    tab.map_colour = colour
