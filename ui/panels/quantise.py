"""The Quantise panel: its components, its handlers, and which answers which event."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import gradio as gr

from surgery.formats.table import FORMATS
from surgery.session.view import View
from ui.handlers import Handlers, Update, as_it_is
from ui.presenters import quantise as words
from ui.tabs import Tab
from ui.theme import PLAIN
from ui.widgets.choice import Choice

CONTROLS = ("type", "importance", "method", "group", "symmetric", "act_order")


def quantise_fields(parts: dict[str, Any]) -> None:
    """The controls of the panel; which of them show depends on the format."""
    with gr.Row(elem_id="quantisation"):
        parts["quantise_format"] = Choice(
            words.CHOICES, value=words.AS_IT_IS, label="Store the weights", elem_id="quantise-format", scale=3,
            min_width=230, interactive=True,
        )  # fmt: skip
        for name, choices, value, label, width in (
            ("type", list(words.FIRST.types), words.FIRST.default_type, "Type", 130),
            ("method", words.METHODS, "round_to_nearest", "Method", 150),
            ("group", words.GROUPS, "64", "Weights a scale", 120),
            ("rank", words.RANKS, "0", "Low-rank repair (EoRA)", 150),
        ):
            parts[f"quantise_{name}"] = Choice(
                choices, value=value, label=label, visible=False, elem_id=f"quantise-{name}", scale=2, min_width=width
            )
    with gr.Row(elem_id="quantisation-switches"):
        for name, label, info in (
            ("importance", "Importance matrix", "Weigh errors by what each input is like on the calibration text."),
            ("symmetric", "Symmetric", "No zero points: smaller, a little less close."),
            ("act_order", "Largest inputs first", "GPTQ solves the columns of the largest inputs first (act-order)."),
        ):
            parts[f"quantise_{name}"] = gr.Checkbox(
                name == "symmetric",
                label=label,
                info=info,
                visible=False,
                elem_id=f"quantise-{name.replace('_', '-')}",
                min_width=220,
            )
    parts["quantise_words"] = gr.HTML(elem_id="quantise-words", **PLAIN)
    with gr.Row(elem_classes="ms-actions"):
        parts["compute_quantisation"] = gr.Button(
            "Compute the quantisation", visible=False, elem_id="compute-quantisation", size="md", scale=0, min_width=0
        )
    parts["quantise_table"] = gr.HTML(elem_id="quantise-table", **PLAIN)


class QuantiseHandlers(Handlers):
    """The handlers of the panel, beside the page's own."""

    def quantise(self, identity: str, format_name: str, *rest: Any) -> Update:
        """Another format or type, or another setting. `rest` are the controls' values and the charts' choices."""
        values, picks = dict(zip(CONTROLS, rest, strict=False)), rest[len(CONTROLS) :]

        def act(tab: Tab) -> None:
            _send_back(tab)
            tab.session.quantise(words.settings(format_name, values))

        return self._answer(identity, act, picks)

    def repair(self, identity: str, rank: str, *picks: str) -> Update:
        """Another rank of the low-rank repair."""

        def act(tab: Tab) -> None:
            _send_back(tab)
            tab.session.repair(words.whole(rank))

        return self._answer(identity, act, picks)

    def compute_quantisation(self, identity: str, *picks: str) -> Update:
        """Compute a quantisation that was cancelled or failed, and measure."""
        return self._answer(identity, lambda tab: tab.session.measure(), picks)

    def _values(self, tab: Tab, view: View) -> Iterator[tuple[str, Any, Callable[[Any], Any]]]:
        yield from super()._values(tab, view)
        held = words.controls(view)
        shown = words.shown_controls(held["format"], held.get("method", "round_to_nearest"))
        yield "quantise_format", (held["format"], view.model is not None), _format
        types = FORMATS.get(held["format"], words.FIRST).types
        yield "quantise_type", (shown["type"], held["type"], types), _type
        for name in ("method", "group", "rank"):
            yield f"quantise_{name}", (shown[name], held.get(name)), _choice
        for name in ("importance", "symmetric", "act_order"):
            yield f"quantise_{name}", (shown[name], held.get(name)), _switch
        yield "quantise_words", words.words(view), as_it_is
        yield "quantise_table", words.table(view), as_it_is
        pending = view.uncompensated and view.unfinished == "quantisation"
        yield "compute_quantisation", pending, lambda visible: gr.Button(visible=visible)


def _send_back(tab: Tab) -> None:
    """What is in force is sent again after a choice: it may be refused."""
    for name in ("format", "rank", *CONTROLS):
        tab.sent.pop(f"quantise_{name}", None)


def _format(state: tuple[str, bool]) -> Any:
    return Choice(value=state[0], interactive=state[1])


def _type(state: tuple[bool, str, tuple[str, ...]]) -> Any:
    return Choice(choices=list(state[2]), value=state[1], visible=state[0])


def _choice(state: tuple[bool, Any]) -> Any:
    return Choice(visible=state[0]) if state[1] is None else Choice(value=state[1], visible=state[0])


def _switch(state: tuple[bool, Any]) -> Any:
    return gr.Checkbox(visible=state[0]) if state[1] is None else gr.Checkbox(value=state[1], visible=state[0])


def connect_quantise(
    handlers: QuantiseHandlers,
    inputs: Callable[..., list[Any]],
    shown: list[Any],
    quiet: dict[str, Any],
    last: dict[str, Any],
) -> None:
    """Which handler answers which event of the panel; the arguments are those of `connect_tools`."""
    parts = handlers.parts
    names = [f"quantise_{name}" for name in CONTROLS]
    gr.on(
        [parts[name].input for name in ("quantise_format", *names)],
        handlers.quantise,
        inputs("quantise_format", *names),
        shown,
        **last,
    )
    parts["quantise_rank"].input(handlers.repair, inputs("quantise_rank"), shown, **last)
    parts["compute_quantisation"].click(handlers.compute_quantisation, inputs(), shown, **quiet)
