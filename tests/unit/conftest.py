"""A workbench that opens tiny models only, and a session on one."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from surgery.errors import UnknownModel
from surgery.recipe.texts import TextChoice
from surgery.session.session import Session
from surgery.workbench import workbench
from surgery.workbench.workbench import Workbench
from tests.sessions import SMALL
from tests.tiny_workbench import loaded, open_model


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Iterator[Workbench]:
    def load(source: str, *rest: Any) -> Any:
        if not source.startswith("tiny"):
            raise UnknownModel(f"There is no model {source!r}.")
        return loaded(name=source, seed=len(source))

    monkeypatch.setattr(workbench, "load", load)
    made = Workbench()
    yield made
    made.jobs.close()


@pytest.fixture
def session(bench: Workbench) -> Session:
    made = Session(bench)
    made.text, made.calibration = SMALL, TextChoice(window=16, windows=4, purpose="calibration")
    made.adopt(open_model())
    return made
