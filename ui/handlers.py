"""Thin handlers: find the tab's session, call one of its methods, show what there is. Errors show as one sentence."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import gradio as gr

from surgery.devices import read_device
from surgery.errors import InputError
from surgery.recipe import Recipe
from surgery.session import Target, View
from surgery.workbench import TextChoice
from ui import charts, presenters
from ui.sessions import Sessions, Tab
from ui.widgets.block_map import BlockMap

LONGEST_PASTE = 2**20
"""Characters of pasted text."""
MOST_TOKENS = 2**17
"""Tokens that a measurement from the page may take."""


class Handlers:
    """The page's handlers.

    Args:
        sessions: the open tabs.
    """

    def __init__(self, sessions: Sessions) -> None:
        self.sessions = sessions
        self.plots: list[str] = []

    def load(self, kept: Any, *picks: str) -> list[Any]:
        """A tab opens: a new session, what the browser remembered, and the running job if there is one."""
        identity = self.sessions.new()
        tab = self._tab(identity)
        source, revision, recipe, job = _remembered(kept)
        running = self.sessions.bench.jobs.get(job)

        def begin() -> None:
            if running is not None and not running.over and self.sessions.bench.opened(source, revision):
                # The model is open already, so the session adopts it at once and follows the running job.
                tab.session.adopt(self.sessions.bench.open(source, revision), recipe)
                tab.session.attach(job)
            else:
                tab.session.open(source, revision, recipe)

        self._do(tab, begin)
        return [identity, source, *self._all(tab, picks)]

    def tick(self, identity: str, *picks: str) -> list[Any]:
        """Look at running jobs; nothing is sent when nothing has changed."""
        tab = self._tab(identity)
        view = tab.session.view()
        if view.version == tab.shown and tab.session.busy:
            skipped = [gr.skip()] * (15 + len(self.plots))
            skipped[0] = presenters.status(view)
            return skipped
        return self._all(tab, picks)

    def switch(self, identity: str, value: dict[str, list[int]], *picks: str) -> list[Any]:
        """A click on the map."""
        tab = self._tab(identity)
        self._do(tab, lambda: tab.session.switch(value["blocks"], value["attention"], value["mlp"]))
        return [*self._always(tab), *self._figures(tab, picks)]

    def narrow(self, identity: str, ratio: float, method: str, divisor: int, *picks: str) -> list[Any]:
        """The expansion-ratio slider, its method or its divisor."""
        tab = self._tab(identity)
        self._do(tab, lambda: tab.session.narrow(method, float(ratio or 0) / 100, int(divisor)))
        view = tab.session.view()
        return [*self._always(tab), _map(view), *self._figures(tab, picks)]

    def undo(self, identity: str, *picks: str) -> list[Any]:
        """One step back."""
        return self._answer(identity, lambda tab: tab.session.undo(), picks)

    def redo(self, identity: str, *picks: str) -> list[Any]:
        """One step forward."""
        return self._answer(identity, lambda tab: tab.session.redo(), picks)

    def reset(self, identity: str, *picks: str) -> list[Any]:
        """Back to the dense model."""
        return self._answer(identity, lambda tab: tab.session.reset(), picks)

    def analyse(self, identity: str, *picks: str) -> list[Any]:
        """Start the analysis."""
        return self._answer(identity, lambda tab: tab.session.analyse(), picks)

    def cancel(self, identity: str, *picks: str) -> list[Any]:
        """Stop the running job."""
        return self._answer(identity, lambda tab: tab.session.cancel(), picks)

    def open(self, identity: str, source: str, revision: str, *picks: str) -> list[Any]:
        """Open a model."""
        return self._answer(identity, lambda tab: tab.session.open(source.strip(), revision.strip() or None), picks)

    def export(self, identity: str) -> str:
        """The recipe's JSON, with the last measurement of exactly this recipe."""
        return self._tab(identity).session.exported()

    def take(self, identity: str, path: str | None, *picks: str) -> list[Any]:
        """Import an uploaded recipe."""
        return self._answer(identity, lambda tab: path and tab.session.take(Recipe.load(Path(path))), picks)

    def use_text(
        self,
        identity: str,
        source: str,
        pasted: str,
        upload: str | None,
        window: float | None,
        windows: float | None,
        *picks: str,
    ) -> list[Any]:
        """Measure on another text."""
        return self._answer(
            identity,
            lambda tab: tab.session.set_text(_text_choice(source, pasted, upload, window, windows)),
            picks,
        )

    def aim(self, identity: str, device: str, context: float | None, kind: str, *picks: str) -> list[Any]:
        """Another device, context or weight type."""
        return self._answer(identity, lambda tab: tab.session.set_target(_target(device, context, kind)), picks)

    def own_device(self, identity: str, path: str | None, context: float | None, kind: str, *picks: str) -> list[Any]:
        """A person's own device file."""
        chosen: list[Any] = [gr.skip()]

        def use(tab: Tab) -> None:
            if path:
                device = read_device(Path(path))
                tab.session.set_target(_target(path, context, kind))
                names = [(name, key) for key, name in self.sessions.bench.devices.names().items()]
                chosen[0] = gr.Dropdown(choices=[*names, (device.name, path)], value=path)

        answer = self._answer(identity, use, picks)
        return [*chosen, *answer]

    def draw(self, identity: str, name: str, *picks: str) -> Any:
        """Draw one chart, when its tab is opened or its choice changes."""
        tab = self._tab(identity)
        tab.chart = name
        view = tab.session.view()
        tab.drawn = _drawing(view, name, picks)
        return charts.figure(name, view, *picks)

    def _tab(self, identity: str) -> Tab:
        tab = self.sessions.get(identity)
        if tab is None:
            raise gr.Error("This page's session has ended: reload the page, your recipe is kept in the browser.")
        return tab

    def _do(self, tab: Tab, action: Callable[[], Any]) -> None:
        try:
            action()
        except InputError as error:
            tab.session.fail(str(error))

    def _answer(self, identity: str, action: Callable[[Tab], Any], picks: tuple[str, ...]) -> list[Any]:
        tab = self._tab(identity)
        self._do(tab, lambda: action(tab))
        return self._all(tab, picks)

    def _all(self, tab: Tab, picks: tuple[str, ...]) -> list[Any]:
        view = tab.session.view()
        return [*self._always(tab), _map(view), _slider(view), *self._figures(tab, picks)]

    def _always(self, tab: Tab) -> list[Any]:
        """Everything but the inputs that a person may be moving right now."""
        view = tab.session.view()
        tab.shown = view.version
        idle = view.model is not None and (view.job is None or view.job.over)
        return [
            presenters.status(view),
            presenters.tiles(view),
            presenters.removed_text(view),
            presenters.fit_table(view),
            gr.Button(interactive=bool(view.history and view.history.can_undo)),
            gr.Button(interactive=bool(view.history and view.history.can_redo)),
            gr.Button(interactive=bool(view.history and view.history.current.edits)),
            gr.Button(interactive=view.model is not None),
            gr.UploadButton(interactive=view.model is not None),
            gr.Button(interactive=idle),
            gr.Button(interactive=bool(view.job and not view.job.over)),
            _to_keep(view),
            gr.Timer(active=tab.session.busy),
        ]

    def _figures(self, tab: Tab, picks: tuple[str, ...]) -> list[Any]:
        """The open chart if it is out of date; the others are drawn when their tab is opened."""
        view = tab.session.view()
        wanted = _drawing(view, tab.chart, picks)
        if wanted == tab.drawn:
            return [gr.skip()] * len(self.plots)
        tab.drawn = wanted
        return [charts.figure(name, view, *picks) if name == tab.chart else gr.skip() for name in self.plots]


def _drawing(view: View, name: str, picks: tuple[str, ...]) -> tuple[object, ...]:
    """What a drawn chart depends on."""
    analysed = view.analysed.fingerprint if view.analysed else None
    removed = tuple(presenters.decisions(view)["blocks"]) if name == "blocks" else ()
    return name, analysed, removed, view.model.loaded.fingerprint if view.model else None, *picks


def _map(view: View) -> Any:
    return BlockMap(value=presenters.decisions(view), model=presenters.block_map_model(view))


def _slider(view: View) -> Any:
    ratios = presenters.ratios(view)
    if ratios is None:
        return gr.skip()
    now, most = ratios
    return gr.Slider(value=now, maximum=most, interactive=True)


def _remembered(kept: Any) -> tuple[str, str | None, Recipe | None, str | None]:
    """What the browser kept, as far as it is valid; a browser's storage is not trusted."""
    if not isinstance(kept, dict):
        return "default", None, None, None
    source, revision, job = kept.get("source"), kept.get("revision"), kept.get("job")
    try:
        recipe = Recipe.read(kept["recipe"]) if kept.get("recipe") else None
    except InputError:
        recipe = None
    return (
        source if isinstance(source, str) and 0 < len(source) < 500 else "default",
        revision if isinstance(revision, str) else None,
        recipe,
        job if isinstance(job, str) else None,
    )


def _to_keep(view: View) -> Any:
    if view.model is None or view.history is None:
        return gr.skip()
    return {
        "source": view.model.loaded.id,
        "revision": view.model.loaded.revision,
        "recipe": view.history.current.document(),
        "job": view.job.id if view.job and not view.job.over else None,
    }


def _text_choice(
    source: str, pasted: str, upload: str | None, window: float | None, windows: float | None
) -> TextChoice:
    """The text that the page's fields name; a path is taken from an upload only.

    Raises:
        InputError: nothing was given, or the numbers are out of range.
    """
    length, count = int(window or 0), int(windows or 0)
    if length < 2 or count < 1 or length * count > MOST_TOKENS:
        raise InputError(
            f"Give at least 2 tokens a window, at least 1 window, and at most {MOST_TOKENS:,} tokens in all."
        )
    if source == "pasted":
        if not (pasted or "").strip():
            raise InputError("Paste some text first.")
        if len(pasted) > LONGEST_PASTE:
            raise InputError(f"The pasted text is longer than {LONGEST_PASTE:,} characters: upload it as a file.")
        return TextChoice("pasted", length, count, content=pasted)
    if source == "file":
        if not upload:
            raise InputError("Upload a text file first.")
        return TextChoice(upload, length, count)
    if source not in ("embedded", "wikitext-2") and not source.startswith("hub:"):
        raise InputError("Choose a text from the list, or write hub:owner/name for a data set of the Hub.")
    return TextChoice(source, length, count)


def _target(device: str, context: float | None, kind: str) -> Target:
    if not context or context < 1 or context > 2**24:
        raise InputError("The context must be between 1 and 16,777,216 tokens.")
    return Target(device, int(context), kind)
