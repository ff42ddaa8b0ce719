"""Memory on the device, itemised, and what would fit."""

from __future__ import annotations

from collections.abc import Iterator

import gradio as gr

from surgery.session.view import View
from ui.panel import Panel, Shown, Wire, button, show_choices
from ui.presenters import fit as fit_words
from ui.presenters.status import can_start
from ui.tabs import Tab
from ui.theme import PLAIN
from ui.widgets.choice import Choice

WORDS = "Tries weight types, narrower MLPs and fewer blocks, and measures what fits."


class Fit(Panel):
    """The table of memory, how much must go, the button that looks for options, and what it found."""

    def fields(self) -> None:
        """Everything folded away."""
        with gr.Accordion("Memory on the device, itemised, and what fits", open=False, elem_id="fit-details"):
            self.table = self.shows(gr.HTML(elem_id="fit-table", **PLAIN))
            self.room = self.shows(gr.HTML(elem_id="room", **PLAIN))
            with gr.Row(elem_classes="ms-actions"):
                self.search = self.shows(button("Find what fits", "make-fit", interactive=False))
                gr.HTML(f'<p class="ms-note">{WORDS}</p>', min_width=220, **PLAIN)
            self.options = self.shows(gr.HTML(elem_id="fit-options", **PLAIN))
            with gr.Row(elem_classes="ms-actions"):
                choice = Choice(
                    [], label="Option", visible=False, interactive=True, elem_id="fit-choice", scale=2, min_width=240
                )
                self.choice = self.shows(choice)
                self.take = self.shows(button("Take this option", "fit-take", visible=False))

    def events(self, wire: Wire) -> None:
        """Look for options, and take one."""
        wire.on(self.search.click, lambda tab: tab.session.fit.start())
        wire.on(
            self.take.click, lambda tab, chosen: tab.session.fit.take_option(fit_words.number_of(chosen)), self.choice
        )

    def values(self, tab: Tab, view: View) -> Iterator[Shown]:
        """The memory, and the options."""
        yield Shown(self.table, fit_words.fit_table(view))
        yield Shown(self.room, fit_words.room_text(view))
        yield Shown(self.search, gr.update(interactive=can_start(view)))
        yield Shown(self.options, fit_words.options_text(view))
        found = fit_words.choices(view)
        yield Shown(self.choice, show_choices(found))
        yield Shown(self.take, gr.update(visible=bool(found)))
