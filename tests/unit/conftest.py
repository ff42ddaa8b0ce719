"""A workbench that opens tiny models only, and a session on one."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from surgery.errors import UnknownModel
from surgery.session.session import Session
from surgery.workbench import workbench
from surgery.workbench.workbench import Workbench
from tests.sessions import measured, opened
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
def session(bench: Workbench, request: pytest.FixtureRequest) -> Session:
    """Measured, on a tiny model of the family that a test file names in `FAMILY`."""
    made = opened(bench, open_model(getattr(request.module, "FAMILY", "smollm")))
    measured(made)
    return made
