"""A prompt, answered by the dense and by the cut model."""

from __future__ import annotations

from typing import Any

import gradio as gr

from surgery.common.numbers import real, whole
from surgery.errors import InputError
from surgery.evaluation.generation import has_chat_template
from surgery.evaluation.sampling import MOST_TOKENS, Sampling
from surgery.session.view import View
from ui.panel import Panel, Wire
from ui.presenters import read as read_words
from ui.presenters.status import can_start
from ui.tabs import Tab


class Read(Panel):
    """The prompt, how tokens are drawn, the button, and the answers."""

    title = "Read"

    def fields(self) -> None:
        """The prompt, the sampling folded away, the answers."""
        self.prompt = gr.Textbox(read_words.EXAMPLE, label="Prompt", lines=3, max_lines=3, elem_id="read-prompt")
        chat = gr.Checkbox(
            False, label="Ask it in a conversation (chat template)", interactive=False, elem_id="read-chat"
        )
        self.chat = self.shows(chat, _chat)
        with gr.Accordion("More", open=False, elem_id="read-more"), gr.Row():
            self.sampling = [
                gr.Number(value, label=label, precision=digits, elem_id=f"read-{name}", min_width=130)
                for name, label, value, digits in (
                    ("tokens", f"Tokens to write (up to {MOST_TOKENS})", Sampling.tokens, 0),
                    ("temperature", "Temperature (0: likeliest)", Sampling.temperature, None),
                    ("top-p", "Top-p", Sampling.top_p, None),
                    ("seed", "Seed", Sampling.seed, 0),
                )
            ]
        with gr.Row(elem_classes="ms-actions"):
            self.read = self.button("Read", "read", able=can_start, variant="primary")
        self.html("answers", read_words.answers_text)

    def events(self, wire: Wire) -> None:
        """Let both models answer."""
        wire.on(self.read.click, _read, self.prompt, self.chat, *self.sampling)


def _chat(view: View) -> dict[str, Any]:
    """The switch for conversations, if the model knows them."""
    template = view.model is not None and has_chat_template(view.model.loaded.tokenizer)
    return gr.update(interactive=True) if template else gr.update(value=False, interactive=False)


def _read(tab: Tab, prompt: str, chat: bool, *numbers: float | None) -> None:
    """Let both models answer; the numbers are those of the sampling."""
    tokens, temperature, top_p, seed = numbers
    if tokens is None or temperature is None or top_p is None or seed is None:
        raise InputError("Fill in tokens, temperature, top-p and seed.")
    sampling = Sampling(
        whole(tokens, "The tokens to write", 1, MOST_TOKENS),
        real(temperature, "The temperature"),
        real(top_p, "Top-p"),
        whole(seed, "The seed"),
    )
    tab.session.read.start(prompt or "", bool(chat), sampling)
