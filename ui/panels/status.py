"""What the model is, what is going on, and the button that stops it."""

from __future__ import annotations

from collections.abc import Iterator

import gradio as gr

from surgery.session.view import View
from ui.panel import Panel, Shown, Update, Wire, button
from ui.presenters import status
from ui.scripts import SPEAK
from ui.tabs import Tab
from ui.theme import PLAIN


class Status(Panel):
    """The line that stays in sight, and what a screen reader is told of it."""

    def fields(self) -> None:
        """The sentence, Cancel, and the sentence that is spoken."""
        with gr.Row(elem_id="status-bar"):
            self.sentence = self.shows(gr.HTML(elem_id="status", **PLAIN))
            self.cancel = self.shows(button("Cancel", "cancel", interactive=False))
        spoken = gr.HTML(
            "", html_template='<p role="status" class="ms-hidden"></p>', js_on_load=SPEAK, elem_id="spoken", **PLAIN
        )
        self.spoken = self.shows(spoken)

    def events(self, wire: Wire) -> None:
        """Stop the running job."""
        wire.on(self.cancel.click, lambda tab: tab.session.cancel())

    def values(self, tab: Tab, view: View) -> Iterator[Shown]:
        """The two sentences, and whether anything can be stopped."""
        yield Shown(self.sentence, status.status(view))
        yield Shown(self.spoken, status.spoken(view))
        yield Shown(self.cancel, gr.update(interactive=view.can_cancel))

    def ended(self, sentence: str) -> Update:
        """The sentence as an alert."""
        return {self.sentence: status.ended(sentence)}
