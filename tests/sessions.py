"""How the tests wait for a session on a tiny model."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace

from surgery.recipe.texts import TextChoice
from surgery.session.session import Session
from surgery.session.view import View
from surgery.workbench.open_model import OpenModel
from surgery.workbench.workbench import Workbench

LONG = 120.0
"""Seconds after which a wait is given up: other tests use the cores too."""
SMALL = TextChoice(window=16, windows=3)


def opened(bench: Workbench, model: OpenModel, windows: int = 4) -> Session:
    """A session on an open model that measures and analyses short texts."""
    made = Session(bench)
    made.state.text, made.state.calibration = SMALL, TextChoice(window=16, windows=windows, purpose="calibration")
    made.edit.adopt(model)
    return made


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
    def reached(view: View) -> bool:
        found = view.measure
        return not found.measuring and found.measured and found.estimate is not None and found.estimate.complete

    return until(session, reached)


def changed(view: View, **changes: object) -> View:
    """The view with other values; a part's field is named part_field."""
    for name, value in changes.items():
        part, _, inner = name.partition("_")
        own = {name: value} if hasattr(view, name) else {part: replace(getattr(view, part), **{inner: value})}
        view = replace(view, **own)  # type: ignore[arg-type]
    return view


def idle(session: Session) -> View:
    return until(session, lambda view: not view.working)
