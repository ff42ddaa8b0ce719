"""Healing from a session on a tiny model."""

from __future__ import annotations

import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from surgery.errors import InputError
from surgery.healing import presets
from surgery.session import heal as session_healing
from surgery.session.session import Session
from surgery.training.trainer import Trainer
from tests.sessions import idle, measured


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("surgery.training.results.cache_directory", lambda: tmp_path)
    monkeypatch.setattr(session_healing, "HEALING_WINDOW", 16)
    monkeypatch.setattr(session_healing, "MOST_WINDOWS", 6)
    short = replace(presets.PRESETS["two-minutes"], minutes=0.06)
    monkeypatch.setitem(presets.PRESETS, "two-minutes", short)


def ops(session: Session) -> list[str]:
    return [edit.op for edit in session.edit.current_recipe().edits]


def test_a_healing_is_one_step_that_another_cut_takes_away(session: Session, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="Nothing is cut"):
        session.heal.start("two-minutes", "lora")
    session.edit.switch([1], [], [])
    session.heal.forecast("two-minutes", "distill")
    view = idle(session)
    assert view.job is not None and view.job.state == "done", view.job and view.job.error
    assert view.heal.forecast is not None and "steps" in view.heal.forecast.words
    assert ops(session) == ["remove_blocks"]
    session.heal.start("two-minutes", "lora")
    view = idle(session)
    assert view.heal.outcome is not None and view.heal.progress is None and view.heal.outcome.history, (
        view.job and view.job.error
    )
    assert ops(session) == ["remove_blocks", "heal"] and not session.error
    assert measured(session).measure.estimate is not None
    assert view.heal.adapter is None
    session.heal.pack_adapter(tmp_path / "uploads")
    packed = idle(session).heal.adapter
    assert packed is not None and packed.bytes == packed.path.stat().st_size
    with zipfile.ZipFile(packed.path) as archive:
        names = {Path(name).name for name in archive.namelist()}
        assert names == {"adapter_config.json", "adapter_model.safetensors", "recipe.json", "report.json"}
    session.edit.switch([], [0], [])
    assert ops(session) == ["remove_attention"] and session.view().heal.adapter is None
    with pytest.raises(InputError, match="not healed"):
        session.heal.pack_adapter(tmp_path)
    session.edit.undo()
    assert ops(session) == ["remove_blocks", "heal"]
    assert session.view().heal.adapter == packed
    session.edit.undo()
    assert ops(session) == ["remove_blocks"]


def test_a_healing_of_other_cuts_is_left_out(session: Session) -> None:
    session.edit.switch([1], [], [])
    session.heal.start("two-minutes", "lora")
    session.edit.switch([0], [], [])
    idle(session)
    assert ops(session) == ["remove_blocks"] and "cuts changed" in session.error


@pytest.mark.parametrize("at, kept", [("run", []), ("_publish", ["heal"])])
def test_a_cancel_keeps_what_was_gained_and_before_the_first_step_nothing_changes(
    session: Session, monkeypatch: pytest.MonkeyPatch, at: str, kept: list[str]
) -> None:
    genuine = getattr(Trainer, at)

    def cancelled(*arguments: Any) -> Any:
        session.cancel()
        return genuine(*arguments)

    session.edit.switch([1], [], [])
    session.heal.forecast("two-minutes", "lora")
    idle(session)
    monkeypatch.setattr(Trainer, at, cancelled)
    session.heal.start("two-minutes", "lora")
    view = idle(session)
    assert view.job is not None and view.job.state == ("done" if kept else "cancelled"), view.job.error
    assert ops(session) == ["remove_blocks", *kept] and (view.heal.outcome is not None) is bool(kept)
    if view.heal.outcome is not None:
        assert view.heal.outcome.ending == "cancelled" and view.heal.outcome.steps == 1
    measured(session)
