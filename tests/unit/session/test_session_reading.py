"""Reading from a session: both answers, cancel, and answers of an older recipe."""

from __future__ import annotations

from dataclasses import replace
from threading import Event

import pytest

from surgery.errors import InputError
from surgery.evaluation.generation import Answer, Writer
from surgery.evaluation.sampling import Sampling
from surgery.session.session import Session
from tests.sessions import LONG, SMALL, idle, measured, until
from tests.tiny_workbench import open_model
from ui.presenters.read import answers_text, common

FAMILY = "llama"


def test_dense_and_cut_answer_the_same_prompt(session: Session) -> None:
    session.read.start("The capital of France is", sampling=Sampling(tokens=6)).wait(30)
    only = idle(session).read
    assert only is not None and only.dense.tokens == 6 and only.cut is None
    assert "Nothing is cut" in answers_text(session.view())
    session.edit.switch([1], [0], [])
    assert "has changed since" not in answers_text(idle(session)) or session.view().read is only
    session.read.start("The capital of France is", sampling=Sampling(tokens=6)).wait(30)
    both = idle(session).read
    assert both is not None and both.cut is not None
    assert both.dense.text == only.dense.text and both.cut.tokens == 6
    shown = answers_text(session.view())
    assert 'data-answer="dense"' in shown and 'data-answer="cut"' in shown and "stale" not in shown
    session.edit.undo()
    assert "has changed since" in answers_text(session.view()) and 'data-state="stale"' in answers_text(session.view())


def test_a_cancel_keeps_what_was_written(session: Session) -> None:
    job = session.read.start("Once upon a time", sampling=Sampling(tokens=100))
    while (session.view().read is None or session.view().read.dense.tokens < 2) and not job.over:  # type: ignore[union-attr]
        pass
    session.cancel()
    view = idle(session)
    assert job.state == "cancelled" and view.read is not None and 0 < view.read.dense.tokens < 100


@pytest.mark.parametrize("cancelled", [False, True])
def test_a_reloaded_page_goes_on_with_the_answers(
    session: Session, monkeypatch: pytest.MonkeyPatch, cancelled: bool
) -> None:
    go, plain = Event(), Writer.step

    def waiting(writer: Writer) -> bool:
        if len(writer.ids) == 2:
            assert go.wait(LONG)
        return plain(writer)

    monkeypatch.setattr(Writer, "step", waiting)
    session.edit.switch([1], [], [])
    measured(session)
    job = session.read.start("Once upon a time", sampling=Sampling(tokens=5))
    until(session, lambda view: view.read is not None and view.read.dense.tokens == 2)
    again = Session(session.state.bench)
    again.state.text = SMALL
    assert session.view().model is not None and again.attach(job.id)
    again.edit.adopt(open_model("llama"), session.edit.current_recipe())
    session.close(stop_job=False)
    half = again.view()
    assert half.working and half.read is not None and half.read.dense.tokens == 2
    assert 'aria-busy="true"' in answers_text(half) and 'data-state="current"' in answers_text(half)
    if cancelled:
        again.cancel()
    go.set()
    whole = idle(again)
    assert whole.read is not None and whole.read.cut is not None and 'aria-busy="false"' in answers_text(whole)
    assert whole.read.dense.tokens == (2 if cancelled else 5) or (cancelled and whole.read.dense.tokens == 3)


def test_answers_say_what_was_asked_and_cut(session: Session) -> None:
    session.edit.switch([1], [], [])
    measured(session)
    session.read.start("x" * 125, sampling=Sampling(tokens=1)).wait(LONG)
    view = idle(session)
    shown = answers_text(view)
    assert "Cut: 3 blocks kept, 1 removed" in shown and "xxx…" in shown and "x" * 120 not in shown
    assert view.read is not None
    begun = replace(view, read=replace(view.read, dense=Answer(), cut=Answer()))
    assert answers_text(begun).count("nothing written yet") == 2 and "measured" not in answers_text(begun)


def test_an_empty_prompt_changes_nothing(session: Session) -> None:
    with pytest.raises(InputError, match="Write a prompt"):
        session.read.start("  ")
    assert session.view().read is None and not session.view().working


@pytest.mark.parametrize(
    ("first", "second", "same"),
    [("a b c", "a b c", 5), ("a b c", "a b d", 4), ("abc", "abd", 0), ("a b", "a b c", 4), ("", "x", 0)],
)
def test_where_two_texts_part(first: str, second: str, same: int) -> None:
    assert common(first, second) == same


def test_text_of_models_is_escaped(session: Session) -> None:
    session.read.start("x", sampling=Sampling(tokens=1)).wait(30)
    view = idle(session)
    assert view.read is not None
    hostile = "<script>alert(1)</script> ${x} {{y}}"
    changed = view.read.__class__(**{**view.read.__dict__, "dense": Answer(hostile, 1, 1.0)})
    shown = answers_text(view.__class__(**{**view.__dict__, "read": changed}))
    assert "<script" not in shown and "${" not in shown and "{{" not in shown
