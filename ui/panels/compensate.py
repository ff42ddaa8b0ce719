"""Compensations: what is refitted, without training, to make up for the cuts."""

from __future__ import annotations

from functools import partial
from typing import Any, get_args

import gradio as gr

from surgery.pruning.recipe_summary import HOW
from surgery.recipe.edits import How
from surgery.session.view import View
from ui.panel import Panel, Wire
from ui.presenters.compensate import compensation_text, compensations
from ui.tabs import Tab

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
            self.switches = {how: self.shows(_switch(how), partial(_switch_update, how)) for how in HOWS}
        self.html("compensation", compensation_text)
        with gr.Row(elem_classes="ms-actions"):
            self.compute = self.button(
                "Compute the compensation",
                "compute",
                there=lambda view: view.uncompensated and view.unfinished == "compensation",
            )

    def events(self, wire: Wire) -> None:
        """Switch, and compute."""
        for how, switch in self.switches.items():
            wire.on(switch.input, partial(self._compensate, how=how), switch, last=True)
        wire.on(self.compute.click, lambda tab: tab.session.measure.start())

    def _compensate(self, tab: Tab, on: bool, how: How) -> None:
        tab.forget(self.switches[how])
        tab.session.edit.compensate({how}, on)


def _switch(how: How) -> gr.Checkbox:
    return gr.Checkbox(
        False, label=HOW[how], info=COMPENSATIONS[how], interactive=False, elem_id=how.replace("_", "-"), min_width=220
    )


def _switch_update(how: How, view: View) -> dict[str, Any]:
    on = {edit.how for edit in compensations(view)}
    return gr.update(value=how in on, interactive=view.model is not None)
