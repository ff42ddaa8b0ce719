"""The lines that reproduce what is on screen do reproduce it."""

from __future__ import annotations

import io
import re
from contextlib import redirect_stdout
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from surgery.recipe.texts import TextChoice
from surgery.session.reproduce import lines_of
from surgery.session.session import Session
from surgery.session.view import View
from surgery.workbench.workbench import Workbench
from tests.sessions import measured
from tests.tiny_workbench import open_model

FAMILY = "llama"


def test_nothing_before_a_model_is_open() -> None:
    assert lines_of(Session(Workbench()).view()) is None


def test_the_python_lines_give_the_number_on_screen(
    session: Session, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Workbench, "open", lambda self, *given: open_model("llama"))
    monkeypatch.chdir(tmp_path)
    for change in (lambda: None, lambda: session.edit.switch([1], [0], [])):
        change()
        view = measured(session)
        Path("recipe.json").write_text(session.build.exported())
        lines = lines_of(view)
        assert lines is not None and view.measure.estimate is not None
        names = "Recipe, TextChoice, Workbench" if view.history.current.edits else "TextChoice, Workbench"  # type: ignore[union-attr]
        assert re.findall("^from surgery.*", lines.python, re.M) == [f"from surgery import {names}"]
        assert lines.notes == (("Export the recipe as recipe.json first.",) if view.history.current.edits else ())  # type: ignore[union-attr]
        printed = io.StringIO()
        with redirect_stdout(printed):
            exec(compile(lines.python, "lines", "exec"), {})
        assert float(printed.getvalue()) == pytest.approx(view.measure.estimate.perplexity, abs=5e-4)


def words_of(view: View, verb: str) -> list[str]:
    lines = lines_of(view)
    assert lines is not None
    return next(line for line in lines.commands if f" {verb} " in line).split()


def test_the_commands_say_model_text_and_device(session: Session) -> None:
    view = session.view()
    assert words_of(view, "evaluate")[-6:] == ["--text", "embedded", "--window", "16", "--windows", "3"]
    aimed = " ".join(words_of(view, "fit"))
    assert "--device raspberry-pi-5-8gb --context 2048 --type F16 --kv-type F16" in aimed and "--recipe" not in aimed
    session.edit.switch([1], [], [])
    assert "--recipe recipe.json" in " ".join(words_of(session.view(), "evaluate"))
    assert words_of(session.view(), "build")[-1] == "smaller"


@pytest.mark.parametrize(
    ("change", "words"),
    [({"text": TextChoice("pasted", 16, 3, content="x; rm -rf /")}, "Save the pasted text as text.txt."),
     ({"text": TextChoice("/tmp/some/where.txt", 16, 3)}, "Save the uploaded text as text.txt")],
)  # fmt: skip
def test_what_only_the_page_has_is_to_be_saved(session: Session, change: dict[str, Any], words: str) -> None:
    lines = lines_of(replace(session.view(), **change))
    assert lines is not None and any(words in note for note in lines.notes)
    assert "--text text.txt" in lines.commands[0] and "rm -rf" not in "".join(lines.commands)


def test_hostile_names_are_quoted(session: Session) -> None:
    view = session.view()
    assert view.model is not None
    loaded = replace(view.model.loaded, id="x; rm -rf $HOME")
    model = object.__new__(type(view.model))
    model.__dict__.update(view.model.__dict__ | {"loaded": loaded})
    lines = lines_of(replace(view, model=model))
    assert lines is not None and "'x; rm -rf $HOME'" in lines.commands[0] and "'x; rm -rf $HOME'" in lines.python
