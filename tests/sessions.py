"""How the tests wait for a session on a tiny model."""

from __future__ import annotations

import time
from collections.abc import Callable

from surgery.recipe.texts import TextChoice
from surgery.session.session import Session
from surgery.session.view import View

LONG = 30.0
SMALL = TextChoice(window=16, windows=3)


def until(session: Session, reached: Callable[[View], bool]) -> View:
    """The session's view as soon as it is as wanted."""
    end = time.monotonic() + LONG
    while time.monotonic() < end:
        view = session.view()
        if reached(view):
            return view
        time.sleep(0.005)
    raise AssertionError("the session did not get there")


def measured(session: Session) -> View:
    return until(session, lambda v: not v.measuring and v.measured and v.estimate is not None and v.estimate.complete)


def idle(session: Session) -> View:
    return until(session, lambda view: not view.working)
