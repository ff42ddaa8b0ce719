"""The sessions of one running page: one for each open tab, freed when the tab is gone."""

from __future__ import annotations

import time
import uuid
from dataclasses import dataclass, field
from threading import Lock, RLock, Timer
from typing import Any

from surgery.common.jobs import Job
from surgery.session.session import Session
from surgery.workbench.workbench import Workbench

GRACE = 30.0
"""Seconds that a job outlives its tab: a page that is reloaded follows it again."""


QUIET = 1.5
"""Seconds after which no hand is on the map or the slider, and no answer is still on its way to the browser."""
INPUTS = ("map_value", "slider", "detail_value")


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
    sent: dict[str, Any] = field(default_factory=dict)
    """The last value of every part of the page that the browser has, its own inputs included."""
    drawn: dict[str, tuple[object, ...]] = field(default_factory=dict)
    """What each chart was last drawn from."""
    answer: str = "0"
    """Number of the last answer that was sent."""
    shown: str = "0"
    """Number of the last answer that the browser is known to show."""
    unconfirmed: set[str] = field(default_factory=set)
    """Parts that were sent since the browser last showed everything."""
    overlapping: bool = False
    """Whether an answer was sent before the browser showed the one before it: they may have come in another order."""
    seen: tuple[Any, ...] = (None, None, None)
    """What the browser showed when it last asked: the answer's number, the map's decisions, the slider's ratio."""
    seen_detail: Any = None
    """What its detail of a block showed then."""
    answered: float = 0.0
    """When the last answer was sent."""
    moved: float = 0.0
    """When the map or the slider was last moved by hand."""
    lock: RLock = field(default_factory=RLock)

    def touched(self) -> None:
        """A hand has moved the map or the slider, and may be about to do it again."""
        self.moved = time.monotonic()

    def numbered(self) -> str:
        """The number of the answer that goes out now."""
        self.overlapping |= self.shown != self.answer
        self.answer = str(int(self.answer) + 1)
        self.answered = time.monotonic()
        return self.answer

    def compare(self, answer: str, decisions: dict[str, list[int]], ratio: float | None) -> None:
        """Forget what was sent but is not shown, so that it is sent again.

        What the browser shows twice running is not merely under way, if nothing was sent for a while. Inputs are left
        alone while a hand may be on them.
        """
        before, self.seen = self.seen, (answer, decisions, ratio)
        self.shown = answer
        stays = answer == before[0] and time.monotonic() - self.answered >= QUIET
        if stays or (answer == self.answer and not self.overlapping):
            self._confirm(answer == self.answer)
        if time.monotonic() - self.moved < QUIET:
            return
        if decisions == before[1] != self.sent.get("map_value"):
            self.sent.pop("map_value", None)
        if ratio is not None and ratio == before[2] != self.sent.get("slider", (None,))[0]:
            self.sent.pop("slider", None)

    def compare_detail(self, value: Any) -> None:
        """The same for the detail of a block, which is an input too."""
        before, self.seen_detail = self.seen_detail, value
        if time.monotonic() - self.moved >= QUIET and value == before != self.sent.get("detail_value"):
            self.sent.pop("detail_value", None)

    def _confirm(self, last: bool) -> None:
        """The browser shows an answer and stays with it: the last one, or else one that came late.

        The last one is not enough if others were on their way at the same time: they may have changed places before it.
        """
        if not last:
            self.unconfirmed |= {*self.sent, *(f"chart_{name}" for name in self.drawn)}
        if not last or self.overlapping:
            doubtful = self.unconfirmed - set(INPUTS)
            self.sent = {name: value for name, value in self.sent.items() if name not in doubtful}
            self.drawn = {name: key for name, key in self.drawn.items() if f"chart_{name}" not in doubtful}
        self.unconfirmed.clear()
        self.shown = self.answer
        self.overlapping = False


class Sessions:
    """Tabs by id.

    Args:
        bench: the workbench they share.
        grace: see `GRACE`.
    """

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
        for job in tab.session.heavy:
            later = Timer(self.grace, self._stop_if_alone, [job])
            later.daemon = True
            later.start()

    def _stop_if_alone(self, job: Job) -> None:
        with self._lock:
            followed = any(tab.session.follows(job) for tab in self._tabs.values())
        if not followed:
            job.stop.set()

    def __len__(self) -> int:
        with self._lock:
            return len(self._tabs)
