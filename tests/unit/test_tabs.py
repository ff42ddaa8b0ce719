"""Tabs of the page: sent is what changed, freed is what is closed, and a job outlives a page that is reloaded."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from threading import Event
from typing import Any

import gradio as gr
import pytest

from surgery.errors import NoNetwork
from surgery.recipe.texts import TextChoice
from surgery.session.state import Target
from surgery.workbench import workbench
from surgery.workbench.workbench import Workbench
from tests.tiny_workbench import loaded
from ui.handlers import BUSY_TICK, IDLE_TICK
from ui.panels import quantise as quantise_panel
from ui.panels.tool_handlers import ToolHandlers
from ui.presenters import suggest_form as forms
from ui.tabs import Sessions, Tab
from ui.widgets.ratio import Ratio

PICKS = ("cfsp_fine", "entropy")
PARTS = [
    *("tab", "source", "status", "spoken", "tiles", "removed", "fit_table", "undo", "redo", "reset"),
    *("export", "import"),
    *("analyse", "cancel", "kept", "timer", "map", "slider", "device", "chart_note", "answer"),
    *(f"chart_{name}" for name in ("blocks", "sublayers", "runs", "neurons", "heads", "predicted")),
    *("suggestion", "suggest_take", "suggest_discard"),
    *("suggest", "scan", "build", "least_squares", "linear_patch", "bias", "compensation", "compute", "scan_note"),
    *("build_note", "download", "suggest_unit", "suggest_note", "quantise_words", "quantise_table"),
    *("quantise_format", "quantise_rank", "compute_quantisation"),
    *(f"quantise_{name}" for name in quantise_panel.CONTROLS),
    *(f"amount_{name}" for name in forms.AMOUNTS),
    *(f"rule_{name}" for name in forms.RULES),
]
LONG = 30.0


@pytest.fixture
def handlers(monkeypatch: pytest.MonkeyPatch) -> Iterator[ToolHandlers]:
    def load(source: str, *rest: Any) -> Any:
        if source != "default":
            raise NoNetwork(f"{source} is not in the local cache.")
        return loaded(name=source)

    monkeypatch.setattr(workbench, "load", load)
    bench = Workbench()
    made = ToolHandlers(Sessions(bench, grace=0.05))
    made.parts = {name: name for name in PARTS}
    yield made
    bench.jobs.close()


def opened(handlers: ToolHandlers, kept: Any = None) -> tuple[str, Tab]:
    """A tab with a measured model, as the browser has it."""
    identity = handlers.load(kept, *PICKS)["tab"]
    tab = handlers.sessions.get(identity)
    assert tab is not None
    tab.session.state.text = TextChoice(window=16, windows=2)
    until(lambda: tab.session.view().model is not None)
    tab.session.state.calibration = TextChoice(window=16, windows=2, purpose="calibration")
    settle(handlers, identity)
    return identity, tab


def tick(handlers: ToolHandlers, identity: str) -> dict[str, Any]:
    """A tick of a browser that shows the last answer."""
    return handlers.tick(identity, *shown(handlers, identity), *PICKS)


def shown(handlers: ToolHandlers, identity: str) -> tuple[str, Any, Any]:
    """What such a browser shows."""
    tab = handlers.sessions.get(identity)
    assert tab is not None
    return tab.answer, tab.sent.get("map_value"), tab.sent.get("slider", (None,))[0]


def settle(handlers: ToolHandlers, identity: str) -> dict[str, Any]:
    """Tick as the browser does until nothing is under way; everything that was sent."""
    tab, sent = handlers.sessions.get(identity), {}
    assert tab is not None
    until(lambda: not (v := tab.session.view()).working and not v.measure.measuring)
    sent.update(tick(handlers, identity))
    return sent


def rest(handlers: ToolHandlers, identity: str) -> None:
    """Tick until the browser is known to show everything."""
    tab = handlers.sessions.get(identity)
    assert tab is not None
    until(lambda: not tab.session.busy)
    until(lambda: set(tick(handlers, identity)) == {"status"} and not tab.unconfirmed)


def until(reached: Callable[[], bool]) -> None:
    end = time.monotonic() + LONG
    while not reached():
        assert time.monotonic() < end, "it takes too long"
        time.sleep(0.005)


def test_a_new_tab_gets_everything_once(handlers: ToolHandlers) -> None:
    identity, tab = opened(handlers)
    until(lambda: not tab.session.busy)
    tick(handlers, identity)
    assert set(tick(handlers, identity)) == {"status"}, "nothing has changed, so nothing is sent"
    assert tab.sent["timer"] == IDLE_TICK and tab.sent["undo"] is False and tab.sent["export"] is True
    assert "press Analyse" in tab.sent["chart_note"]


def test_answers_that_overtook_each_other_are_sent_again(handlers: ToolHandlers) -> None:
    identity, tab = opened(handlers)
    rest(handlers, identity)
    before = tab.answer
    newest = handlers.switch(identity, {"blocks": [1], "attention": [], "mlp": []}, *PICKS)["answer"]
    assert int(newest) == int(before) + 1
    settle(handlers, identity)
    until(lambda: not tab.session.busy)
    tick(handlers, identity)
    _, *inputs = shown(handlers, identity)
    assert "removed" not in handlers.tick(identity, before, *inputs, *PICKS), "an answer may still be under way"
    assert "removed" not in handlers.tick(identity, before, *inputs, *PICKS), "it was sent a moment ago"
    tab.answered = 0.0
    again = handlers.tick(identity, before, *inputs, *PICKS)
    assert {"status", "tiles", "removed", "undo", "timer"} <= set(again) and "slider" not in again
    assert set(tick(handlers, identity)) == {"status"}


def test_answers_that_may_have_changed_places_before_the_last_one_are_sent_again(handlers: ToolHandlers) -> None:
    identity, tab = opened(handlers)
    rest(handlers, identity)
    first = handlers.switch(identity, {"blocks": [1], "attention": [], "mlp": []}, *PICKS)
    second = handlers.switch(identity, {"blocks": [1, 2], "attention": [], "mlp": []}, *PICKS)
    assert "export" not in first and "undo" in first and "undo" not in second, (
        "the first may arrive last, with its tiles over the second's"
    )
    settle(handlers, identity)
    until(lambda: not tab.session.busy)
    tick(handlers, identity)
    assert tab.sent["timer"] == BUSY_TICK, "not before the browser is known to show everything"
    again = tick(handlers, identity)
    assert {"tiles", "removed", "undo", "timer"} <= set(again)
    assert not {"map", "slider", "device", "export"} & set(again), "only what was sent since it showed everything"
    assert tab.sent["timer"] == IDLE_TICK
    assert set(tick(handlers, identity)) == {"status"}


def test_a_map_or_slider_that_shows_something_else_is_put_right_when_no_hand_is_on_it(handlers: ToolHandlers) -> None:
    identity, tab = opened(handlers)
    rest(handlers, identity)
    handlers.switch(identity, {"blocks": [1], "attention": [], "mlp": []}, *PICKS)
    settle(handlers, identity)
    wrong = {"blocks": [], "attention": [], "mlp": []}
    for _ in range(2):
        update = handlers.tick(identity, tab.answer, wrong, 50, *PICKS)
        assert "map" not in update and "slider" not in update, "more clicks may be under way"
    tab.moved = 0.0
    update = handlers.tick(identity, tab.answer, wrong, 50, *PICKS)
    assert update["map"].value["blocks"] == [1] and update["slider"].value == 112
    assert set(tick(handlers, identity)) == {"status"}


def test_a_click_sends_numbers_but_not_the_click_itself(handlers: ToolHandlers) -> None:
    identity, tab = opened(handlers)
    update = handlers.switch(identity, {"blocks": [1], "attention": [], "mlp": []}, *PICKS)
    assert "map" not in update and {"tiles", "removed", "undo", "kept"} <= set(update)
    assert tab.sent["timer"] == BUSY_TICK
    assert "map" not in settle(handlers, identity)
    update = handlers.undo(identity, *PICKS)
    assert update["map"].value == {"blocks": [], "attention": [], "mlp": []}


def test_a_click_that_is_refused_is_taken_back_on_the_map(handlers: ToolHandlers) -> None:
    identity, _ = opened(handlers)
    update = handlers.switch(identity, {"blocks": [0, 1, 2, 3], "attention": [], "mlp": []}, *PICKS)
    assert "every block" in update["status"] and update["map"].value["blocks"] == []


def test_the_slider_is_not_moved_under_the_hand(handlers: ToolHandlers) -> None:
    identity, _ = opened(handlers)
    update = handlers.narrow(identity, 60, "maw", 32, *PICKS)
    assert "slider" not in update and "map" in update, "the map shows the narrower MLPs"
    update = handlers.undo(identity, *PICKS)
    assert update["slider"].value == update["slider"].maximum == 112
    assert handlers.narrow(identity, 0, "maw", 1, *PICKS)["slider"].value == 112, "a refused number is taken back"


def test_another_method_is_applied_only_to_narrowed_mlps(handlers: ToolHandlers) -> None:
    identity, tab = opened(handlers)
    handlers.narrow_otherwise(identity, "maw", 8, *PICKS)
    assert tab.session.view().history.current.edits == ()  # type: ignore[union-attr]
    handlers.narrow(identity, 60, "maw", 1, *PICKS)
    handlers.narrow_otherwise(identity, "l2", 8, *PICKS)
    [edit] = tab.session.view().history.current.edits  # type: ignore[union-attr]
    assert edit.chosen_by is not None and edit.chosen_by.method == "l2"
    assert edit.chosen_by.budget == {"expansion_ratio": 0.6, "divisor": 8}


def test_charts_are_drawn_when_the_analysis_ends_and_when_their_tab_opens(handlers: ToolHandlers) -> None:
    identity, tab = opened(handlers)
    assert "chart_runs" not in handlers.draw(identity, "runs", *PICKS) or tab.sent["table_runs"] == ""
    handlers.analyse(identity, *PICKS)
    sent = settle(handlers, identity)
    assert sent["chart_runs"] is not None and "chart_blocks" not in sent and "<table" in tab.sent["chart_note"]
    assert handlers.draw(identity, "heads", *PICKS)["chart_heads"] is not None
    assert "chart_heads" not in handlers.draw(identity, "heads", *PICKS), "it is drawn already"
    assert "chart_heads" in handlers.draw(identity, "heads", "cfsp_fine", "output_norm")
    assert "chart_neurons" in handlers.draw(identity, "neurons", "maw", "entropy")


def test_a_page_that_is_not_loaded_yet_or_no_longer_known_is_told_so(handlers: ToolHandlers) -> None:
    assert set(handlers.draw("", "blocks", *PICKS)) == {"chart_note"}
    update = handlers.tick("nobody", "", {}, None, *PICKS)
    assert "reload the page" in update["status"] and update["timer"].active is False
    with pytest.raises(Exception, match="reload the page"):
        handlers.undo("nobody", *PICKS)


def test_a_tab_may_be_closed_while_its_look_waits_for_a_number(
    handlers: ToolHandlers, monkeypatch: pytest.MonkeyPatch
) -> None:
    identity, tab = opened(handlers)
    monkeypatch.setattr(tab.session.measure, "wait_for_number", lambda seconds: handlers.sessions.free(identity))
    answer, *inputs = shown(handlers, identity)
    assert handlers.tick(identity, answer, *inputs, *PICKS) is not None
    assert handlers.sessions.get(identity) is None
    with pytest.raises(gr.Error, match="reload the page") as caught:
        handlers.undo(identity, *PICKS)
    assert not caught.value.print_exception, "the server's log needs no traceback of a closed tab"


def test_an_unforeseen_error_is_one_sentence(handlers: ToolHandlers, monkeypatch: pytest.MonkeyPatch) -> None:
    identity, tab = opened(handlers)

    def broken() -> None:
        raise ZeroDivisionError("secret path")

    monkeypatch.setattr(tab.session.edit, "reset", broken)
    status = handlers.reset(identity, *PICKS)["status"]
    assert "Something unforeseen went wrong (ZeroDivisionError)" in status and "secret" not in status


def test_a_reloaded_page_has_its_recipe(handlers: ToolHandlers) -> None:
    identity, tab = opened(handlers)
    handlers.switch(identity, {"blocks": [2], "attention": [], "mlp": [1]}, *PICKS)
    kept = tab.sent["kept"]
    update = handlers.load(kept, *PICKS)
    assert update["map"].value == {"blocks": [2], "attention": [], "mlp": [1]} and update["source"] == "default"


def test_a_remembered_model_that_cannot_be_opened_is_said(handlers: ToolHandlers) -> None:
    identity = handlers.load({"source": "somebody/else"}, *PICKS)["tab"]
    tab = handlers.sessions.get(identity)
    assert tab is not None
    until(lambda: not tab.session.view().working)
    tick(handlers, identity)
    assert "somebody/else is not in the local cache" in tab.sent["status"] and "alert" in tab.sent["status"]


def _waiting_job(handlers: ToolHandlers, identity: str, monkeypatch: pytest.MonkeyPatch) -> Any:
    def statistics(model: Any, windows: Any, report: Any) -> None:
        while True:
            Event().wait(0.005)
            report(0.5, "waiting")

    monkeypatch.setattr(workbench.OpenModel, "statistics", statistics)
    handlers.analyse(identity, *PICKS)
    tab = handlers.sessions.get(identity)
    assert tab is not None
    return tab.session.view().job


def test_a_closed_tab_is_freed_and_its_job_stopped(handlers: ToolHandlers, monkeypatch: pytest.MonkeyPatch) -> None:
    identity, _ = opened(handlers)
    job = _waiting_job(handlers, identity, monkeypatch)
    handlers.sessions.free(identity)
    handlers.sessions.free(identity)
    handlers.sessions.free("nobody")
    assert len(handlers.sessions) == 0 and handlers.sessions.get(identity) is None
    until(lambda: job.over)
    assert job.state == "cancelled"


def test_a_job_that_a_reloaded_page_follows_goes_on(handlers: ToolHandlers, monkeypatch: pytest.MonkeyPatch) -> None:
    identity, tab = opened(handlers)
    job = _waiting_job(handlers, identity, monkeypatch)
    tick(handlers, identity)
    assert tab.sent["kept"]["job"] == job.id
    handlers.sessions.free(identity)
    again = handlers.load(tab.sent["kept"], *PICKS)
    assert "progressbar" in again["status"]
    assert not job.stop.wait(0.3), "somebody looks at it"
    handlers.cancel(again["tab"], *PICKS)
    until(lambda: job.over)


def test_an_own_device_is_chosen_and_listed(handlers: ToolHandlers, tmp_path: Any) -> None:
    identity, tab = opened(handlers)
    own = tmp_path / "own.json"
    document = handlers.sessions.bench.devices.get(Target().device).model_dump_json(by_alias=True)
    own.write_text(document.replace('"Raspberry Pi 5, 8 GB"', '"Mine"'))
    update = handlers.own_device(identity, str(own), 1024, "F16", "F16", *PICKS)
    assert ("Mine", str(own)) in update["device"].choices and "Mine" in update["tiles"]
    own.unlink()
    handlers.switch(identity, {"blocks": [1], "attention": [], "mlp": []}, *PICKS)
    assert "Mine" in tab.sent["tiles"], "the device stays when its file is gone"
    assert "device" not in handlers.own_device(identity, None, 1024, "F16", "F16", *PICKS)


def test_a_number_typed_into_the_slider_is_brought_into_its_range(handlers: ToolHandlers) -> None:
    slider = Ratio(10, 267)
    assert [slider.preprocess(number) for number in (1, 150, 999, -3, None)] == [10, 150, 267, 10, None]
    identity, tab = opened(handlers)
    handlers.narrow(identity, None, "maw", 1, *PICKS)
    assert tab.session.view().history.current.edits == ()  # type: ignore[union-attr]
