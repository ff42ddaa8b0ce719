"""A disk without room is asked before the work of every verb that writes; the old file stays and nothing is left."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from surgery.evaluation.evaluator import Evaluator
from surgery.training.trainer import Trainer
from surgery.workbench.workbench import Workbench
from tests.unit.cli.test_commands import TEXT, folder, run  # noqa: F401

LINES = {
    "analyze": "analyze FOLDER --out file",
    "scan": "scan FOLDER --out file",
    "suggest": "suggest FOLDER --method l2 --width 40 --out file",
    "build": "build RECIPE --out new",
    "heal": "heal RECIPE --out new --steps 5 --text TEXT --window 16",
    "export": "export FOLDER --out file",
    "mergekit": "export RECIPE --format mergekit --out file",
    "quantize": "quantize FOLDER --out file --type Q8_0",
    "packed": "quantize FOLDER --out new --format torchao --type int8",
    "ship": "ship RECIPE --out new",
}
OPENS_NOTHING = {"analyze", "scan", "suggest", "export", "mergekit", "quantize"}


@pytest.mark.parametrize("verb", LINES)
def test_no_space_is_said_before_the_work(
    verb: str,
    folder: Path,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MODEL_SURGERY_CACHE", str(tmp_path / "cache"))
    edits = [{"op": "remove_blocks", "blocks": "1"}]
    recipe = {"schema": "model-surgery/recipe/1", "model": {"id": str(folder)}, "edits": edits}
    (tmp_path / "RECIPE").write_text(json.dumps(recipe))
    (tmp_path / "file").write_text("old")
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1000))

    def worked(*_: Any, **__: Any) -> None:
        raise AssertionError("the work was begun")

    monkeypatch.setattr(Trainer, "run", worked)
    monkeypatch.setattr(Evaluator, "evaluate", worked)
    if verb in OPENS_NOTHING:
        monkeypatch.setattr(Workbench, "open", worked)
    names = {"FOLDER": str(folder), "TEXT": str(folder / "text.txt")}
    text = TEXT if verb in ("analyze", "scan") else ()
    said = run(*(names.get(word, word) for word in LINES[verb].split()), *text, code=2)
    assert "no space left in" in said and "MB needed, 0.0 MB free" in said and len(said.splitlines()) == 1
    assert (tmp_path / "file").read_text() == "old"
    assert {entry.name for entry in tmp_path.iterdir()} <= {"RECIPE", "file", "cache"}
