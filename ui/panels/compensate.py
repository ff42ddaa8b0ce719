"""Compensations: what is refitted, without training, to make up for the cuts."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import get_args

import gradio as gr

from surgery.pruning.recipe_summary import HOW
from surgery.recipe.edits import How
from surgery.session.view import View
from ui.panel import Panel, Shown, Wire, button
from ui.presenters.compensate import compensation_text, compensations
from ui.tabs import Tab
from ui.theme import PLAIN

HOWS: tuple[How, ...] = get_args(How)
COMPENSATIONS = {
    "least_squares": "Refits what narrowed attention and MLPs write, to come nearest to what they wrote whole.",
    "linear_patch": "Folds a map across each run of removed blocks or parts into the MLP before it. No new parameters.",
    "bias": "Adds the mean of what was removed from narrowed parts. A few new parameters; instead of least squares.",
}


class Compensate(Panel):
    """A switch for each compensation, and what they reach."""

    title = "Compensate"

    def fields(self) -> None:
        """The switches, the words, and the button that computes what was cancelled."""
        with gr.Row(elem_id="compensations"):
            self.switches = {how: self.shows(_switch(how)) for how in HOWS}
        self.words = self.shows(gr.HTML(elem_id="compensation", **PLAIN))
        with gr.Row(elem_classes="ms-actions"):
            self.compute = self.shows(button("Compute the compensation", "compute", visible=False))

    def events(self, wire: Wire) -> None:
        """Switch, and compute."""
        for how, switch in self.switches.items():
            wire.on(switch.input, partial(self._compensate, how=how), switch, last=True)
        wire.on(self.compute.click, lambda tab: tab.session.measure.start())

    def values(self, tab: Tab, view: View) -> Iterator[Shown]:
        """Which are on, and what they reach."""
        on = {edit.how for edit in compensations(view)}
        for how, switch in self.switches.items():
            yield Shown(switch, gr.update(value=how in on, interactive=view.model is not None))
        yield Shown(self.words, compensation_text(view))
        pending = view.uncompensated and view.unfinished == "compensation"
        yield Shown(self.compute, gr.update(visible=pending))

    def _compensate(self, tab: Tab, on: bool, how: How) -> None:
        tab.forget(self.switches[how])
        tab.session.edit.compensate({how}, on)


def _switch(how: How) -> gr.Checkbox:
    return gr.Checkbox(
        False,
        label=HOW[how],
        info=COMPENSATIONS[how],
        interactive=False,
        elem_id=how.replace("_", "-"),
        min_width=220,
    )
