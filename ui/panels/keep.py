"""Keep: a link that holds the recipe, ready recipes, and the lines that reproduce what is on screen."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import datetime
from typing import Any

import gradio as gr

from surgery.recipe import link as recipe_link
from surgery.session.view import View
from ui.handlers import Update, as_it_is
from ui.panels.fit import FitHandlers
from ui.presenters import keep as keep_words
from ui.presenters.report import report
from ui.tabs import Tab
from ui.theme import PLAIN, download_js
from ui.widgets.choice import Choice

# The fragment of an address is not sent to a server, so it may be long.
SHOW_LINK = """(code) => {
  if (!code) return '';
  const link = location.origin + location.pathname + '#recipe=' + code;
  history.replaceState(null, '', link);
  navigator.clipboard?.writeText(link).catch(() => {});
  return link;
}"""


def keep_fields(parts: dict[str, Any]) -> None:
    """The link, the ready recipes, the lines."""
    with gr.Row(elem_classes="ms-actions"):
        parts["make_link"] = gr.Button(
            "Copy a link to this recipe", elem_id="make-link", interactive=False, size="md", scale=0, min_width=0
        )
        parts["shown_link"] = gr.Textbox(
            "", label="Link", show_label=False, container=False, max_lines=1, interactive=False,
            placeholder="The link appears here, too.", elem_id="shown-link", scale=1, min_width=220,
        )  # fmt: skip
    with gr.Row(elem_classes="ms-actions"):
        parts["report"] = gr.Button(
            "Download a report", elem_id="report", interactive=False, size="md", scale=0, min_width=0
        )
        gr.HTML(
            '<p class="ms-note">One HTML file: recipe, numbers, everything tried, lines to reproduce.</p>',
            min_width=220,
            **PLAIN,
        )
    parts["report_text"] = gr.Textbox("", visible="hidden", elem_id="report-text")
    parts["link_code"] = gr.Textbox("", visible="hidden", elem_id="link-code")
    with gr.Row(elem_classes="ms-actions"):
        parts["ready_choice"] = Choice(
            [], label="Ready recipe", visible=False, interactive=True, elem_id="ready-choice", scale=2, min_width=260
        )
        parts["ready_take"] = gr.Button(
            "Load this recipe", visible=False, elem_id="ready-take", size="md", scale=0, min_width=0
        )
    parts["lines"] = gr.HTML(elem_id="lines", **PLAIN)


class KeepHandlers(FitHandlers):
    """The page's handlers, those of Keep included."""

    def link(self, identity: str) -> str:
        """The recipe in force as the end of an address."""
        return recipe_link.encode(self._tab(identity).session.current_recipe())

    def report(self, identity: str) -> str:
        """The session as one HTML file."""
        return report(self._tab(identity).session.view(), datetime.now())

    def ready(self, identity: str, name: str, *picks: str) -> Update:
        """Make a ready recipe the current one."""
        return self._answer(identity, lambda tab: tab.session.take_ready(name), picks)

    def _values(self, tab: Tab, view: View) -> Iterator[tuple[str, Any, Callable[[Any], Any]]]:
        yield from super()._values(tab, view)
        for name in ("make_link", "report"):
            yield name, view.history is not None, lambda able: gr.Button(interactive=able)
        ready = self.sessions.bench.ready_recipes.of(view.model.loaded.fingerprint) if view.model else {}
        found = keep_words.ready_choices(ready)
        yield "ready_choice", found, _choices
        yield "ready_take", bool(found), lambda shown: gr.Button(visible=shown)
        yield "lines", keep_words.lines_text(view), as_it_is


def _choices(found: list[tuple[str, str]]) -> Any:
    return Choice(choices=found, value=found[0][1] if found else None, visible=bool(found))


def connect_keep(
    handlers: KeepHandlers, inputs: Callable[..., list[Any]], shown: list[Any], quiet: dict[str, Any]
) -> None:
    """Which handler answers which event of the panel; the arguments are those of `connect_ship`."""
    parts = handlers.parts
    parts["make_link"].click(handlers.link, [parts["tab"]], [parts["link_code"]], **quiet).success(
        None, [parts["link_code"]], [parts["shown_link"]], js=SHOW_LINK, **quiet
    )
    parts["report"].click(handlers.report, [parts["tab"]], [parts["report_text"]], **quiet).success(
        None, [parts["report_text"]], None, js=download_js("model-surgery-report.html", "text/html"), **quiet
    )
    parts["ready_take"].click(handlers.ready, inputs("ready_choice"), shown, **quiet)
