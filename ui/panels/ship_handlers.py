"""Thin handlers of the Ship panel."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gradio as gr
from gradio.utils import get_upload_folder

from surgery.session.view import View
from surgery.shipping.weights import ShipOptions, gguf_type
from ui.handlers import Update, as_it_is
from ui.panels.tool_handlers import ToolHandlers, show_download
from ui.presenters import ship as ship_words
from ui.tabs import Tab


class ShipHandlers(ToolHandlers):
    """The page's handlers, those of the Ship panel included."""

    def ship(self, identity: str, type_name: str, checkpoint: bool, *picks: str) -> Update:
        """Make and verify the folder, where Gradio serves its zip file from without a copy."""

        def act(tab: Tab) -> None:
            recipe = tab.session.recipe
            options = ShipOptions(bool(checkpoint), gguf_type(recipe, type_name))
            tab.session.ship(options, Path(get_upload_folder()))

        return self._answer(identity, act, picks)

    def push(self, identity: str, repository: str, token: str, private: bool, *picks: str) -> Update:
        """Upload the folder; the token leaves the page with this answer."""
        update = self._answer(identity, lambda tab: tab.session.push(repository, token, bool(private)), picks)
        return {**update, self.parts["shipping_token"]: ""}

    def _values(self, tab: Tab, view: View) -> Iterator[tuple[str, Any, Callable[[Any], Any]]]:
        yield from super()._values(tab, view)
        shipment, able = view.shipment, view.model is not None and not view.working
        yield "ship", able, lambda able: gr.Button(interactive=able)
        yield "push", able and shipment is not None, lambda able: gr.Button(interactive=able)
        yield "ship_note", ship_words.ship_text(view), as_it_is
        yield "ship_download", ship_words.download(shipment), show_download
        yield "hub", shipment is not None, lambda shown: gr.Accordion(visible=shown)
