"""The Ship panel: its components, and which handler answers which event."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, get_args

import gradio as gr

from surgery.recipe.storage import GgufType
from surgery.shipping.weights import AS_RECIPE, NONE
from ui.panels.ship_handlers import ShipHandlers
from ui.theme import PLAIN

TYPES = [("As in the recipe", AS_RECIPE), ("No GGUF file", NONE), *((name, name) for name in get_args(GgufType))]


def ship_fields(parts: dict[str, Any]) -> None:
    """What goes in, the button, what was made, and the way to the Hub."""
    with gr.Row():
        parts["shipping_type"] = gr.Dropdown(
            TYPES,
            value=AS_RECIPE,
            label="GGUF file",
            info="For llama.cpp and Ollama: how its weights are stored.",
            elem_id="ship-type",
            scale=2,
            min_width=220,
        )
        parts["shipping_checkpoint"] = gr.Checkbox(
            True,
            label="Checkpoint",
            info="For transformers, in safetensors.",
            elem_id="ship-checkpoint",
            scale=3,
            min_width=220,
        )
    with gr.Row(elem_classes="ms-actions"):
        parts["ship"] = gr.Button(
            "Ship and verify", variant="primary", elem_id="ship", interactive=False, size="md", scale=0, min_width=0
        )
        parts["ship_download"] = gr.DownloadButton(
            visible=False, elem_id="ship-download", size="md", scale=0, min_width=0
        )
    parts["ship_note"] = gr.HTML(elem_id="ship-note", **PLAIN)
    with gr.Accordion("Upload to the Hugging Face Hub", open=False, visible=False, elem_id="hub") as hub:
        with gr.Row():
            parts["shipping_repository"] = gr.Textbox(
                label="Repository",
                info="owner/name; made if it is not there.",
                max_lines=1,
                elem_id="ship-repository",
                min_width=200,
            )
            parts["shipping_token"] = gr.Textbox(
                label="Token",
                info="With the right to write. Used once, kept nowhere.",
                type="password",
                max_lines=1,
                elem_id="ship-token",
                min_width=200,
            )
            parts["shipping_private"] = gr.Checkbox(
                True, label="Private", info="If it is made now.", elem_id="ship-private", min_width=120
            )
        with gr.Row(elem_classes="ms-actions"):
            parts["push"] = gr.Button("Upload", elem_id="push", interactive=False, size="md", scale=0, min_width=0)
    parts["hub"] = hub


def connect_ship(
    handlers: ShipHandlers, inputs: Callable[..., list[Any]], shown: list[Any], quiet: dict[str, Any]
) -> None:
    """Which handler answers which event of the panel.

    Args:
        handlers: with all parts of the page.
        inputs: the tab, the parts of those names, and the charts' choices.
        shown: every part that a handler may send.
        quiet: options of buttons.
    """
    parts = handlers.parts
    parts["ship"].click(handlers.ship, inputs("shipping_type", "shipping_checkpoint"), shown, **quiet)
    parts["push"].click(
        handlers.push,
        inputs("shipping_repository", "shipping_token", "shipping_private"),
        [*shown, parts["shipping_token"]],
        **quiet,
    )
