"""Make it fit: its components, its handlers, and which answers which event."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import gradio as gr

from surgery.session.view import View
from ui.handlers import Update, as_it_is
from ui.panels.heal import HealHandlers
from ui.presenters import fit as fit_words
from ui.tabs import Tab
from ui.theme import PLAIN
from ui.widgets.choice import Choice


def fit_fields(parts: dict[str, Any]) -> None:
    """How much must go, the button that looks for options, and what it found."""
    parts["room"] = gr.HTML(elem_id="room", **PLAIN)
    with gr.Row(elem_classes="ms-actions"):
        parts["make_fit"] = gr.Button(
            "Find what fits", elem_id="make-fit", interactive=False, size="md", scale=0, min_width=0
        )
        gr.HTML(
            '<p class="ms-note">Tries weight types, narrower MLPs and fewer blocks, and measures what fits.</p>',
            min_width=220,
            **PLAIN,
        )
    parts["fit_options"] = gr.HTML(elem_id="fit-options", **PLAIN)
    with gr.Row(elem_classes="ms-actions"):
        parts["fit_choice"] = Choice(
            [], label="Option", visible=False, interactive=True, elem_id="fit-choice", scale=2, min_width=240
        )
        parts["fit_take"] = gr.Button(
            "Take this option", visible=False, elem_id="fit-take", size="md", scale=0, min_width=0
        )


class FitHandlers(HealHandlers):
    """The page's handlers, those of "Make it fit" included."""

    def make_fit(self, identity: str, *picks: str) -> Update:
        """Look for types and smaller models that fit."""
        return self._answer(identity, lambda tab: tab.session.make_it_fit(), picks)

    def fit_take(self, identity: str, chosen: str, *picks: str) -> Update:
        """Make an option the current recipe."""

        def act(tab: Tab) -> None:
            tab.session.take_option(fit_words.number_of(chosen))

        return self._answer(identity, act, picks)

    def _values(self, tab: Tab, view: View) -> Iterator[tuple[str, Any, Callable[[Any], Any]]]:
        yield from super()._values(tab, view)
        yield "room", fit_words.room_text(view), as_it_is
        yield "make_fit", view.model is not None and not view.working, lambda able: gr.Button(interactive=able)
        yield "fit_options", fit_words.options_text(view), as_it_is
        found = fit_words.choices(view)
        yield "fit_choice", found, _choices
        yield "fit_take", bool(found), lambda shown: gr.Button(visible=shown)


def _choices(found: list[tuple[str, str]]) -> Any:
    return Choice(choices=found, value=found[0][1] if found else None, visible=bool(found))


def connect_fit(
    handlers: FitHandlers, inputs: Callable[..., list[Any]], shown: list[Any], quiet: dict[str, Any]
) -> None:
    """Which handler answers which event of the panel; the arguments are those of `connect_ship`."""
    parts = handlers.parts
    parts["make_fit"].click(handlers.make_fit, inputs(), shown, **quiet)
    parts["fit_take"].click(handlers.fit_take, inputs("fit_choice"), shown, **quiet)
