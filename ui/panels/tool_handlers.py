"""Thin handlers of the tools below the map: suggest, compensate, measure every removal, build."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, get_args

import gradio as gr
from gradio.utils import get_upload_folder

from surgery.recipe.edits import How
from surgery.session.view import View
from ui import inputs
from ui.handlers import Update, as_it_is
from ui.panels.quantise import QuantiseHandlers
from ui.presenters import suggest as tool_words
from ui.presenters import suggest_form as forms
from ui.tabs import Tab
from ui.widgets.choice import Choice

HOWS: tuple[How, ...] = get_args(How)


class ToolHandlers(QuantiseHandlers):
    """The page's handlers, those of the tools included."""

    def choose_method(self, method: str, unit: str) -> Update:
        """The fields that go with a method and a budget; asks nothing of a session."""
        form = forms.form(method, unit)
        update: Update = {
            self.parts["suggest_unit"]: Choice(choices=form.units, value=form.unit),
            self.parts["suggest_note"]: tool_words.note(form.note),
        }
        for name in forms.AMOUNTS:
            update[self.parts[f"amount_{name}"]] = gr.Textbox(visible=name == form.unit)
        for name in forms.RULES:
            update[self.parts[f"rule_{name}"]] = gr.update(visible=name in form.rules)
        return update

    def suggest(self, identity: str, method: str, unit: str, *rest: Any) -> Update:
        """Let a method choose. `rest` are the amounts, the rules, and the charts' choices."""
        names = [*forms.AMOUNTS, *forms.RULES]
        values, picks = dict(zip(names, rest, strict=False)), rest[len(names) :]

        def act(tab: Tab) -> None:
            tab.session.suggest(method, *inputs.suggestion(method, unit, values, values))

        return self._answer(identity, act, picks)

    def suggest_take(self, identity: str, *picks: str) -> Update:
        """Make the suggestion the current recipe."""
        return self._answer(identity, lambda tab: tab.session.take_suggestion(), picks)

    def suggest_discard(self, identity: str, *picks: str) -> Update:
        """Forget the suggestion."""
        return self._answer(identity, lambda tab: tab.session.discard_suggestion(), picks)

    def compensate(self, how: How) -> Callable[..., Update]:
        """The handler of one compensation's switch."""

        def switch(identity: str, on: bool, *picks: str) -> Update:
            def act(tab: Tab) -> None:
                tab.sent.pop(how, None)  # what is in force is sent back: a switch may be refused
                tab.session.compensate({how}, on)

            return self._answer(identity, act, picks)

        return switch

    def compute(self, identity: str, *picks: str) -> Update:
        """Compute a compensation that was cancelled or failed, and measure."""
        return self._answer(identity, lambda tab: tab.session.measure(), picks)

    def scan(self, identity: str, kinds: Sequence[Any], *picks: str) -> Update:
        """Measure and predict every removal."""
        return self._answer(identity, lambda tab: tab.session.scan(tuple(kinds)), picks)

    def build(self, identity: str, *picks: str) -> Update:
        """Make the file to take away, where Gradio serves it from without a copy."""
        return self._answer(identity, lambda tab: tab.session.build(Path(get_upload_folder())), picks)

    def _values(self, tab: Tab, view: View) -> Iterator[tuple[str, Any, Callable[[Any], Any]]]:
        yield from super()._values(tab, view)
        on = {edit.how for edit in tool_words.compensations(view)}
        for how in HOWS:
            yield how, (how in on, view.model is not None), _switch
        yield "suggestion", tool_words.suggestion_text(view), as_it_is
        for name in ("suggest_take", "suggest_discard"):
            yield name, view.suggestion is not None, lambda shown: gr.Button(visible=shown)
        yield "compensation", tool_words.compensation_text(view), as_it_is
        pending = view.uncompensated and view.unfinished == "compensation"
        yield "compute", pending, lambda shown: gr.Button(visible=shown)
        yield "scan_note", tool_words.scan_text(view.scanned), as_it_is
        yield "build_note", tool_words.build_text(view), as_it_is
        path = None if view.packed is None else str(view.packed.path)
        yield "download", (path, tool_words.download_label(view)), show_download


def _switch(state: tuple[bool, bool]) -> Any:
    return gr.Checkbox(value=state[0], interactive=state[1])


def show_download(file: tuple[str | None, str]) -> Any:
    """A download button with a file, or none."""
    return gr.DownloadButton(value=file[0], label=file[1], visible=file[0] is not None)
