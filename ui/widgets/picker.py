"""Ready-made HTML of which parts are chosen by a click or by the keyboard: every element with a `data-key`.

The HTML comes from the server's own presenters, already escaped, in the read-only prop ``content``; what travels back
is the key of the chosen part.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gradio as gr

LONGEST_KEY = 64


class Picker(gr.HTML):
    """Listen with ``.input(...)``; handlers update it with ``Picker(content=...)``."""

    def __init__(self, value: str | None = None, *, content: str = "", **options: Any) -> None:
        """Make it: `content` is what is shown, `value` the key that was chosen last."""
        super().__init__(
            value=value or "",
            content=content,
            html_template='<div class="ms-picker" data-picker></div>',
            js_on_load=Path(__file__).with_suffix(".js").read_text("utf-8"),
            apply_default_css=False,
            padding=False,
            **options,
        )

    def preprocess(self, payload: object) -> str:
        """The key that the browser posted."""
        return payload[:LONGEST_KEY] if isinstance(payload, str) else ""

    def postprocess(self, value: object) -> str:
        """The key on its way to the browser."""
        return value if isinstance(value, str) else ""
