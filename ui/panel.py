"""What a panel of the page is: its fields, its events, and what it shows. No panel knows another one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import wraps
from typing import Any, ClassVar, NamedTuple

import gradio as gr

from surgery.session.view import View
from surgery.workbench.workbench import Workbench
from ui.presenters.text import Html
from ui.tabs import Tab
from ui.theme import PLAIN

SLIM: dict[str, Any] = {"size": "md", "scale": 0, "min_width": 0}
"""Options of a button as wide as its words."""
# Past Gradio's queue: it costs two more requests an event, and what takes long is a job of the core's own.
QUIET: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private", "queue": False}
LAST = {**QUIET, "trigger_mode": "always_last"}

Update = dict[Any, Any]
"""What a handler sends: new values by component."""


class Shown(NamedTuple):
    """What a component shows now. It is sent if the browser does not have it yet."""

    component: Any
    value: Any
    """Its value, or a `gr.update` of it."""
    send: Callable[[], Any] | None = None
    """Makes what is sent, where that is not the value itself."""
    hand: Any = None
    """Of a component that a hand moves (see `Panel.moves`): what the browser reports of it when it shows this."""

    def sent(self) -> Any:
        """What is sent."""
        if self.send is not None:
            return self.send()
        return dict(self.value) if isinstance(self.value, dict) else self.value  # Gradio empties what it is given


@dataclass(frozen=True)
class Wire:
    """Connects the events of a panel.

    Args:
        tab: the component that holds a tab's id.
        shown: every component that an answer may update.
        answer: does something with a tab of that id; what has changed.
        ask: reads something from a tab of that id.
    """

    tab: Any
    shown: list[Any]
    answer: Callable[[str, Callable[[Tab], None]], Update]
    ask: Callable[[str, Callable[[Tab], str]], str]

    def on(self, events: Any, action: Callable[..., None], *fields: Any, last: bool = False) -> None:
        """Let an action answer events.

        Args:
            events: one, or a list of them.
            action: gets the tab and what the fields hold.
            fields: components.
            last: of several events only the last one counts, as for fields that are moved or typed into.
        """

        @wraps(action)
        def answer(identity: str, *values: Any) -> Update:
            return self.answer(identity, lambda tab: action(tab, *values))

        gr.on(events, answer, [self.tab, *fields], self.shown, **(LAST if last else QUIET))

    def fetch(self, event: Any, read: Callable[[Tab], str], into: Any) -> Any:
        """Let an event put a text into a component, for a script that follows; the event's dependency."""

        @wraps(read)
        def answer(identity: str) -> str:
            return self.ask(identity, read)

        return event(answer, [self.tab], [into], **QUIET)


class Panel:
    """One part of the page, with components of its own."""

    title: ClassVar[str] = ""
    """Of the panel's tab, where it stands in a row of tabs."""

    def __init__(self, bench: Workbench) -> None:
        self.bench = bench
        self.outputs: list[Any] = []
        """The components that an answer may update."""
        self.moved: list[Any] = []
        """Those of them that a hand moves."""
        self._presented: list[tuple[Any, Callable[[View], Any]]] = []

    def shows(self, component: Any, show: Callable[[View], Any] | None = None) -> Any:
        """Declare a component that an answer may update; the component itself.

        Args:
            component: a new one.
            show: what it shows of a view; None where `values`, which is overridden, says it.
        """
        self.outputs.append(component)
        if show is not None:
            self._presented.append((component, show))
        return component

    def html(self, name: str, show: Callable[[View], Html]) -> Any:
        """A piece of HTML without a frame."""
        return self.shows(gr.HTML(elem_id=name, **PLAIN), show)

    def button(
        self,
        words: str,
        name: str,
        able: Callable[[View], bool] | None = None,
        there: Callable[[View], bool] = lambda view: True,
        **options: Any,
    ) -> Any:
        """A button that can be pressed, or is there at all, only when the view says so."""
        at_first: dict[str, Any] = {"visible" if able is None else "interactive": False}

        def update(view: View) -> dict[str, Any]:
            return gr.update(visible=there(view)) if able is None else gr.update(interactive=able(view))

        return self.shows(gr.Button(words, elem_id=name, **at_first, **SLIM, **options), update)

    def download(self, name: str, show: Callable[[View], tuple[str | None, str]], **options: Any) -> Any:
        """A button that gives a file: its path and the button's words; hidden while there is none."""

        def update(view: View) -> dict[str, Any]:
            path, words = show(view)
            return gr.update(value=path, label=words, visible=path is not None)

        made = gr.DownloadButton(visible=False, elem_id=name, **SLIM, **options)
        return self.shows(made, update)

    def moves(self, component: Any) -> Any:
        """Declare one that a hand moves as well: the browser reports it, and it is put right if it shows another value
        than the last that was sent.
        """
        self.moved.append(component)
        return self.shows(component)

    def fields(self) -> None:
        """Make the components, inside of the Gradio context that is open."""
        raise NotImplementedError

    def events(self, wire: Wire) -> None:
        """Say what answers which event."""

    def values(self, tab: Tab, view: View) -> Iterator[Shown]:
        """What the panel shows of a tab."""
        return (Shown(component, show(view)) for component, show in self._presented)

    def start(self, tab: Tab, kept: Any) -> None:
        """A page was loaded: take up what its browser has kept; `InputError` if something of it makes no sense."""

    def ended(self, sentence: str) -> Update:
        """Say that the tab's session is gone."""
        return {}


def show_choices(found: list[tuple[str, str]]) -> dict[str, Any]:
    """A list with these choices, of which the first is chosen; hidden if there are none."""
    return gr.update(choices=found, value=found[0][1] if found else None, visible=bool(found))


def own_text(pasted: str, upload: str, prefix: str = "") -> tuple[Any, Any]:
    """Fields with these labels for a text that is pasted or uploaded; `follow_text` shows them."""
    return (
        gr.Textbox(label=pasted, lines=6, max_lines=6, visible=False, elem_id=f"{prefix}pasted"),
        gr.File(label=upload, file_types=[".txt", ".jsonl", ".parquet"], visible=False, elem_id=f"{prefix}upload"),
    )


def follow_text(chosen: Any, pasted: Any, upload: Any) -> None:
    """Show the field for a pasted text, or for a file, when the list of texts says so."""
    chosen.input(
        lambda name: (gr.Textbox(visible=name == "pasted"), gr.File(visible=name == "file")),
        chosen,
        [pasted, upload],
        **QUIET,
    )
