"""The sessions of one running page: one for each open tab, freed when the tab is gone."""

from __future__ import annotations

import uuid
from dataclasses import dataclass, field
from threading import Lock, RLock, Timer
from typing import Any

from surgery.jobs import Job
from surgery.session import Session
from surgery.workbench import Workbench

GRACE = 30.0
"""Seconds that a job outlives its tab: a page that is reloaded follows it again."""


@dataclass
class Tab:
    """A tab's session and what the browser has been shown. `lock` is held while one of its events is answered."""

    session: Session
    chart: str = "blocks"
    narrowing: tuple[str, int] | None = None
    """Method and divisor that were last asked for."""
    sent: dict[str, Any] = field(default_factory=dict)
    """The last value of every part of the page that the browser has, its own inputs included."""
    drawn: dict[str, tuple[object, ...]] = field(default_factory=dict)
    """What each chart was last drawn from."""
    answer: str = "0"
    """Number of the last answer that was sent."""
    last_seen: str = ""
    """Number of the answer that the browser showed when it last asked."""
    lock: RLock = field(default_factory=RLock)


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
        job = tab.session.view().job
        if job is not None and not job.over:
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
