"""Memory on the device, itemised, and what would fit."""

from __future__ import annotations

import gradio as gr

from ui.panel import Panel, Wire, show_choices
from ui.presenters import fit as fit_words
from ui.presenters.status import can_start
from ui.presenters.text import Html
from ui.theme import PLAIN
from ui.widgets.choice import Choice

WORDS = Html('<p class="ms-note">Tries weight types, narrower MLPs and fewer blocks, and measures what fits.</p>')


class Fit(Panel):
    """The table of memory, how much must go, the button that looks for options, and what it found."""

    def fields(self) -> None:
        """Everything folded away."""
        with gr.Accordion("Memory on the device, itemised, and what fits", open=False, elem_id="fit-details"):
            self.html("fit-table", fit_words.fit_table)
            self.html("room", fit_words.room_text)
            with gr.Row(elem_classes="ms-actions"):
                self.search = self.button("Find what fits", "make-fit", able=can_start)
                gr.HTML(WORDS, min_width=220, **PLAIN)
            self.html("fit-options", fit_words.options_text)
            with gr.Row(elem_classes="ms-actions"):
                choice = Choice(
                    [], label="Option", visible=False, interactive=True, elem_id="fit-choice", scale=2, min_width=240
                )
                self.choice = self.shows(choice, lambda view: show_choices(fit_words.choices(view)))
                self.take = self.button(
                    "Take this option", "fit-take", there=lambda view: bool(fit_words.choices(view))
                )

    def events(self, wire: Wire) -> None:
        """Look for options, and take one."""
        wire.on(self.search.click, lambda tab: tab.session.fit.start())
        wire.on(
            self.take.click, lambda tab, chosen: tab.session.fit.take_option(fit_words.number_of(chosen)), self.choice
        )
