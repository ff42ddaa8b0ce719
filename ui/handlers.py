"""Thin handlers: find the tab's session, call one of its methods, send what has changed; errors are one sentence."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import gradio as gr

from surgery.errors import InputError
from surgery.fit.devices import read_device
from surgery.recipe import link as recipe_link
from surgery.recipe.recipe import Recipe
from surgery.session.view import View
from ui import inputs
from ui.errors import refusal
from ui.presenters import charts
from ui.presenters import recipe as recipe_words
from ui.presenters import status as presenters
from ui.presenters.chart_table import table
from ui.presenters.map_widget import block_map_model
from ui.presenters.tiles import tiles
from ui.tabs import Sessions, Tab
from ui.widgets.block_map import BlockMap
from ui.widgets.ratio import Ratio

BUSY_TICK, HEAVY_TICK, IDLE_TICK = 0.25, 0.75, 5.0
"""Seconds between two looks at the session: while a number is awaited, during a heavy job (which needs the processor
that the browser would draw with), and otherwise."""
LONGEST_WAIT = 0.75
"""Seconds that a look waits for a number that is being measured."""
ENDED = "This page's session has ended: reload the page, its recipe is kept in this browser."
log = logging.getLogger(__name__)

Update = dict[Any, Any]
"""What a handler sends: new values by component."""


class Handlers:
    """The page's handlers. `parts` are the components by the names used here; the page fills it in.

    Args:
        sessions: the open tabs.
    """

    def __init__(self, sessions: Sessions) -> None:
        self.sessions = sessions
        self.parts: dict[str, Any] = {}

    def load(self, kept: Any, *picks: str) -> Update:
        """A tab opens: a new session, what the browser remembered, and the running job if there is one."""
        identity = self.sessions.new()
        tab = self._tab(identity)
        source, revision, recipe, job = inputs.remembered(kept)
        link = inputs.linked(kept)

        def begin() -> None:
            tab.session.attach(job)
            wanted, trouble = recipe, None
            if link is not None:
                try:
                    wanted = _linked(link, source)
                except InputError as error:
                    trouble = error
            tab.session.remember_locked(inputs.locked(kept))
            known = self.sessions.bench.opened(source, revision)
            if known is not None:
                tab.session.adopt(known, wanted)
            elif not tab.session.view().working:
                tab.session.open(source, revision, wanted)
            if trouble is not None:
                raise trouble

        update = self._answer(identity, lambda _: begin(), picks)
        return {self.parts["tab"]: identity, self.parts["source"]: source, **update}

    def tick(
        self, identity: str, answer: str, decisions: dict[str, list[int]], ratio: float | None, *picks: str
    ) -> Update:
        """Look at running jobs, and put right what the browser shows by mistake.

        Gradio does not keep answers in order: a small one may overtake a large one, which then shows old values.

        Args:
            identity: the tab's.
            answer: number of the last answer that the browser shows.
            decisions: what its map shows.
            ratio: what its slider shows.
            picks: the charts' choices.
        """
        tab = self.sessions.get(identity)
        if tab is None:
            return {self.parts["status"]: presenters.ended(ENDED), self.parts["timer"]: gr.Timer(active=False)}
        with tab.lock:
            tab.compare(answer, decisions, ratio)
        tab.session.wait_for_number(LONGEST_WAIT)  # rather than be asked again and again
        return self._answer_to(tab, lambda tab: None, picks)  # even if it was closed meanwhile: nobody is to be told

    def switch(self, identity: str, value: dict[str, list[int]], *picks: str) -> Update:
        """A click on the map."""

        def act(tab: Tab) -> None:
            tab.touched()
            changed = presenters.changed_block(presenters.decisions(tab.session.view()), value)
            tab.selected = tab.selected if changed is None else changed
            tab.sent["map_value"] = value  # the browser shows it already
            tab.session.switch(value["blocks"], value["attention"], value["mlp"])

        return self._answer(identity, act, picks)

    def narrow(self, identity: str, ratio: float | None, method: str, divisor: int, *picks: str) -> Update:
        """The expansion-ratio slider; None while its box is empty."""

        def act(tab: Tab) -> None:
            if ratio is None:
                return
            tab.touched()
            tab.narrowing = (method, divisor)
            most = tab.sent.get("slider", (0, 0))[1]
            tab.sent["slider"] = (ratio, most)
            tab.session.narrow(method, inputs.ratio(ratio, most), int(divisor), tab.narrowed_blocks)

        return self._answer(identity, act, picks)

    def narrow_otherwise(self, identity: str, method: str, divisor: int, *picks: str) -> Update:
        """Another method or divisor: applied at once if the MLPs are narrowed."""

        def act(tab: Tab) -> None:
            if tab.narrowing == (method, divisor):  # Gradio also reports a list that merely loses the focus
                return
            tab.narrowing = (method, divisor)
            found = presenters.ratios(tab.session.view(), tab.narrowed_blocks)
            if found is not None and found[0] < found[1]:
                tab.session.narrow(method, found[0] / 100, int(divisor), tab.narrowed_blocks)

        return self._answer(identity, act, picks)

    def narrow_where(self, identity: str, blocks: str, *picks: str) -> Update:
        """Other blocks for the slider, which shows their ratio from now on."""

        def act(tab: Tab) -> None:
            tab.narrowed_blocks = inputs.blocks(blocks, tab.session.view())

        return self._answer(identity, act, picks)

    def undo(self, identity: str, *picks: str) -> Update:
        """One step back."""
        return self._answer(identity, lambda tab: tab.session.undo(), picks)

    def redo(self, identity: str, *picks: str) -> Update:
        """One step forward."""
        return self._answer(identity, lambda tab: tab.session.redo(), picks)

    def reset(self, identity: str, *picks: str) -> Update:
        """Back to the dense model."""
        return self._answer(identity, lambda tab: tab.session.reset(), picks)

    def analyse(self, identity: str, *picks: str) -> Update:
        """Start the analysis."""
        return self._answer(identity, lambda tab: tab.session.analyse(), picks)

    def cancel(self, identity: str, *picks: str) -> Update:
        """Stop the running job."""
        return self._answer(identity, lambda tab: tab.session.cancel(), picks)

    def open(self, identity: str, source: str, revision: str, *picks: str) -> Update:
        """Open a model."""
        return self._answer(identity, lambda tab: tab.session.open(source, revision.strip() or None), picks)

    def export(self, identity: str) -> str:
        """The recipe's JSON, with the last measurement of exactly this recipe."""
        return self._tab(identity).session.exported()

    def take(self, identity: str, path: str | None, *picks: str) -> Update:
        """Import an uploaded recipe."""

        def act(tab: Tab) -> None:
            if path:
                tab.session.take(Recipe.load(Path(path)))

        return self._answer(identity, act, picks)

    def use_text(
        self,
        identity: str,
        source: str,
        pasted: str,
        upload: str | None,
        window: float | None,
        windows: float | None,
        *picks: str,
    ) -> Update:
        """Measure on another text."""
        return self._answer(
            identity,
            lambda tab: tab.session.set_text(inputs.text_choice(source, pasted, upload, window, windows)),
            picks,
        )

    def aim(self, identity: str, device: str, context: float | None, kind: str, kv_type: str, *picks: str) -> Update:
        """Another device, context, weight type or KV-cache type."""
        target = partial(inputs.target, device, context, kind, kv_type)
        return self._answer(identity, lambda tab: tab.session.set_target(target()), picks)

    def own_device(
        self, identity: str, path: str | None, context: float | None, kind: str, kv_type: str, *picks: str
    ) -> Update:
        """A person's own device file."""
        chosen: Update = {}

        def act(tab: Tab) -> None:
            if path:
                device = read_device(Path(path))
                tab.session.set_target(inputs.target(path, context, kind, kv_type))
                names = [(name, key) for key, name in self.sessions.bench.devices.names().items()]
                chosen[self.parts["device"]] = gr.Dropdown(choices=[*names, (device.name, path)], value=path)

        return self._answer(identity, act, picks) | chosen

    def draw(self, identity: str, name: str, *picks: str) -> Update:
        """Show one chart: its tab is opened, or its choice has changed."""

        def act(tab: Tab) -> None:
            tab.chart = name

        if not identity:  # Gradio selects the first tab of a page that has not been loaded yet
            return {self.parts["chart_note"]: gr.skip()}
        return self._answer(identity, act, picks)

    def _tab(self, identity: str) -> Tab:
        tab = self.sessions.get(identity)
        if tab is None:
            raise refusal(ENDED)
        return tab

    def _answer(self, identity: str, action: Callable[[Tab], Any], picks: tuple[str, ...]) -> Update:
        """Do something with a tab's session; then send what the browser does not show yet."""
        return self._answer_to(self._tab(identity), action, picks)

    def _answer_to(self, tab: Tab, action: Callable[[Tab], Any], picks: tuple[str, ...]) -> Update:
        with tab.lock:
            try:
                action(tab)
            except InputError as error:
                tab.session.fail(str(error))
            except Exception as error:
                log.exception("A handler failed")
                tab.session.fail(f"Something unforeseen went wrong ({type(error).__name__}); the recipe is unchanged.")
            return self._changes(tab, picks)

    def _changes(self, tab: Tab, picks: tuple[str, ...]) -> Update:
        view = tab.session.view()
        update: Update = {}
        for name, value, make in self._values(tab, view):
            if name not in tab.sent or tab.sent[name] != value:
                tab.sent[name] = value
                tab.unconfirmed.add(name)
                update[self.parts[name]] = make(value)
        update |= self._map(tab, view)
        update |= self._chart(tab, view, picks)
        if not update:
            return {self.parts["status"]: gr.skip()}
        return update | {self.parts["answer"]: tab.numbered()}

    def _values(self, tab: Tab, view: View) -> Iterator[tuple[str, Any, Callable[[Any], Any]]]:
        """Parts of the page, what they should show now, and how that is sent."""
        waited = HEAVY_TICK if view.working and not view.measuring else BUSY_TICK
        seconds = waited if tab.session.busy or tab.overlapping else IDLE_TICK
        yield "timer", seconds, lambda seconds: gr.Timer(seconds, active=True)
        yield "status", presenters.status(view), as_it_is
        yield "spoken", presenters.spoken(view), as_it_is
        yield "tiles", tiles(view), as_it_is
        yield "removed", recipe_words.removed_text(view), as_it_is
        yield "fit_table", presenters.fit_table(view), as_it_is
        for name, able in presenters.buttons(view).items():
            yield name, able, lambda able: gr.update(interactive=able)
        if view.history is not None:
            yield "kept", inputs.to_keep(view), as_it_is
            yield "slider", presenters.ratios(view, tab.narrowed_blocks), _slider

    def _map(self, tab: Tab, view: View) -> Update:
        """The block map."""
        return self._widget(tab, "map", BlockMap, presenters.decisions(view), block_map_model(view, tab.map_colour))

    def _widget(self, tab: Tab, name: str, component: Any, value: Any, model: Any) -> Update:
        """A widget's decisions only if they are not those that the browser has: a click may be under way there."""
        now = {f"{name}_value": value, f"{name}_model": model}
        changed = {key: shown for key, shown in now.items() if tab.sent.get(key) != shown}
        tab.sent |= changed
        tab.unconfirmed |= changed.keys()
        if not changed:
            return {}
        return {
            self.parts[name]: component(value, model=model) if f"{name}_value" in changed else component(model=model)
        }

    def _chart(self, tab: Tab, view: View, picks: tuple[str, ...]) -> Update:
        """The open chart if it is out of date; the others are drawn when their tab is opened."""
        update: Update = {}
        wanted = charts.key(tab.chart, view, *picks)
        if tab.drawn.get(tab.chart) != wanted:
            tab.drawn[tab.chart] = wanted
            tab.unconfirmed.add(f"chart_{tab.chart}")
            figure = charts.figure(tab.chart, view, *picks)
            tab.sent[f"table_{tab.chart}"] = "" if figure is None else table(figure, charts.NAMES[tab.chart])
            update[self.parts[f"chart_{tab.chart}"]] = figure
        note = presenters.chart_note(view, tab.sent.get(f"table_{tab.chart}", ""), tab.chart)
        if tab.sent.get("chart_note") != note:
            tab.sent["chart_note"] = note
            tab.unconfirmed.add("chart_note")
            update[self.parts["chart_note"]] = note
        return update


def _linked(link: str, source: str) -> Recipe:
    """The recipe of a link, if it is of the model that this browser opens anyway: a link alone fetches nothing.

    Raises:
        InputError: damaged, or of another model.
    """
    recipe = recipe_link.decode(link)
    if recipe.model.id != source:
        raise InputError(
            f"The link's recipe is of the model {recipe.model.id!r}: open that one under “Model, text and device”, "
            "then follow the link again."
        )
    return recipe


def as_it_is(value: Any) -> Any:
    """A part that shows the value itself."""
    return value


def _slider(found: tuple[int, int]) -> Any:
    return Ratio(value=found[0], maximum=found[1], interactive=True)
