"""What a caller or a person is told where nothing is wrong with the server."""

from __future__ import annotations

import gradio as gr


def refusal(sentence: str) -> gr.Error:
    """One sentence; the server's log needs no traceback of it."""
    return gr.Error(sentence, print_exception=False)
