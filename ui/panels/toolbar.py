"""Analyse, the history's buttons, and the recipe as a file."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import gradio as gr

from surgery.recipe.recipe import Recipe
from surgery.session.view import View
from ui.panel import QUIET, Panel, Shown, Wire, button
from ui.presenters.status import can_start
from ui.scripts import download_js
from ui.tabs import Tab


class Toolbar(Panel):
    """The row of buttons above the map."""

    def fields(self) -> None:
        """The buttons, and the carrier of the recipe's text."""
        with gr.Row(elem_id="toolbar"):
            self.analyse = self.shows(button("Analyse", "analyse", interactive=False, variant="primary"))
            self.undo = self.shows(button("Undo", "undo", interactive=False, elem_classes="ms-gap"))
            self.redo = self.shows(button("Redo", "redo", interactive=False))
            self.reset = self.shows(button("Reset", "reset", interactive=False))
            self.export = self.shows(button("Export recipe", "export", interactive=False, elem_classes="ms-gap"))
            upload = gr.UploadButton(
                "Import recipe",
                file_types=[".json"],
                elem_id="import",
                interactive=False,
                size="md",
                scale=0,
                min_width=0,
            )
            self.take = self.shows(upload)
        self.exported = gr.Textbox(visible="hidden", elem_id="exported")

    def events(self, wire: Wire) -> None:
        """Analyse, step, export, import."""
        wire.on(self.analyse.click, lambda tab: tab.session.analyse.start())
        wire.on(self.undo.click, lambda tab: tab.session.edit.undo())
        wire.on(self.redo.click, lambda tab: tab.session.edit.redo())
        wire.on(self.reset.click, lambda tab: tab.session.edit.reset())
        wire.fetch(self.export.click, lambda tab: tab.session.build.exported(), self.exported).success(
            None, [self.exported], None, js=download_js("recipe.json", "application/json"), **QUIET
        )
        wire.on(self.take.upload, _take, self.take)

    def values(self, tab: Tab, view: View) -> Iterator[Shown]:
        """Which buttons can be pressed."""
        history = view.history
        for pressed, able in (
            (self.analyse, can_start(view)),
            (self.undo, history is not None and history.can_undo),
            (self.redo, history is not None and history.can_redo),
            (self.reset, history is not None and bool(history.current.edits)),
            (self.export, view.model is not None),
            (self.take, view.model is not None),
        ):
            yield Shown(pressed, gr.update(interactive=able))


def _take(tab: Tab, path: str | None) -> None:
    """Import an uploaded recipe."""
    if path:
        tab.session.edit.take(Recipe.load(Path(path)))
