"""Steps, everything tried, and two pinned recipes beside each other."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import gradio as gr

from surgery.session.compare import Pin
from surgery.session.view import View
from ui.panel import Panel, Shown, Wire, button
from ui.presenters import compare as compare_words
from ui.tabs import Tab
from ui.theme import PLAIN
from ui.widgets.picker import Picker

PINS: tuple[Pin, ...] = ("a", "b")


class Compare(Panel):
    """The drawing and the steps, the pins and their table."""

    title = "Compare"

    def fields(self) -> None:
        """Two pictures beside each other, two buttons, the table."""
        with gr.Row():
            with gr.Column(min_width=300):
                self.tried = self.shows(Picker(elem_id="tried"))
            with gr.Column(min_width=300):
                self.steps = self.shows(Picker(elem_id="steps"))
        with gr.Row(elem_classes="ms-actions"):
            self.pins = {
                pin: self.shows(button(f"Pin as {pin.upper()}", f"pin-{pin}", interactive=False)) for pin in PINS
            }
        self.pinned = self.shows(gr.HTML(elem_id="pinned", **PLAIN))

    def events(self, wire: Wire) -> None:
        """Pin the recipe in force; go to one that was tried."""
        for pin, pressed in self.pins.items():
            wire.on(pressed.click, partial(_pin, place=pin))
        for picker in (self.tried, self.steps):
            wire.on(picker.input, lambda tab, key: tab.session.compare.go_to(key), picker)

    def values(self, tab: Tab, view: View) -> Iterator[Shown]:
        """What was tried, and what is pinned."""
        yield Shown(self.tried, gr.update(content=compare_words.drawing(view)))
        yield Shown(self.steps, gr.update(content=compare_words.steps(view)))
        yield Shown(self.pinned, compare_words.pinned_text(view))
        now = view.history.current.key if view.history is not None else None
        for pin, pressed in self.pins.items():
            held = now is not None and view.compare.pins.get(pin) == now
            words = f"{'Let go of' if held else 'Pin as'} {pin.upper()}"
            yield Shown(pressed, gr.update(value=words, interactive=now is not None))


def _pin(tab: Tab, place: Pin) -> None:
    """Pin the recipe in force, or let go of it."""
    tab.session.compare.pin(place)
