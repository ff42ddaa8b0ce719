"""What the model is, what is going on, and the button that stops it."""

from __future__ import annotations

import gradio as gr

from ui.panel import Panel, Update, Wire
from ui.presenters import status
from ui.scripts import SPEAK
from ui.theme import PLAIN


class Status(Panel):
    """The line that stays in sight, and what a screen reader is told of it."""

    def fields(self) -> None:
        """The sentence, Cancel, and the sentence that is spoken."""
        with gr.Row(elem_id="status-bar"):
            self.sentence = self.html("status", status.status)
            self.cancel = self.button("Cancel", "cancel", able=lambda view: view.can_cancel)
        spoken = gr.HTML(
            "", html_template='<p role="status" class="ms-hidden"></p>', js_on_load=SPEAK, elem_id="spoken", **PLAIN
        )
        self.shows(spoken, status.spoken)

    def events(self, wire: Wire) -> None:
        """Stop the running job."""
        wire.on(self.cancel.click, lambda tab: tab.session.cancel())

    def ended(self, sentence: str) -> Update:
        """The sentence as an alert."""
        return {self.sentence: status.ended(sentence)}
