"""Everything to take away: a verified folder, the way to the Hub, and the checkpoint alone."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import gradio as gr
from gradio.utils import get_upload_folder

from surgery.recipe.storage import GgufType
from surgery.shipping.weights import AS_RECIPE, NONE, ShipOptions, gguf_type
from ui.panel import Panel, Wire
from ui.presenters import ship as ship_words
from ui.presenters.status import can_start
from ui.presenters.text import Html
from ui.tabs import Tab
from ui.theme import PLAIN

TYPES = [("As in the recipe", AS_RECIPE), ("No GGUF file", NONE), *((name, name) for name in get_args(GgufType))]


class Ship(Panel):
    """What goes in, what was made, the upload, and a build without the rest."""

    title = "Ship"

    def fields(self) -> None:
        """The choices, the buttons, and what they made."""
        with gr.Row():
            self.type = gr.Dropdown(
                TYPES,
                value=AS_RECIPE,
                label="GGUF file",
                info="For llama.cpp and Ollama: how its weights are stored.",
                elem_id="ship-type",
                scale=2,
                min_width=220,
            )
            self.checkpoint = gr.Checkbox(
                True,
                label="Checkpoint",
                info="For transformers, in safetensors.",
                elem_id="ship-checkpoint",
                scale=3,
                min_width=220,
            )
        with gr.Row(elem_classes="ms-actions"):
            self.ship = self.button("Ship and verify", "ship", able=can_start, variant="primary")
            self.download("ship-download", lambda view: ship_words.download(view.ship))
        self.html("ship-note", ship_words.ship_text)
        self._hub_fields()
        gr.HTML(Html("<h3>Checkpoint only</h3>"), elem_id="build-heading", **PLAIN)
        self.html("build-note", ship_words.build_text)
        with gr.Row(elem_classes="ms-actions"):
            self.build = self.button("Build and download", "build", able=can_start)
            self.download("download", ship_words.build_download, variant="primary")

    def _hub_fields(self) -> None:
        with gr.Accordion("Upload to the Hugging Face Hub", open=False, visible=False, elem_id="hub") as hub:
            with gr.Row():
                self.repository = gr.Textbox(
                    label="Repository",
                    info="owner/name; made if it is not there.",
                    max_lines=1,
                    elem_id="ship-repository",
                    min_width=200,
                )
                token = gr.Textbox(
                    label="Token",
                    info="With the right to write. Used once, kept nowhere.",
                    type="password",
                    max_lines=1,
                    elem_id="ship-token",
                    min_width=200,
                )
                self.token = self.shows(token)
                self.private = gr.Checkbox(
                    True, label="Private", info="If it is made now.", elem_id="ship-private", min_width=120
                )
            with gr.Row(elem_classes="ms-actions"):
                self.push = self.button("Upload", "push", able=lambda view: can_start(view) and view.ship is not None)
        self.shows(hub, lambda view: gr.update(visible=view.ship is not None))

    def events(self, wire: Wire) -> None:
        """Ship, upload, build."""
        wire.on(self.ship.click, _ship, self.type, self.checkpoint)
        wire.on(self.push.click, self._push, self.repository, self.token, self.private)
        wire.on(self.build.click, lambda tab: tab.session.build.start(Path(get_upload_folder())))

    def _push(self, tab: Tab, repository: str, token: str, private: bool) -> None:
        """Upload the folder; the token leaves the page with this answer."""
        tab.once[self.token] = ""
        tab.session.ship.push(repository, token, bool(private))


def _ship(tab: Tab, type_name: str, checkpoint: bool) -> None:
    """Make and verify the folder, where Gradio serves its zip file from without a copy."""
    recipe = tab.session.edit.current_recipe()
    tab.session.ship.start(ShipOptions(bool(checkpoint), gguf_type(recipe, type_name)), Path(get_upload_folder()))
