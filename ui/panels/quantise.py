"""Quantisation: in which type the weights are stored."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import gradio as gr

from surgery.formats.table import FORMATS
from surgery.session.view import View
from ui.panel import Panel, Shown, Wire
from ui.presenters import quantise as words
from ui.tabs import Tab
from ui.widgets.choice import Choice

SETTINGS = ("type", "importance", "method", "group", "symmetric", "act_order")
LISTS: tuple[tuple[str, Any, str, str, int], ...] = (
    ("type", list(words.FIRST.types), words.FIRST.default_type, "Type", 130),
    ("method", words.METHODS, "round_to_nearest", "Method", 150),
    ("group", words.GROUPS, "64", "Weights a scale", 120),
    ("rank", words.RANKS, "0", "Low-rank repair (EoRA)", 150),
)
"""Name, choices, the first choice, label, width."""
SWITCHES = (
    ("importance", "Importance matrix", "Weigh errors by what each input is like on the calibration text."),
    ("symmetric", "Symmetric", "No zero points: smaller, a little less close."),
    ("act_order", "Largest inputs first", "GPTQ solves the columns of the largest inputs first (act-order)."),
)
"""Name, label, and what it does."""


class Quantise(Panel):
    """The controls, of which the format decides which show; what the format does; a table of types."""

    title = "Quantise"

    def fields(self) -> None:
        """Lists, switches, words, a button and the table."""
        self.controls: dict[str, Any] = {}
        with gr.Row(elem_id="quantisation"):
            chosen = Choice(
                words.CHOICES, value=words.AS_IT_IS, label="Store the weights", elem_id="quantise-format", scale=3,
                min_width=230, interactive=True,
            )  # fmt: skip
            self.format = self.shows(chosen)
            for name, choices, value, label, width in LISTS:
                listed = Choice(
                    choices,
                    value=value,
                    label=label,
                    visible=False,
                    elem_id=f"quantise-{name}",
                    scale=2,
                    min_width=width,
                )
                self.controls[name] = self.shows(listed)
        with gr.Row(elem_id="quantisation-switches"):
            for name, label, info in SWITCHES:
                switch = gr.Checkbox(
                    name == "symmetric",
                    label=label,
                    info=info,
                    visible=False,
                    elem_id=f"quantise-{name.replace('_', '-')}",
                    min_width=220,
                )
                self.controls[name] = self.shows(switch)
        self.html("quantise-words", words.words)
        with gr.Row(elem_classes="ms-actions"):
            self.compute = self.button(
                "Compute the quantisation",
                "compute-quantisation",
                there=lambda view: view.uncompensated and view.unfinished == "quantisation",
            )
        self.html("quantise-table", words.table)

    def events(self, wire: Wire) -> None:
        """Another format, type or setting; another rank; compute."""
        chosen = [self.format, *(self.controls[name] for name in SETTINGS)]
        wire.on([control.input for control in chosen], self._quantise, *chosen, last=True)
        wire.on(self.controls["rank"].input, self._repair, self.controls["rank"], last=True)
        wire.on(self.compute.click, lambda tab: tab.session.measure.start())

    def values(self, tab: Tab, view: View) -> Iterator[Shown]:
        """The quantisation in force besides; controls of other formats keep what they hold."""
        yield from super().values(tab, view)
        held = words.controls(view)
        shown = words.shown_controls(held["format"], held.get("method", "round_to_nearest"))
        yield Shown(self.format, gr.update(value=held["format"], interactive=view.model is not None))
        for name, control in self.controls.items():
            update = {"visible": shown[name]} | ({"value": held[name]} if name in held else {})
            if name == "type":
                update["choices"] = list(FORMATS.get(held["format"], words.FIRST).types)
            yield Shown(control, gr.update(**update))

    def _quantise(self, tab: Tab, format_name: str, *values: Any) -> None:
        """Another format or type, or another setting."""
        tab.forget(self.format, *self.controls.values())
        tab.session.edit.quantise(words.settings(format_name, dict(zip(SETTINGS, values, strict=True))))

    def _repair(self, tab: Tab, rank: str) -> None:
        """Another rank of the low-rank repair."""
        tab.forget(self.format, *self.controls.values())
        tab.session.edit.repair(words.whole(rank))
