"""Reading from a session: both answers, cancel, and answers of an older recipe."""

from __future__ import annotations

import pytest

from surgery.errors import InputError
from surgery.generation import Answer, Sampling
from surgery.session import Session
from surgery.workbench import Workbench
from tests.sessions import SMALL, idle, measured
from tests.tiny_workbench import open_model
from ui.read_words import answers_text, common


@pytest.fixture
def session() -> Session:
    made = Session(Workbench())
    made.text = SMALL
    made.adopt(open_model("llama"))
    measured(made)
    return made


def test_dense_and_cut_answer_the_same_prompt(session: Session) -> None:
    session.read("The capital of France is", sampling=Sampling(tokens=6)).wait(30)
    only = idle(session).reading
    assert only is not None and only.dense.tokens == 6 and only.cut is None
    assert "Nothing is cut" in answers_text(session.view())
    session.switch([1], [0], [])
    assert "has changed since" not in answers_text(idle(session)) or session.view().reading is only
    session.read("The capital of France is", sampling=Sampling(tokens=6)).wait(30)
    both = idle(session).reading
    assert both is not None and both.cut is not None
    assert both.dense.text == only.dense.text and both.cut.tokens == 6
    shown = answers_text(session.view())
    assert 'data-answer="dense"' in shown and 'data-answer="cut"' in shown and "stale" not in shown
    session.undo()
    assert "has changed since" in answers_text(session.view()) and 'data-state="stale"' in answers_text(session.view())


def test_a_cancel_keeps_what_was_written(session: Session) -> None:
    job = session.read("Once upon a time", sampling=Sampling(tokens=100))
    while (session.view().reading is None or session.view().reading.dense.tokens < 2) and not job.over:  # type: ignore[union-attr]
        pass
    session.cancel()
    view = idle(session)
    assert job.state == "cancelled" and view.reading is not None and 0 < view.reading.dense.tokens < 100


def test_an_empty_prompt_changes_nothing(session: Session) -> None:
    with pytest.raises(InputError, match="Write a prompt"):
        session.read("  ")
    assert session.view().reading is None and not session.view().working


@pytest.mark.parametrize(
    ("first", "second", "same"),
    [("a b c", "a b c", 5), ("a b c", "a b d", 4), ("abc", "abd", 0), ("a b", "a b c", 4), ("", "x", 0)],
)
def test_where_two_texts_part(first: str, second: str, same: int) -> None:
    assert common(first, second) == same


def test_text_of_models_is_escaped(session: Session) -> None:
    session.read("x", sampling=Sampling(tokens=1)).wait(30)
    view = idle(session)
    assert view.reading is not None
    hostile = "<script>alert(1)</script> ${x} {{y}}"
    changed = view.reading.__class__(**{**view.reading.__dict__, "dense": Answer(hostile, 1, 1.0)})
    shown = answers_text(view.__class__(**{**view.__dict__, "reading": changed}))
    assert "<script" not in shown and "${" not in shown and "{{" not in shown
