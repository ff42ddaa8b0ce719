"""Read: a prompt answered by the dense and the cut model: components, handlers, and which answers which event."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import gradio as gr

from surgery.errors import InputError
from surgery.evaluation.generation import has_chat_template
from surgery.evaluation.sampling import MOST_TOKENS, Sampling
from surgery.session.view import View
from ui.handlers import Update, as_it_is
from ui.panels.keep import KeepHandlers
from ui.presenters import read as read_words
from ui.tabs import Tab
from ui.theme import PLAIN

FIELDS = ("prompt", "chat", "tokens", "temperature", "top_p", "seed")


def read_fields(parts: dict[str, Any]) -> None:
    """The prompt, how tokens are drawn, the button, and the answers."""
    parts["reading_prompt"] = gr.Textbox(
        read_words.EXAMPLE, label="Prompt", lines=3, max_lines=3, elem_id="read-prompt"
    )
    parts["reading_chat"] = gr.Checkbox(
        False, label="Ask it in a conversation (chat template)", interactive=False, elem_id="read-chat"
    )
    with gr.Accordion("More", open=False, elem_id="read-more"), gr.Row():
        for name, label, value, digits in (
            ("tokens", f"Tokens to write (up to {MOST_TOKENS})", Sampling.tokens, 0),
            ("temperature", "Temperature (0: likeliest)", Sampling.temperature, None),
            ("top_p", "Top-p", Sampling.top_p, None),
            ("seed", "Seed", Sampling.seed, 0),
        ):
            parts[f"reading_{name}"] = gr.Number(
                value, label=label, precision=digits, elem_id=f"read-{name.replace('_', '-')}", min_width=130
            )
    with gr.Row(elem_classes="ms-actions"):
        parts["read"] = gr.Button(
            "Read", variant="primary", elem_id="read", interactive=False, size="md", scale=0, min_width=0
        )
    parts["answers"] = gr.HTML(elem_id="answers", **PLAIN)


class ReadHandlers(KeepHandlers):
    """The page's handlers, those of Read included."""

    def read(self, identity: str, prompt: str, chat: bool, *rest: Any) -> Update:
        """Let both models answer. `rest` are the numbers of the sampling, and the charts' choices."""
        numbers, picks = rest[: len(FIELDS) - 2], rest[len(FIELDS) - 2 :]

        def act(tab: Tab) -> None:
            if any(number is None for number in numbers):
                raise InputError("Fill in tokens, temperature, top-p and seed.")
            tokens, temperature, top_p, seed = numbers
            tab.session.read(prompt or "", bool(chat), Sampling(int(tokens), temperature, top_p, int(seed)))

        return self._answer(identity, act, picks)

    def _values(self, tab: Tab, view: View) -> Iterator[tuple[str, Any, Callable[[Any], Any]]]:
        yield from super()._values(tab, view)
        yield "read", view.model is not None and not view.working, lambda able: gr.Button(interactive=able)
        yield "answers", read_words.answers_text(view), as_it_is
        template = view.model is not None and has_chat_template(view.model.loaded.tokenizer)
        yield "reading_chat", template, _chat


def _chat(template: bool) -> Any:
    return gr.Checkbox(interactive=True) if template else gr.Checkbox(value=False, interactive=False)


def connect_read(
    handlers: ReadHandlers, inputs: Callable[..., list[Any]], shown: list[Any], quiet: dict[str, Any]
) -> None:
    """Which handler answers which event of the panel; the arguments are those of `connect_ship`."""
    chosen = inputs(*(f"reading_{name}" for name in FIELDS))
    handlers.parts["read"].click(handlers.read, chosen, shown, **quiet)
