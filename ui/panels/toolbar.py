"""Analyse, the history's buttons, and the recipe as a file."""

from __future__ import annotations

from pathlib import Path

import gradio as gr

from surgery.recipe.recipe import Recipe
from surgery.session.view import View
from ui.panel import QUIET, SLIM, Panel, Wire
from ui.presenters.status import can_start
from ui.scripts import download_js
from ui.tabs import Tab


class Toolbar(Panel):
    """The row of buttons above the map."""

    def fields(self) -> None:
        """The buttons, and the carrier of the recipe's text."""
        with gr.Row(elem_id="toolbar"):
            self.analyse = self.button("Analyse", "analyse", able=can_start, variant="primary")
            self.undo = self.button(
                "Undo", "undo", able=lambda view: bool(view.history and view.history.can_undo), elem_classes="ms-gap"
            )
            self.redo = self.button("Redo", "redo", able=lambda view: bool(view.history and view.history.can_redo))
            self.reset = self.button(
                "Reset", "reset", able=lambda view: bool(view.history and view.history.current.edits)
            )
            self.export = self.button("Export recipe", "export", able=_is_open, elem_classes="ms-gap")
            upload = gr.UploadButton("Import recipe", file_types=[".json"], elem_id="import", interactive=False, **SLIM)
            self.take = self.shows(upload, lambda view: gr.update(interactive=_is_open(view)))
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


def _is_open(view: View) -> bool:
    return view.model is not None


def _take(tab: Tab, path: str | None) -> None:
    """Import an uploaded recipe."""
    if path:
        tab.session.edit.take(Recipe.load(Path(path)))
