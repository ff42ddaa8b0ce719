"""The sessions of one running page: one for each open tab, freed when the tab is gone."""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from threading import Lock

from surgery.session import Session
from surgery.workbench import Workbench


@dataclass
class Tab:
    """A tab's session and what the tab was last shown."""

    session: Session
    shown: int = -1
    chart: str = "blocks"
    drawn: tuple[object, ...] = ()


class Sessions:
    """Tabs by id.

    Args:
        bench: the workbench they share.
    """

    def __init__(self, bench: Workbench) -> None:
        self.bench = bench
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
        """Forget a tab and stop what it still runs; an unknown id is ignored."""
        with self._lock:
            tab = self._tabs.pop(identity, None)
        if tab is not None:
            tab.session.close()

    def __len__(self) -> int:
        with self._lock:
            return len(self._tabs)
