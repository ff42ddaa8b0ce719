"""The page without a browser: its events are fired by hand, and what they send is found by the ids of its elements."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from ui.page import build
from ui.tabs import Sessions, Tab

LONG = 30.0


class Page:
    """A page over sessions. Its components are named by their ids; those without one by their kind."""

    def __init__(self, sessions: Sessions) -> None:
        self.sessions = sessions
        self.blocks = build(sessions)
        self.names = {
            block: block.elem_id or block.get_block_name()  # state, browserstate, timer
            for block in self.blocks.blocks.values()
        }
        self.components = {name: block for block, name in self.names.items()}

    def fire(self, component: str, event: str, identity: str, *values: Any) -> dict[str, Any]:
        """What an event sends. Nothing is sent to a component that the event does not declare."""
        target = (self.components[component]._id, event)
        [found] = [one for one in self.blocks.fns.values() if one.fn is not None and target in one.targets]
        return self._sent(found, identity, *values)

    def load(self, kept: Any = None) -> dict[str, Any]:
        """What a tab is sent that is opened; `state` is its id."""
        target = (self.blocks._id, "load")
        [found] = [one for one in self.blocks.fns.values() if one.fn is not None and target in one.targets]
        return self._sent(found, kept)

    def tick(self, identity: str, answer: str, **moved: Any) -> dict[str, Any]:
        """What a look sends to a browser that shows this answer, and this of what a hand moves."""
        target = (self.components["timer"]._id, "tick")
        [found] = [one for one in self.blocks.fns.values() if target in one.targets]
        reported = [moved.get(self.names[component]) for component in found.inputs[2:]]
        return self._sent(found, identity, answer, *reported)

    def _sent(self, found: Any, *values: Any) -> dict[str, Any]:
        update = found.fn(*values)
        assert set(update) <= set(found.outputs)
        return {self.names[component]: value for component, value in update.items()}

    def tab(self, identity: str) -> Tab:
        """The tab of that id."""
        tab = self.sessions.get(identity)
        assert tab is not None
        return tab

    def has(self, identity: str, component: str) -> Any:
        """What the browser was last sent for a component."""
        return self.tab(identity).sent[self.components[component]]

    def held(self, identity: str, component: str) -> Any:
        """What it shows of a component that a hand moves."""
        return self.tab(identity).held.get(self.components[component], (None,))[0]

    def shown(self, identity: str) -> dict[str, Any]:
        """What a browser shows that has received everything, for `tick`."""
        return {
            "answer": self.tab(identity).answer,
            **{name: self.held(identity, name) for name in ("map", "ratio", "detail")},
        }

    def look(self, identity: str) -> dict[str, Any]:
        """A tick of such a browser."""
        return self.tick(identity, **self.shown(identity))

    def settle(self, identity: str) -> dict[str, Any]:
        """Tick as the browser does when nothing is under way any more; what was sent."""
        tab = self.tab(identity)
        until(lambda: not (view := tab.session.view()).working and not view.measure.measuring)
        return self.look(identity)

    def rest(self, identity: str) -> None:
        """Tick until the browser is known to show everything."""
        tab = self.tab(identity)
        until(lambda: not tab.session.jobs.busy)
        until(lambda: set(self.look(identity)) == {"answer"} and not tab.unconfirmed)


def until(reached: Callable[[], bool]) -> None:
    """Wait for a state."""
    end = time.monotonic() + LONG
    while not reached():
        assert time.monotonic() < end, "it takes too long"
        time.sleep(0.005)
