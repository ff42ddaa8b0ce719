"""The guide: a card in the flow of the page, which its script leads through the steps of a first operation."""

from __future__ import annotations

from pathlib import Path

import gradio as gr

from ui.presenters import guide as guide_words
from ui.theme import PLAIN


def guide() -> gr.HTML:
    """The card. It belongs to the browser alone: no handler sends or reads it."""
    script = Path(__file__).with_suffix(".js").read_text("utf-8")
    return gr.HTML(guide_words.card(), js_on_load=script, elem_id="guide", **PLAIN)
