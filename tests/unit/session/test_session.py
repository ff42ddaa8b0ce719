"""A session on a tiny model: edits, measurements, the analysis, texts, devices, jobs; errors change nothing."""

from __future__ import annotations

import gc
import json
import time
import weakref
from pathlib import Path
from threading import Event, Timer
from typing import Any

import pytest

from surgery.errors import InputError, RecipeError, TextError
from surgery.recipe.base import ModelReference
from surgery.recipe.edits import RemoveBlocks, RemoveMlp
from surgery.recipe.recipe import Recipe
from surgery.recipe.texts import TextChoice
from surgery.session.session import Session
from surgery.session.state import Target
from surgery.workbench.open_model import OpenModel
from surgery.workbench.workbench import Workbench
from tests.crowding import slowed
from tests.sessions import LONG, SMALL, idle, measured, opened, until
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
    assert view.model is None and view.fit.now is None and view.measure.estimate is None and not session.jobs.busy
    for action in (
        session.edit.undo,
        session.edit.reset,
        session.analyse.start,
        session.build.exported,
        lambda: session.edit.switch([], [], []),
    ):
        with pytest.raises(InputError, match="No model is open"):
            action()


def test_opening_a_model_measures_it(bench: Workbench) -> None:
    session = Session(bench)
    session.state.text = SMALL
    job = session.edit.open(" tiny ")
    assert job is not None
    job.wait(LONG)
    view = measured(session)
    assert view.model is not None and view.model.loaded.id == "tiny"
    assert (
        view.measure.estimate is not None
        and view.measure.estimate.difference == 0
        and view.measure.estimate.tokens == 3 * 15
    )


def test_a_model_that_is_open_already_is_there_at_once(bench: Workbench) -> None:
    first = Session(bench)
    job = first.edit.open("tiny")
    assert job is not None
    job.wait(LONG)
    second = Session(bench)
    assert second.edit.open("tiny") is None
    assert second.view().model is first.view().model


def test_a_model_that_cannot_be_opened_leaves_the_old_one(session: Session) -> None:
    session.edit.switch([1], [], [])
    job = session.edit.open("nobody/nothing")
    assert job is not None
    job.wait(LONG)
    view = session.view()
    assert view.job is not None and view.job.state == "failed" and "nobody/nothing" in view.job.error
    assert view.structure is not None and len(view.structure.blocks) == 3
    session.edit.switch([1, 2], [], [])
    assert session.view().job is None, "the next edit makes the error go away"


def test_a_remembered_recipe_is_taken_up_and_can_be_undone(bench: Workbench) -> None:
    session, model = Session(bench), open_model()
    session.edit.adopt(model, model.recipe(RemoveBlocks(blocks=(2,))))
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
    session.edit.adopt(open_model(), recipe)
    view = session.view()
    assert view.history is not None and view.history.current.edits == () and "left out" in view.error
    measured(session)


def test_switching_parts_off_measures_the_smaller_model(session: Session) -> None:
    dense = measured(session).measure.estimate
    session.edit.switch([1], [0], [2])
    view = measured(session)
    assert dense is not None and view.measure.estimate is not None
    assert view.measure.estimate.perplexity != dense.perplexity
    assert view.measure.estimate.dense_perplexity == pytest.approx(dense.perplexity)
    assert view.structure is not None and [spec.source for spec in view.structure.blocks] == [0, 2, 3]
    assert (
        view.fit.now is not None
        and view.fit.dense is not None
        and view.fit.now.weights_bytes < view.fit.dense.weights_bytes
    )


def test_undo_redo_and_reset_are_steps_with_their_numbers(session: Session) -> None:
    numbers = [measured(session).measure.estimate.perplexity]  # type: ignore[union-attr]
    for blocks in ([1], [1, 2]):
        session.edit.switch(blocks, [], [])
        numbers.append(measured(session).measure.estimate.perplexity)  # type: ignore[union-attr]
    for action, expected in (
        (session.edit.undo, numbers[1]),
        (session.edit.undo, numbers[0]),
        (session.edit.undo, numbers[0]),
        (session.edit.redo, numbers[1]),
        (session.edit.redo, numbers[2]),
        (session.edit.reset, numbers[0]),
        (session.edit.undo, numbers[2]),
    ):
        action()
        assert measured(session).measure.estimate.perplexity == expected  # type: ignore[union-attr]


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
    session.edit.switch([1], [], [])
    assert held.wait(LONG)
    session.edit.switch([1, 2], [], [])
    view = measured(session)
    assert stops[0].is_set() and not stops[1].is_set()
    expected = model.evaluator.measure(view.structure, model.windows(SMALL))  # type: ignore[arg-type]
    assert view.measure.estimate is not None and view.measure.estimate.perplexity == expected.perplexity


def test_errors_leave_the_recipe_as_it_was(session: Session) -> None:
    session.edit.switch([1], [], [])
    before = session.view().history
    other = Recipe(model=ModelReference(id="x", fingerprint="feedfeedfeedfeed"))
    for action, kind in (
        (lambda: session.edit.switch([0, 1, 2, 3], [], []), RecipeError),
        (lambda: session.edit.switch([9], [], []), RecipeError),
        (lambda: session.analyse.narrow("maw", 0.0), InputError),
        (lambda: session.analyse.narrow("maw", 1.0, 10**6), InputError),
        (lambda: session.analyse.narrow("nobody", 1.0), InputError),
        (lambda: session.edit.take(other), RecipeError),
        (lambda: session.edit.set_text(TextChoice("pasted", 16, 4, content=" ")), TextError),
        (lambda: session.edit.set_text(TextChoice("pasted", 16, 4, content="too short")), TextError),
        (lambda: session.edit.set_target(Target("nowhere")), InputError),
        (lambda: session.edit.set_target(Target(type="Q1")), InputError),
        (lambda: session.edit.set_target(Target(context=0)), InputError),
    ):
        with pytest.raises(kind):
            action()
    view = session.view()
    assert view.history == before and view.text == SMALL and view.target == Target()


def test_a_method_of_the_weights_narrows_at_once(session: Session) -> None:
    assert session.analyse.narrow("maw", 0.5) is None
    view = session.view()
    assert view.structure is not None and set(view.structure.expansion_ratios) == {0.5}
    assert not view.working and view.analyse.statistics is None


def test_at_the_source_ratio_nothing_is_narrowed(session: Session) -> None:
    session.analyse.narrow("maw", 0.5)
    assert session.analyse.narrow("cfsp_fine", 99.0) is None, "no analysis is needed for that"
    view = session.view()
    assert view.history is not None and view.history.current.edits == ()


def test_a_method_that_needs_text_analyses_first_and_then_narrows(session: Session) -> None:
    assert session.analyse.narrow("cfsp_fine", 0.75) is not None
    assert session.view().analyse.pending_ratio == 0.75
    view = idle(session)
    assert view.analyse.statistics is not None and view.analyse.pending_ratio is None
    assert view.structure is not None and set(view.structure.expansion_ratios) == {0.75}
    [edit] = view.history.current.edits  # type: ignore[union-attr]
    assert edit.chosen_by is not None and edit.chosen_by.text is not None
    assert edit.chosen_by.text["source"] == "embedded" and edit.chosen_by.text["windows"] == 4
    assert session.analyse.narrow("cfsp_fine", 0.5) is None, "analysed by now"


def test_a_method_that_needs_gradients_gathers_them_and_then_narrows(session: Session) -> None:
    assert session.analyse.narrow("cfsp_fine", 0.75) is not None
    idle(session)
    assert session.analyse.narrow("taylor_first", 0.5) is not None, "the analysis alone is not enough"
    view = idle(session)
    assert view.error == "" and view.structure is not None and set(view.structure.expansion_ratios) == {0.5}
    [edit] = view.history.current.edits  # type: ignore[union-attr]
    assert edit.chosen_by is not None and edit.chosen_by.method == "taylor_first"
    assert session.analyse.narrow("taylor_mixed", 0.75) is None, "gathered by now"


def test_a_method_of_gradients_that_is_chosen_during_an_analysis_gets_them(
    session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    go = slow_analysis(session, monkeypatch)
    job = session.analyse.narrow("cfsp_fine", 0.75)
    assert session.analyse.narrow("predicted_neurons", 0.5) is job
    go.set()
    view = idle(session)
    assert view.error == "" and view.structure is not None and set(view.structure.expansion_ratios) == {0.5}


def test_of_several_moves_during_an_analysis_the_last_counts(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    go = slow_analysis(session, monkeypatch)
    job = session.analyse.narrow("cfsp_fine", 0.75)
    assert session.analyse.narrow("cfsp_fine", 0.5) is job and session.analyse.narrow("minitron", 0.25) is job
    session.edit.switch([3], [], [])
    go.set()
    view = idle(session)
    assert view.structure is not None and set(view.structure.expansion_ratios) == {0.25}
    assert len(view.structure.blocks) == 3


@pytest.mark.parametrize("decision", ["undo", "reset", "maximum", "weights"])
def test_a_later_decision_replaces_the_waiting_one(
    session: Session, monkeypatch: pytest.MonkeyPatch, decision: str
) -> None:
    session.edit.switch([3], [], [])
    go = slow_analysis(session, monkeypatch)
    session.analyse.narrow("cfsp_fine", 0.75)
    {
        "undo": session.edit.undo,
        "reset": session.edit.reset,
        "maximum": lambda: session.analyse.narrow("cfsp_fine", 99.0),
        "weights": lambda: session.analyse.narrow("maw", 0.5),
    }[decision]()
    go.set()
    view = idle(session)
    assert view.analyse.statistics is not None and view.structure is not None
    assert set(view.structure.expansion_ratios) == {0.5 if decision == "weights" else 80 / 72}


def test_a_cancelled_analysis_narrows_nothing_and_can_start_again(
    session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    go = slow_analysis(session, monkeypatch)
    session.analyse.narrow("cfsp_fine", 0.5)
    until(session, lambda view: view.job is not None and view.job.state == "running")
    begun = time.monotonic()
    session.cancel()
    view = idle(session)
    took = time.monotonic() - begun
    assert took < slowed()
    assert view.job is not None and view.job.state == "cancelled" and view.analyse.pending_ratio is None
    assert view.structure == view.dense
    go.set()
    session.analyse.start()
    assert idle(session).analyse.statistics is not None


def test_a_queued_job_is_cancelled_at_once(bench: Workbench, session: Session) -> None:
    go = Event()
    bench.jobs.submit("Somebody else's", lambda job: go.wait(LONG))
    session.analyse.start()
    assert session.view().queue == 1
    session.cancel()
    view = session.view()
    go.set()
    assert view.job is not None and view.job.state == "cancelled" and not view.working


def test_there_is_one_heavy_job_a_session(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    go = slow_analysis(session, monkeypatch)
    session.analyse.start()
    for action in (session.analyse.start, lambda: session.edit.open("tiny other")):
        with pytest.raises(InputError, match="still running"):
            action()
    go.set()
    idle(session)


def test_a_reloaded_page_follows_the_job_and_gets_what_it_finds(
    bench: Workbench, session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    go, model = slow_analysis(session, monkeypatch), session.view().model
    assert model is not None
    job = session.analyse.narrow("cfsp_fine", 0.5)
    assert job is not None
    again = Session(bench)
    assert again.attach(job.id) and not again.attach("unknown")
    again.edit.adopt(model)
    assert again.view().working and again.jobs.follows(job)
    session.close(stop_job=False)
    go.set()
    view = idle(again)
    assert view.analyse.statistics is not None and view.structure is not None
    assert set(view.structure.expansion_ratios) == {0.5}


def test_a_reloaded_page_follows_the_opening_of_a_model(bench: Workbench) -> None:
    go = Event()
    bench.jobs.submit("Somebody else's", lambda job: go.wait(LONG))
    first, again = Session(bench), Session(bench)
    job = first.edit.open("tiny new")
    assert job is not None and again.attach(job.id)
    go.set()
    view = idle(again)
    assert view.model is not None and view.model.loaded.id == "tiny new"


def test_an_analysis_that_somebody_has_done_is_shared(bench: Workbench, session: Session) -> None:
    session.analyse.start()
    view = idle(session)
    assert view.model is not None
    other = Session(bench)
    other.state.calibration = session.state.calibration
    other.edit.adopt(view.model)
    assert other.view().analyse.statistics is view.analyse.statistics
    assert other.view().history is not view.history


def test_closing_stops_the_jobs(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    slow_analysis(session, monkeypatch)
    job = session.analyse.start()
    session.close()
    job.wait(LONG)
    assert job.state == "cancelled"


def test_a_closed_session_lets_its_model_go_without_the_garbage_collector(bench: Workbench) -> None:
    model = open_model()
    session = opened(bench, model)
    measured(session)
    model_left, state_left = weakref.ref(model), weakref.ref(session.state)
    gc.collect()
    gc.disable()
    try:
        session.close()
        del session, model
        end = time.monotonic() + 5.0
        while (model_left() or state_left()) and time.monotonic() < end:  # the measuring thread may be about to end
            time.sleep(0.005)
        assert model_left() is None and state_left() is None
    finally:
        gc.enable()


def test_another_text_is_measured_and_analysed_from_then_on(session: Session) -> None:
    before = measured(session).measure.estimate
    session.analyse.start()
    idle(session)
    session.edit.set_text(TextChoice("pasted", 16, 2, content="Some other text to measure on. " * 4))
    view = measured(session)
    assert (
        before is not None
        and view.measure.estimate is not None
        and view.measure.estimate.perplexity != before.perplexity
    )
    assert view.measure.estimate.tokens == 2 * 15 and view.analyse.statistics is None, (
        "the old text's analysis is not this one's"
    )
    session.edit.set_text(SMALL)
    assert session.state.calibration.windows == 16


def test_another_device_changes_the_fit_only(session: Session) -> None:
    before = session.view()
    session.edit.set_target(Target("esp32-s3-n16r8", 128, "F32"))
    view = session.view()
    assert before.fit.now is not None and view.fit.now is not None
    assert view.fit.now.device == "esp32-s3-n16r8" and view.device.id == "esp32-s3-n16r8"
    assert view.fit.now.weights_bytes > before.fit.now.weights_bytes and view.history is before.history
    session.edit.set_target(Target("raspberry-pi-5-8gb", 128, "F16", "F32"))
    wider = session.view().fit.now
    assert wider is not None and (wider.kv_type, wider.context) == ("F32", 128)
    with pytest.raises(InputError, match="Q9"):
        session.edit.set_target(Target("raspberry-pi-5-8gb", 128, "F16", "Q9"))


def test_an_exported_recipe_reads_back_with_its_results(session: Session) -> None:
    session.edit.switch([1], [], [])
    view = measured(session)
    document = json.loads(session.build.exported())
    assert document["edits"] == [{"op": "remove_blocks", "blocks": "1"}]
    assert view.measure.estimate is not None
    assert document["results"]["perplexity"] == view.measure.estimate.perplexity
    assert (document["results"]["text"], document["results"]["window"]) == ("embedded", 16)
    session.edit.reset()
    session.edit.take(Recipe.parse(session.build.exported()))
    session.edit.take(Recipe.read(document))
    assert measured(session).measure.estimate.perplexity == view.measure.estimate.perplexity  # type: ignore[union-attr]


def test_an_exported_recipe_names_no_folder_of_this_computer(session: Session, tmp_path: Path) -> None:
    path = tmp_path / "mine.txt"
    path.write_text("A text of my own, long enough to be cut. " * 20)
    session.edit.set_text(TextChoice(str(path), 16, 4))
    session.analyse.narrow("cfsp_fine", 0.5)
    idle(session)
    measured(session)
    exported = session.build.exported()
    assert "mine.txt" in exported and str(tmp_path) not in exported


def test_a_measurement_that_fails_says_why(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    measured(session)
    model = session.view().model
    assert model is not None

    def broken(*_: Any) -> Any:
        raise MemoryError
        yield

    monkeypatch.setattr(model.evaluator, "evaluate", broken)
    session.edit.switch([1], [], [])
    view = until(session, lambda view: bool(view.measure.error))
    assert "memory" in view.measure.error and not view.measure.measured


def held(session: Session, monkeypatch: pytest.MonkeyPatch) -> Event:
    """Starts a measurement of a smaller model that waits for the returned event, and then fails."""
    go, model = Event(), session.view().model
    assert model is not None
    evaluate = model.evaluator.evaluate

    def broken(structure: Any, windows: Any, stop: Event) -> Any:
        if len(structure.blocks) < len(model.architecture.blocks):
            assert go.wait(LONG)
            raise MemoryError
        yield from evaluate(structure, windows, stop)

    monkeypatch.setattr(model.evaluator, "evaluate", broken)
    session.edit.switch([1], [], [])
    return go


def waited(session: Session, seconds: float = LONG) -> float:
    begun = time.monotonic()
    session.measure.wait_for_number(seconds)
    return time.monotonic() - begun


def test_a_wait_for_a_number_ends_with_a_number_with_the_measurement_and_with_its_time(
    session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert waited(session) < 1, "nothing is measured"
    go = held(session, monkeypatch)
    assert 0.2 <= waited(session, 0.2) < 1
    later = Timer(0.1, go.set)
    later.start()
    assert 0.05 < waited(session) < 5 and session.view().measure.error, "a measurement that fails gives no number"
    session.edit.undo()
    measured(session)
    go = held(session, monkeypatch)
    later = Timer(0.1, session.edit.undo)
    later.start()
    assert 0.05 < waited(session) < 5
    go.set()


def test_a_wait_for_a_number_ends_when_a_heavy_job_begins(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    measured_, analysed = held(session, monkeypatch), slow_analysis(session, monkeypatch)
    later = Timer(0.1, session.analyse.start)
    later.start()
    assert 0.05 < waited(session) < 5 and session.jobs.heavy
    assert waited(session) < 1
    measured_.set()
    analysed.set()
    idle(session)


def test_a_change_raises_the_version_and_looking_does_not(session: Session) -> None:
    measured(session)
    before = session.view().version
    assert session.view().version == before
    session.edit.switch([1], [], [])
    assert session.view().version > before
