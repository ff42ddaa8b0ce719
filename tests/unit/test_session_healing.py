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
    short = replace(presets.PRESETS["two-minutes"], minutes=0.02)
    monkeypatch.setitem(presets.PRESETS, "two-minutes", short)


def ops(session: Session) -> list[str]:
    return [edit.op for edit in session.recipe.edits]


def test_a_healing_is_one_step_that_another_cut_takes_away(session: Session, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="Nothing is cut"):
        session.heal("two-minutes", "lora")
    session.switch([1], [], [])
    session.forecast("two-minutes", "distill")
    view = idle(session)
    assert view.job is not None and view.job.state == "done", view.job and view.job.error
    assert view.heal_forecast is not None and "steps" in view.heal_forecast.words
    assert ops(session) == ["remove_blocks"]
    session.heal("two-minutes", "lora")
    view = idle(session)
    assert view.healed is not None and view.heal_progress is None and view.healed.history, view.job and view.job.error
    assert ops(session) == ["remove_blocks", "heal"] and not session.error
    assert measured(session).estimate is not None
    assert view.adapter is None
    session.pack_adapter(tmp_path / "uploads")
    packed = idle(session).adapter
    assert packed is not None and packed.bytes == packed.path.stat().st_size
    with zipfile.ZipFile(packed.path) as archive:
        names = {Path(name).name for name in archive.namelist()}
        assert names == {"adapter_config.json", "adapter_model.safetensors", "recipe.json", "report.json"}
    session.switch([], [0], [])
    assert ops(session) == ["remove_attention"] and session.view().adapter is None
    with pytest.raises(InputError, match="not healed"):
        session.pack_adapter(tmp_path)
    session.undo()
    assert ops(session) == ["remove_blocks", "heal"]
    assert session.view().adapter == packed
    session.undo()
    assert ops(session) == ["remove_blocks"]


def test_a_healing_of_other_cuts_is_left_out(session: Session) -> None:
    session.switch([1], [], [])
    session.heal("two-minutes", "lora")
    session.switch([0], [], [])
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

    session.switch([1], [], [])
    session.forecast("two-minutes", "lora")
    idle(session)
    monkeypatch.setattr(Trainer, at, cancelled)
    session.heal("two-minutes", "lora")
    view = idle(session)
    assert view.job is not None and view.job.state == ("done" if kept else "cancelled"), view.job.error
    assert ops(session) == ["remove_blocks", *kept] and (view.healed is not None) is bool(kept)
    if view.healed is not None:
        assert view.healed.ending == "cancelled" and view.healed.steps == 1
    measured(session)
