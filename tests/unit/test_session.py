"""A session on a tiny model: edits, measurements, the analysis, texts, devices, jobs; errors change nothing."""

from __future__ import annotations

import json
import time
from pathlib import Path
from threading import Event
from typing import Any

import pytest

from surgery.errors import InputError, RecipeError, TextError
from surgery.recipe.base import ModelReference
from surgery.recipe.edits import RemoveBlocks, RemoveMlp
from surgery.recipe.recipe import Recipe
from surgery.recipe.texts import TextChoice
from surgery.session.session import Session
from surgery.session.view import Target
from surgery.workbench.open_model import OpenModel
from surgery.workbench.workbench import Workbench
from tests.sessions import LONG, SMALL, idle, measured, until
from tests.tiny_workbench import open_model


def slow_analysis(session: Session, monkeypatch: pytest.MonkeyPatch) -> Event:
    """Makes the analysis wait for the returned event."""
    go, collect = Event(), OpenModel.statistics

    def statistics(model: OpenModel, windows: Any, report: Any = lambda *_: None) -> Any:
        while not go.wait(0.005):
            report(0.3, "waiting")
        return collect(model, windows, report)

    monkeypatch.setattr(OpenModel, "statistics", statistics)
    return go


def test_before_a_model_is_open_there_is_a_view_and_every_edit_is_refused(bench: Workbench) -> None:
    session = Session(bench)
    view = session.view()
    assert view.model is None and view.fit is None and view.estimate is None and not session.busy
    for action in (session.undo, session.reset, session.analyse, session.exported, lambda: session.switch([], [], [])):
        with pytest.raises(InputError, match="No model is open"):
            action()


def test_opening_a_model_measures_it(bench: Workbench) -> None:
    session = Session(bench)
    session.text = SMALL
    job = session.open(" tiny ")
    assert job is not None
    job.wait(LONG)
    view = measured(session)
    assert view.model is not None and view.model.loaded.id == "tiny"
    assert view.estimate is not None and view.estimate.difference == 0 and view.estimate.tokens == 3 * 15


def test_a_model_that_is_open_already_is_there_at_once(bench: Workbench) -> None:
    first = Session(bench)
    job = first.open("tiny")
    assert job is not None
    job.wait(LONG)
    second = Session(bench)
    assert second.open("tiny") is None
    assert second.view().model is first.view().model


def test_a_model_that_cannot_be_opened_leaves_the_old_one(session: Session) -> None:
    session.switch([1], [], [])
    job = session.open("nobody/nothing")
    assert job is not None
    job.wait(LONG)
    view = session.view()
    assert view.job is not None and view.job.state == "failed" and "nobody/nothing" in view.job.error
    assert view.structure is not None and len(view.structure.blocks) == 3
    session.switch([1, 2], [], [])
    assert session.view().job is None, "the next edit makes the error go away"


def test_a_remembered_recipe_is_taken_up_and_can_be_undone(bench: Workbench) -> None:
    session, model = Session(bench), open_model()
    session.adopt(model, model.recipe(RemoveBlocks(blocks=(2,))))
    view = session.view()
    assert view.structure is not None and len(view.structure.blocks) == 3 and view.history is not None
    assert view.history.can_undo


@pytest.mark.parametrize(
    "recipe",
    [
        Recipe(model=ModelReference(id="x", fingerprint="other"), edits=(RemoveBlocks(blocks=(0,)),)),
        Recipe(model=ModelReference(id="x"), edits=(RemoveMlp(blocks=(77,)),)),
    ],
)
def test_a_remembered_recipe_that_does_not_fit_is_left_out_and_said_so(bench: Workbench, recipe: Recipe) -> None:
    session = Session(bench)
    session.adopt(open_model(), recipe)
    view = session.view()
    assert view.history is not None and view.history.current.edits == () and "left out" in view.error
    measured(session)


def test_switching_parts_off_measures_the_smaller_model(session: Session) -> None:
    dense = measured(session).estimate
    session.switch([1], [0], [2])
    view = measured(session)
    assert dense is not None and view.estimate is not None
    assert view.estimate.perplexity != dense.perplexity
    assert view.estimate.dense_perplexity == pytest.approx(dense.perplexity)
    assert view.structure is not None and [spec.source for spec in view.structure.blocks] == [0, 2, 3]
    assert view.fit is not None and view.dense_fit is not None and view.fit.weights_bytes < view.dense_fit.weights_bytes


def test_undo_redo_and_reset_are_steps_with_their_numbers(session: Session) -> None:
    numbers = [measured(session).estimate.perplexity]  # type: ignore[union-attr]
    for blocks in ([1], [1, 2]):
        session.switch(blocks, [], [])
        numbers.append(measured(session).estimate.perplexity)  # type: ignore[union-attr]
    for action, expected in (
        (session.undo, numbers[1]),
        (session.undo, numbers[0]),
        (session.undo, numbers[0]),
        (session.redo, numbers[1]),
        (session.redo, numbers[2]),
        (session.reset, numbers[0]),
        (session.undo, numbers[2]),
    ):
        action()
        assert measured(session).estimate.perplexity == expected  # type: ignore[union-attr]


def test_a_newer_measurement_stops_the_older_one(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    measured(session)
    model = session.view().model
    assert model is not None
    held, evaluate, stops = Event(), model.evaluator.evaluate, []

    def slow(structure: Any, windows: Any, stop: Event) -> Any:
        stops.append(stop)
        for estimate in evaluate(structure, windows, stop):
            yield estimate
            while len(stops) == 1 and not stop.wait(0.005):
                held.set()

    monkeypatch.setattr(model.evaluator, "evaluate", slow)
    session.switch([1], [], [])
    assert held.wait(LONG)
    session.switch([1, 2], [], [])
    view = measured(session)
    assert stops[0].is_set() and not stops[1].is_set()
    expected = model.evaluator.measure(view.structure, model.windows(SMALL))  # type: ignore[arg-type]
    assert view.estimate is not None and view.estimate.perplexity == expected.perplexity


def test_errors_leave_the_recipe_as_it_was(session: Session) -> None:
    session.switch([1], [], [])
    before = session.view().history
    other = Recipe(model=ModelReference(id="x", fingerprint="feedfeedfeedfeed"))
    for action, kind in (
        (lambda: session.switch([0, 1, 2, 3], [], []), RecipeError),
        (lambda: session.switch([9], [], []), RecipeError),
        (lambda: session.narrow("maw", 0.0), InputError),
        (lambda: session.narrow("maw", 1.0, 10**6), InputError),
        (lambda: session.narrow("nobody", 1.0), InputError),
        (lambda: session.take(other), RecipeError),
        (lambda: session.set_text(TextChoice("pasted", 16, 4, content=" ")), TextError),
        (lambda: session.set_text(TextChoice("pasted", 16, 4, content="too short")), TextError),
        (lambda: session.set_target(Target("nowhere")), InputError),
        (lambda: session.set_target(Target(type="Q1")), InputError),
        (lambda: session.set_target(Target(context=0)), InputError),
    ):
        with pytest.raises(kind):
            action()
    view = session.view()
    assert view.history == before and view.text == SMALL and view.target == Target()


def test_a_method_of_the_weights_narrows_at_once(session: Session) -> None:
    assert session.narrow("maw", 0.5) is None
    view = session.view()
    assert view.structure is not None and set(view.structure.expansion_ratios) == {0.5}
    assert not view.working and view.statistics is None


def test_at_the_source_ratio_nothing_is_narrowed(session: Session) -> None:
    session.narrow("maw", 0.5)
    assert session.narrow("cfsp_fine", 99.0) is None, "no analysis is needed for that"
    view = session.view()
    assert view.history is not None and view.history.current.edits == ()


def test_a_method_that_needs_text_analyses_first_and_then_narrows(session: Session) -> None:
    assert session.narrow("cfsp_fine", 0.75) is not None
    assert session.view().pending_ratio == 0.75
    view = idle(session)
    assert view.statistics is not None and view.pending_ratio is None
    assert view.structure is not None and set(view.structure.expansion_ratios) == {0.75}
    [edit] = view.history.current.edits  # type: ignore[union-attr]
    assert edit.chosen_by is not None and edit.chosen_by.text is not None
    assert edit.chosen_by.text["source"] == "embedded" and edit.chosen_by.text["windows"] == 4
    assert session.narrow("cfsp_fine", 0.5) is None, "analysed by now"


def test_a_method_that_needs_gradients_gathers_them_and_then_narrows(session: Session) -> None:
    assert session.narrow("cfsp_fine", 0.75) is not None
    idle(session)
    assert session.narrow("taylor_first", 0.5) is not None, "the analysis alone is not enough"
    view = idle(session)
    assert view.error == "" and view.structure is not None and set(view.structure.expansion_ratios) == {0.5}
    [edit] = view.history.current.edits  # type: ignore[union-attr]
    assert edit.chosen_by is not None and edit.chosen_by.method == "taylor_first"
    assert session.narrow("taylor_mixed", 0.75) is None, "gathered by now"


def test_a_method_of_gradients_that_is_chosen_during_an_analysis_gets_them(
    session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    go = slow_analysis(session, monkeypatch)
    job = session.narrow("cfsp_fine", 0.75)
    assert session.narrow("predicted_neurons", 0.5) is job
    go.set()
    view = idle(session)
    assert view.error == "" and view.structure is not None and set(view.structure.expansion_ratios) == {0.5}


def test_of_several_moves_during_an_analysis_the_last_counts(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    go = slow_analysis(session, monkeypatch)
    job = session.narrow("cfsp_fine", 0.75)
    assert session.narrow("cfsp_fine", 0.5) is job and session.narrow("minitron", 0.25) is job
    session.switch([3], [], [])
    go.set()
    view = idle(session)
    assert view.structure is not None and set(view.structure.expansion_ratios) == {0.25}
    assert len(view.structure.blocks) == 3


@pytest.mark.parametrize("decision", ["undo", "reset", "maximum", "weights"])
def test_a_later_decision_replaces_the_waiting_one(
    session: Session, monkeypatch: pytest.MonkeyPatch, decision: str
) -> None:
    session.switch([3], [], [])
    go = slow_analysis(session, monkeypatch)
    session.narrow("cfsp_fine", 0.75)
    {
        "undo": session.undo,
        "reset": session.reset,
        "maximum": lambda: session.narrow("cfsp_fine", 99.0),
        "weights": lambda: session.narrow("maw", 0.5),
    }[decision]()
    go.set()
    view = idle(session)
    assert view.statistics is not None and view.structure is not None
    assert set(view.structure.expansion_ratios) == {0.5 if decision == "weights" else 80 / 72}


def test_a_cancelled_analysis_narrows_nothing_and_can_start_again(
    session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    go = slow_analysis(session, monkeypatch)
    session.narrow("cfsp_fine", 0.5)
    until(session, lambda view: view.job is not None and view.job.state == "running")
    begun = time.monotonic()
    session.cancel()
    view = idle(session)
    assert time.monotonic() - begun < 1
    assert view.job is not None and view.job.state == "cancelled" and view.pending_ratio is None
    assert view.structure == view.dense
    go.set()
    session.analyse()
    assert idle(session).statistics is not None


def test_a_queued_job_is_cancelled_at_once(bench: Workbench, session: Session) -> None:
    go = Event()
    bench.jobs.submit("Somebody else's", lambda job: go.wait(LONG))
    session.analyse()
    assert session.view().queue == 1
    session.cancel()
    view = session.view()
    go.set()
    assert view.job is not None and view.job.state == "cancelled" and not view.working


def test_there_is_one_heavy_job_a_session(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    go = slow_analysis(session, monkeypatch)
    session.analyse()
    for action in (session.analyse, lambda: session.open("tiny other")):
        with pytest.raises(InputError, match="still running"):
            action()
    go.set()
    idle(session)


def test_a_reloaded_page_follows_the_job_and_gets_what_it_finds(
    bench: Workbench, session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    go, model = slow_analysis(session, monkeypatch), session.view().model
    assert model is not None
    job = session.narrow("cfsp_fine", 0.5)
    assert job is not None
    again = Session(bench)
    assert again.attach(job.id) and not again.attach("unknown")
    again.adopt(model)
    assert again.view().working and again.follows(job)
    session.close(stop_job=False)
    go.set()
    view = idle(again)
    assert view.statistics is not None and view.structure is not None
    assert set(view.structure.expansion_ratios) == {0.5}


def test_a_reloaded_page_follows_the_opening_of_a_model(bench: Workbench) -> None:
    go = Event()
    bench.jobs.submit("Somebody else's", lambda job: go.wait(LONG))
    first, again = Session(bench), Session(bench)
    job = first.open("tiny new")
    assert job is not None and again.attach(job.id)
    go.set()
    view = idle(again)
    assert view.model is not None and view.model.loaded.id == "tiny new"


def test_an_analysis_that_somebody_has_done_is_shared(bench: Workbench, session: Session) -> None:
    session.analyse()
    view = idle(session)
    assert view.model is not None
    other = Session(bench)
    other.calibration = session.calibration
    other.adopt(view.model)
    assert other.view().statistics is view.statistics
    assert other.view().history is not view.history


def test_closing_stops_the_jobs(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    slow_analysis(session, monkeypatch)
    job = session.analyse()
    session.close()
    job.wait(LONG)
    assert job.state == "cancelled"


def test_another_text_is_measured_and_analysed_from_then_on(session: Session) -> None:
    before = measured(session).estimate
    session.analyse()
    idle(session)
    session.set_text(TextChoice("pasted", 16, 2, content="Some other text to measure on. " * 4))
    view = measured(session)
    assert before is not None and view.estimate is not None and view.estimate.perplexity != before.perplexity
    assert view.estimate.tokens == 2 * 15 and view.statistics is None, "the old text's analysis is not this one's"
    session.set_text(SMALL)
    assert session.calibration.windows == 16


def test_another_device_changes_the_fit_only(session: Session) -> None:
    before = session.view()
    session.set_target(Target("esp32-s3-n16r8", 128, "F32"))
    view = session.view()
    assert before.fit is not None and view.fit is not None
    assert view.fit.device == "esp32-s3-n16r8" and view.device.id == "esp32-s3-n16r8"
    assert view.fit.weights_bytes > before.fit.weights_bytes and view.history is before.history
    session.set_target(Target("raspberry-pi-5-8gb", 128, "F16", "F32"))
    wider = session.view().fit
    assert wider is not None and (wider.kv_type, wider.context) == ("F32", 128)
    with pytest.raises(InputError, match="Q9"):
        session.set_target(Target("raspberry-pi-5-8gb", 128, "F16", "Q9"))


def test_an_exported_recipe_reads_back_with_its_results(session: Session) -> None:
    session.switch([1], [], [])
    view = measured(session)
    document = json.loads(session.exported())
    assert document["edits"] == [{"op": "remove_blocks", "blocks": "1"}]
    assert view.estimate is not None
    assert document["results"]["perplexity"] == view.estimate.perplexity
    assert (document["results"]["text"], document["results"]["window"]) == ("embedded", 16)
    session.reset()
    session.take(Recipe.parse(session.exported()))
    session.take(Recipe.read(document))
    assert measured(session).estimate.perplexity == view.estimate.perplexity  # type: ignore[union-attr]


def test_an_exported_recipe_names_no_folder_of_this_computer(session: Session, tmp_path: Path) -> None:
    path = tmp_path / "mine.txt"
    path.write_text("A text of my own, long enough to be cut. " * 20)
    session.set_text(TextChoice(str(path), 16, 4))
    session.narrow("cfsp_fine", 0.5)
    idle(session)
    measured(session)
    exported = session.exported()
    assert "mine.txt" in exported and str(tmp_path) not in exported


def test_a_measurement_that_fails_says_why(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    measured(session)
    model = session.view().model
    assert model is not None

    def broken(*_: Any) -> Any:
        raise MemoryError
        yield

    monkeypatch.setattr(model.evaluator, "evaluate", broken)
    session.switch([1], [], [])
    view = until(session, lambda view: bool(view.measure_error))
    assert "memory" in view.measure_error and not view.measured


def test_a_change_raises_the_version_and_looking_does_not(session: Session) -> None:
    measured(session)
    before = session.view().version
    assert session.view().version == before
    session.switch([1], [], [])
    assert session.view().version > before
