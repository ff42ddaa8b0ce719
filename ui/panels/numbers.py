"""The row of numbers: parameters, file, memory, speed, perplexity, and whether it fits."""

from __future__ import annotations

from collections.abc import Iterator

import gradio as gr

from surgery.session.view import View
from ui.panel import Panel, Shown
from ui.presenters.tiles import tiles
from ui.tabs import Tab
from ui.theme import PLAIN


class Numbers(Panel):
    """The tiles."""

    def fields(self) -> None:
        """One piece of HTML."""
        self.tiles = self.shows(gr.HTML(elem_id="tiles", **PLAIN))

    def values(self, tab: Tab, view: View) -> Iterator[Shown]:
        """The tiles."""
        yield Shown(self.tiles, tiles(view))
