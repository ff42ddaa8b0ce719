"""Steps, everything tried, and two pinned recipes beside each other."""

from __future__ import annotations

from functools import partial
from typing import Any

import gradio as gr

from surgery.session.compare import Pin
from surgery.session.view import View
from ui.panel import SLIM, Panel, Wire
from ui.presenters import compare as words
from ui.tabs import Tab
from ui.widgets.picker import Picker

PINS: tuple[Pin, ...] = ("a", "b")


class Compare(Panel):
    """The drawing and the steps, the pins and their table."""

    title = "Compare"

    def fields(self) -> None:
        """Two pictures beside each other, two buttons, the table."""
        with gr.Row():
            with gr.Column(min_width=300):
                self.tried = self.shows(Picker(elem_id="tried"), lambda view: gr.update(content=words.drawing(view)))
            with gr.Column(min_width=300):
                self.steps = self.shows(Picker(elem_id="steps"), lambda view: gr.update(content=words.steps(view)))
        with gr.Row(elem_classes="ms-actions"):
            self.pins = {pin: self._button(pin) for pin in PINS}
        self.html("pinned", words.pinned_text)

    def _button(self, pin: Pin) -> Any:
        made = gr.Button(f"Pin as {pin.upper()}", elem_id=f"pin-{pin}", interactive=False, **SLIM)
        return self.shows(made, partial(_pin_update, pin))

    def events(self, wire: Wire) -> None:
        """Pin the recipe in force; go to one that was tried."""
        for pin, pressed in self.pins.items():
            wire.on(pressed.click, partial(_pin, place=pin))
        for picker in (self.tried, self.steps):
            wire.on(picker.input, lambda tab, key: tab.session.compare.go_to(key), picker)


def _pin(tab: Tab, place: Pin) -> None:
    """Pin the recipe in force, or let go of it."""
    tab.session.compare.pin(place)


def _pin_update(pin: Pin, view: View) -> dict[str, Any]:
    now = view.history.current.key if view.history is not None else None
    held = now is not None and view.compare.pins.get(pin) == now
    return gr.update(value=f"{'Let go of' if held else 'Pin as'} {pin.upper()}", interactive=now is not None)
