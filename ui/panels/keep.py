"""A link that holds the recipe, ready recipes, a report, and the lines that reproduce what is on screen."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime

import gradio as gr

from surgery.recipe import link as recipe_link
from surgery.session.view import View
from ui.panel import QUIET, Panel, Shown, Wire, button, show_choices
from ui.presenters import keep as keep_words
from ui.presenters.report import report
from ui.scripts import SHOW_LINK, download_js
from ui.tabs import Tab
from ui.theme import PLAIN
from ui.widgets.choice import Choice


class Keep(Panel):
    """What outlives the page."""

    title = "Keep"

    def fields(self) -> None:
        """The link, the report, the ready recipes, the lines."""
        with gr.Row(elem_classes="ms-actions"):
            self.make_link = self.shows(button("Copy a link to this recipe", "make-link", interactive=False))
            self.link = gr.Textbox(
                "", label="Link", show_label=False, container=False, max_lines=1, interactive=False,
                placeholder="The link appears here, too.", elem_id="shown-link", scale=1, min_width=220,
            )  # fmt: skip
        with gr.Row(elem_classes="ms-actions"):
            self.report = self.shows(button("Download a report", "report", interactive=False))
            gr.HTML(
                '<p class="ms-note">One HTML file: recipe, numbers, everything tried, lines to reproduce.</p>',
                min_width=220,
                **PLAIN,
            )
        self.report_text = gr.Textbox("", visible="hidden", elem_id="report-text")
        self.link_code = gr.Textbox("", visible="hidden", elem_id="link-code")
        with gr.Row(elem_classes="ms-actions"):
            ready = Choice(
                [],
                label="Ready recipe",
                visible=False,
                interactive=True,
                elem_id="ready-choice",
                scale=2,
                min_width=260,
            )
            self.ready = self.shows(ready)
            self.take = self.shows(button("Load this recipe", "ready-take", visible=False))
        self.lines = self.shows(gr.HTML(elem_id="lines", **PLAIN))

    def events(self, wire: Wire) -> None:
        """Make the link and the report; load a ready recipe."""
        wire.fetch(
            self.make_link.click, lambda tab: recipe_link.encode(tab.session.edit.current_recipe()), self.link_code
        ).success(None, [self.link_code], [self.link], js=SHOW_LINK, **QUIET)
        wire.fetch(self.report.click, lambda tab: report(tab.session.view(), datetime.now()), self.report_text).success(
            None, [self.report_text], None, js=download_js("model-surgery-report.html", "text/html"), **QUIET
        )
        wire.on(self.take.click, lambda tab, name: tab.session.edit.take_ready(name), self.ready)

    def values(self, tab: Tab, view: View) -> Iterator[Shown]:
        """The ready recipes of the model, and the lines."""
        for pressed in (self.make_link, self.report):
            yield Shown(pressed, gr.update(interactive=view.history is not None))
        ready = self.bench.ready_recipes.of(view.model.loaded.fingerprint) if view.model else {}
        found = keep_words.ready_choices(ready)
        yield Shown(self.ready, show_choices(found))
        yield Shown(self.take, gr.update(visible=bool(found)))
        yield Shown(self.lines, keep_words.lines_text(view))
