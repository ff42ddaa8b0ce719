"""A drop-down list that follows another field: what it held under the list before is no error."""

from __future__ import annotations

from typing import Any

import gradio as gr


class Choice(gr.Dropdown):
    """A `gr.Dropdown` of one value whose choices change: the browser may post one of the last list, so whoever listens
    checks it.
    """

    is_template = True  # the browser's side is the list's own

    def preprocess(self, payload: Any) -> str:
        """What the browser posted, as text."""
        return payload if isinstance(payload, str) else ""
