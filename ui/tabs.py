"""The sessions of one running page: one for each open tab, freed when the tab is gone."""

from __future__ import annotations

import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from threading import Lock, RLock, Timer
from typing import Any

from markupsafe import Markup

from surgery.common.jobs import Job
from surgery.session.session import Session
from surgery.workbench.workbench import Workbench

GRACE = 30.0
"""Seconds that a job outlives its tab: a page that is reloaded follows it again."""


QUIET = 1.5
"""Seconds after which no hand is on the map or the slider, and no answer is still on its way to the browser."""


@dataclass
class Tab:
    """A tab's session and what the browser has been shown. `lock` is held while one of its events is answered."""

    session: Session
    chart: str = "blocks"
    selected: int | None = None
    """The block whose detail is shown."""
    coloured_by: str = "entropy"
    """What the heads of that block are coloured by."""
    ranked_by: str = "cfsp_fine"
    """The method that ranks the neurons of that block."""
    map_colour: str = "influence"
    """What the map is coloured by."""
    narrowed_blocks: tuple[int, ...] | None = None
    """The blocks whose MLPs the slider narrows; all when None."""
    narrowing: tuple[str, int] | None = None
    """Method and divisor that were last asked for."""
    neuron_method: str = "cfsp_fine"
    """Whose scores the chart of neurons shows."""
    head_statistic: str = "entropy"
    """What the chart of heads shows."""
    tables: dict[str, Markup] = field(default_factory=dict)
    """The numbers of each chart that was drawn."""
    sent: dict[Any, Any] = field(default_factory=dict)
    """The last value of every component of the page that the browser has."""
    held: dict[Any, tuple[Any, Any]] = field(default_factory=dict)
    """Of each component that a hand moves: what the browser shows of it, and what else was sent with that."""
    once: dict[Any, Any] = field(default_factory=dict)
    """What the next answer sends besides, whatever comes of it: fields that are filled or emptied once."""
    answer: str = "0"
    """Number of the last answer that was sent."""
    shown: str = "0"
    """Number of the last answer that the browser is known to show."""
    unconfirmed: set[Any] = field(default_factory=set)
    """Components that were sent since the browser last showed everything."""
    overlapping: bool = False
    """Whether an answer was sent before the browser showed the one before it: they may have come in another order."""
    seen: tuple[str | None, Mapping[Any, Any]] = (None, {})
    """What the browser showed when it last asked: the answer's number, and what a hand moves, by component."""
    answered: float = 0.0
    """When the last answer was sent."""
    moved: float = 0.0
    """When anything was last moved by hand."""
    lock: RLock = field(default_factory=RLock)

    def touched(self) -> None:
        """A hand has moved something, and may be about to do it again."""
        self.moved = time.monotonic()

    def moved_to(self, component: Any, value: Any) -> None:
        """A hand has moved a component: the browser shows this already."""
        self.touched()
        self.held[component] = (value, self.held.get(component, (None, None))[1])

    def changed(self, component: Any, value: Any, hand: Any = None) -> bool:
        """Whether the browser does not have this value yet, which is sent now if so.

        Of a component that a hand moves, `hand` is what the browser reports when it shows the value.
        """
        if hand is not None:
            before, self.held[component] = self.held.get(component), (hand, value)
            return before != (hand, value)
        if component in self.sent and self.sent[component] == value:
            return False
        self.sent[component] = value
        self.unconfirmed.add(component)
        return True

    def forget(self, *components: Any) -> None:
        """Send what is in force again: the browser may show a choice that is refused."""
        for component in components:
            self.sent.pop(component, None)

    def numbered(self) -> str:
        """The number of the answer that goes out now."""
        self.overlapping |= self.shown != self.answer
        self.answer = str(int(self.answer) + 1)
        self.answered = time.monotonic()
        return self.answer

    def compare(self, answer: str, reported: Mapping[Any, Any]) -> None:
        """Forget what was sent but is not shown, so that it is sent again.

        What the browser shows twice running is not merely under way, if nothing was sent for a while. What a hand moves
        is left alone while the hand may be on it.

        Args:
            answer: number of the answer that the browser shows.
            reported: what it shows of each component that a hand moves; None where that is nothing.
        """
        before, self.seen = self.seen, (answer, reported)
        self.shown = answer
        stays = answer == before[0] and time.monotonic() - self.answered >= QUIET
        if stays or (answer == self.answer and not self.overlapping):
            self._confirm(answer == self.answer)
        if time.monotonic() - self.moved < QUIET:
            return
        for component, value in reported.items():
            if value is not None and value == before[1].get(component) != self.held.get(component, (None,))[0]:
                self.held.pop(component, None)

    def _confirm(self, last: bool) -> None:
        """The browser shows an answer and stays with it: the last one, or else one that came late.

        The last one is not enough if others were on their way at the same time: they may have changed places before it.
        """
        if not last:
            self.unconfirmed |= self.sent.keys()
        if not last or self.overlapping:
            self.forget(*self.unconfirmed)
        self.unconfirmed.clear()
        self.shown = self.answer
        self.overlapping = False


class Sessions:
    """Tabs by id, whose sessions share a workbench; for `grace` see `GRACE`."""

    def __init__(self, bench: Workbench, grace: float = GRACE) -> None:
        self.bench = bench
        self.grace = grace
        self._tabs: dict[str, Tab] = {}
        self._lock = Lock()

    def new(self) -> str:
        """A new tab's id."""
        identity = uuid.uuid4().hex
        with self._lock:
            self._tabs[identity] = Tab(Session(self.bench))
        return identity

    def get(self, identity: str) -> Tab | None:
        """The tab of that id, if it is still open."""
        with self._lock:
            return self._tabs.get(identity)

    def free(self, identity: str) -> None:
        """Forget a tab and stop what it still runs, unless another tab follows it; an unknown id is ignored."""
        with self._lock:
            tab = self._tabs.pop(identity, None)
        if tab is None:
            return
        tab.session.close(stop_job=False)
        for job in tab.session.jobs.heavy:
            later = Timer(self.grace, self._stop_if_alone, [job])
            later.daemon = True
            later.start()

    def _stop_if_alone(self, job: Job) -> None:
        with self._lock:
            followed = any(tab.session.jobs.follows(job) for tab in self._tabs.values())
        if not followed:
            job.stop.set()

    def __len__(self) -> int:
        with self._lock:
            return len(self._tabs)
