"""A link that holds the recipe, ready recipes, a report, and the lines that reproduce what is on screen."""

from __future__ import annotations

from datetime import datetime

import gradio as gr

from surgery.recipe import link as recipe_link
from surgery.session.view import View
from ui.panel import QUIET, Panel, Wire, show_choices
from ui.presenters import keep as keep_words
from ui.presenters.report import report
from ui.presenters.text import Html
from ui.scripts import SHOW_LINK, download_js
from ui.theme import PLAIN
from ui.widgets.choice import Choice

WORDS = Html('<p class="ms-note">One HTML file: recipe, numbers, everything tried, lines to reproduce.</p>')


class Keep(Panel):
    """What outlives the page."""

    title = "Keep"

    def fields(self) -> None:
        """The link, the report, the ready recipes, the lines."""
        with gr.Row(elem_classes="ms-actions"):
            self.make_link = self.button("Copy a link to this recipe", "make-link", able=_is_open)
            self.link = gr.Textbox(
                "", label="Link", show_label=False, container=False, max_lines=1, interactive=False,
                placeholder="The link appears here, too.", elem_id="shown-link", scale=1, min_width=220,
            )  # fmt: skip
        with gr.Row(elem_classes="ms-actions"):
            self.report = self.button("Download a report", "report", able=_is_open)
            gr.HTML(WORDS, min_width=220, **PLAIN)
        self.report_text = gr.Textbox("", visible="hidden", elem_id="report-text")
        self.link_code = gr.Textbox("", visible="hidden", elem_id="link-code")
        with gr.Row(elem_classes="ms-actions"):
            ready = Choice(
                [], label="Ready recipe", visible=False, interactive=True, elem_id="ready-choice", scale=2,
                min_width=260,
            )  # fmt: skip
            self.ready = self.shows(ready, lambda view: show_choices(self._choices(view)))
            self.take = self.button("Load this recipe", "ready-take", there=lambda view: bool(self._choices(view)))
        self.html("lines", keep_words.lines_text)

    def _choices(self, view: View) -> list[tuple[str, str]]:
        """The ready recipes of the model."""
        known = self.bench.ready_recipes
        return keep_words.ready_choices(known.of(view.model.loaded.fingerprint)) if view.model else []

    def events(self, wire: Wire) -> None:
        """Make the link and the report; load a ready recipe."""
        wire.fetch(
            self.make_link.click, lambda tab: recipe_link.encode(tab.session.edit.current_recipe()), self.link_code
        ).success(None, [self.link_code], [self.link], js=SHOW_LINK, **QUIET)
        wire.fetch(self.report.click, lambda tab: report(tab.session.view(), datetime.now()), self.report_text).success(
            None, [self.report_text], None, js=download_js("model-surgery-report.html", "text/html"), **QUIET
        )
        wire.on(self.take.click, lambda tab, name: tab.session.edit.take_ready(name), self.ready)


def _is_open(view: View) -> bool:
    return view.history is not None
