"""Compare: steps, everything tried, and two pinned recipes: components, handlers, events."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import gradio as gr

from surgery.session.view import Pin, View
from ui.handlers import Update, as_it_is
from ui.panels.read import ReadHandlers
from ui.presenters import compare as compare_words
from ui.tabs import Tab
from ui.theme import PLAIN
from ui.widgets.picker import Picker

PINS: tuple[Pin, ...] = ("a", "b")


def compare_fields(parts: dict[str, Any]) -> None:
    """The drawing and the steps, the pins and their table."""
    with gr.Row():
        with gr.Column(min_width=300):
            parts["tried"] = Picker(elem_id="tried")
        with gr.Column(min_width=300):
            parts["steps"] = Picker(elem_id="steps")
    with gr.Row(elem_classes="ms-actions"):
        for pin in PINS:
            parts[f"pin_{pin}"] = gr.Button(
                f"Pin as {pin.upper()}", elem_id=f"pin-{pin}", interactive=False, size="md", scale=0, min_width=0
            )
    parts["pinned"] = gr.HTML(elem_id="pinned", **PLAIN)


class CompareHandlers(ReadHandlers):
    """The page's handlers, those of Compare included."""

    def pin(self, place: Pin) -> Callable[..., Update]:
        """The handler of one pin."""

        def press(identity: str, *picks: str) -> Update:
            return self._answer(identity, lambda tab: tab.session.pin(place), picks)

        return press

    def go_to(self, identity: str, key: str, *picks: str) -> Update:
        """Back, or on, to a recipe that was tried."""
        return self._answer(identity, lambda tab: tab.session.go_to(key), picks)

    def _values(self, tab: Tab, view: View) -> Iterator[tuple[str, Any, Callable[[Any], Any]]]:
        yield from super()._values(tab, view)
        yield "tried", compare_words.drawing(view), _content
        yield "steps", compare_words.steps(view), _content
        yield "pinned", compare_words.pinned_text(view), as_it_is
        now = view.history.current.key if view.history is not None else None
        for pin in PINS:
            yield f"pin_{pin}", (now is not None, now is not None and view.compared.pins.get(pin) == now, pin), _pin


def _content(html: str) -> Any:
    return Picker(content=html)


def _pin(state: tuple[bool, bool, str]) -> Any:
    able, held, pin = state
    return gr.Button(f"{'Let go of' if held else 'Pin as'} {pin.upper()}", interactive=able)


def connect_compare(
    handlers: CompareHandlers, inputs: Callable[..., list[Any]], shown: list[Any], quiet: dict[str, Any]
) -> None:
    """Which handler answers which event of the panel; the arguments are those of `connect_ship`."""
    for pin in PINS:
        handlers.parts[f"pin_{pin}"].click(handlers.pin(pin), inputs(), shown, **quiet)
    for name in ("tried", "steps"):
        handlers.parts[name].input(handlers.go_to, inputs(name), shown, **quiet)
