"""Behind every event: find the tab, act on its session, send what has changed; errors are one sentence."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import chain
from typing import Any

import gradio as gr

from surgery.common.failure import sentence_of
from surgery.session.view import View
from ui import inputs
from ui.errors import refusal
from ui.panel import QUIET, Panel, Shown, Update, Wire
from ui.scripts import KEYS, RECALL, REMEMBER
from ui.tabs import Sessions, Tab

BUSY_TICK, HEAVY_TICK, IDLE_TICK = 0.25, 0.75, 5.0
"""Seconds between two looks at the session: while a number is awaited, during a heavy job (which needs the processor
that the browser would draw with), and otherwise."""
LONGEST_WAIT = 0.75
"""Seconds that a look waits for a number that is being measured."""
ENDED = "This page's session has ended: reload the page, its recipe is kept in this browser."


class Handlers:
    """Answers the events of all panels of a page."""

    def __init__(self, sessions: Sessions, panels: Sequence[Panel]) -> None:
        self.sessions = sessions
        self.panels = panels

    def fields(self) -> None:
        """Make the components that nobody sees: the tab's id, what the browser keeps, the timer of the looks, and the
        number of the last answer.
        """
        self.tab = gr.State("", time_to_live=None, delete_callback=self.sessions.free)
        self.kept = gr.BrowserState(None, storage_key="model-surgery", secret="model-surgery")
        self.timer = gr.Timer(IDLE_TICK, active=False)
        self.number = gr.Textbox("", visible="hidden", elem_id="answer")

    def connect(self, page: Any) -> None:
        """Connect the events of the page and of its panels, when all components are made."""
        shown = [self.kept, self.timer, self.number, *chain(*(panel.outputs for panel in self.panels))]
        self.moved = list(chain(*(panel.moved for panel in self.panels)))
        page.load(self.load, [self.kept], [self.tab, *shown], js=RECALL, **QUIET)
        page.load(None, js=KEYS, **QUIET)
        self.kept.change(None, self.kept, None, js=REMEMBER, **QUIET)
        self.timer.tick(self.tick, [self.tab, self.number, *self.moved], shown, **QUIET)
        wire = Wire(self.tab, shown, self.answer, self.ask)
        for panel in self.panels:
            panel.events(wire)

    def load(self, kept: Any) -> Update:
        """A tab opens: a new session, what the browser remembered, and the running job if there is one."""
        identity = self.sessions.new()

        def begin(tab: Tab) -> None:
            for panel in self.panels:
                panel.start(tab, kept)

        return {self.tab: identity, **self.answer(identity, begin)}

    def tick(self, identity: str, answer: str, *reported: Any) -> Update:
        """Look at running jobs, and put right what the browser shows by mistake.

        Gradio does not keep answers in order: a small one may overtake a large one, which then shows old values.
        `answer` is the number of the last one that the browser shows; `reported`, what it shows of what a hand moves.
        """
        tab = self.sessions.get(identity)
        if tab is None:
            update: Update = {self.timer: gr.Timer(active=False)}
            for panel in self.panels:
                update |= panel.ended(ENDED)
            return update
        with tab.lock:
            tab.compare(answer, dict(zip(self.moved, reported, strict=True)))
        tab.session.measure.wait_for_number(LONGEST_WAIT)  # rather than be asked again and again
        return self._answer(tab, lambda tab: None)  # even if it was closed meanwhile: nobody is to be told

    def answer(self, identity: str, action: Callable[[Tab], None]) -> Update:
        """Do something with a tab; then send what the browser does not show yet."""
        if not identity:  # Gradio selects the first tab of a page that has not been loaded yet
            return {self.number: gr.skip()}
        return self._answer(self._tab(identity), action)

    def ask(self, identity: str, read: Callable[[Tab], str]) -> str:
        """Read something from a tab."""
        return read(self._tab(identity))

    def _tab(self, identity: str) -> Tab:
        tab = self.sessions.get(identity)
        if tab is None:
            raise refusal(ENDED)
        return tab

    def _answer(self, tab: Tab, action: Callable[[Tab], None]) -> Update:
        with tab.lock:
            try:
                action(tab)
            except Exception as error:
                tab.session.state.fail(sentence_of(error))
            return self._changes(tab)

    def _changes(self, tab: Tab) -> Update:
        view = tab.session.view()
        update: Update = {}
        for shown in chain(self._values(tab, view), *(panel.values(tab, view) for panel in self.panels)):
            if tab.changed(shown.component, shown.value, shown.hand):
                update[shown.component] = shown.sent()
        update |= tab.once
        tab.once.clear()
        if not update:
            return {self.number: gr.skip()}
        return update | {self.number: tab.numbered()}

    def _values(self, tab: Tab, view: View) -> Iterator[Shown]:
        """What the components show that nobody sees."""
        waited = HEAVY_TICK if view.working and not view.measure.measuring else BUSY_TICK
        seconds = waited if tab.session.jobs.busy or tab.overlapping else IDLE_TICK
        yield Shown(self.timer, seconds, lambda: gr.Timer(seconds, active=True))
        if view.history is not None:
            yield Shown(self.kept, inputs.to_keep(view))
