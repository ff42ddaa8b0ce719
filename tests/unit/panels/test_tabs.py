"""Tabs of the page: sent is what changed, freed is what is closed, and a job outlives a page that is reloaded."""

from __future__ import annotations

from collections.abc import Iterator
from threading import Event
from typing import Any

import gradio as gr
import pytest

from surgery.errors import NoNetwork
from surgery.recipe.texts import TextChoice
from surgery.session.state import Target
from surgery.workbench import workbench
from surgery.workbench.workbench import Workbench
from tests.events import Page, until
from tests.tiny_workbench import loaded
from ui.handlers import BUSY_TICK, IDLE_TICK
from ui.tabs import Sessions, Tab
from ui.widgets.ratio import Ratio

PICKS = ("cfsp_fine", "entropy")


@pytest.fixture
def page(monkeypatch: pytest.MonkeyPatch) -> Iterator[Page]:
    def load(source: str, *rest: Any) -> Any:
        if source != "default":
            raise NoNetwork(f"{source} is not in the local cache.")
        return loaded(name=source)

    monkeypatch.setattr(workbench, "load", load)
    bench = Workbench()
    yield Page(Sessions(bench, grace=0.05))
    bench.jobs.close()


def opened(page: Page, kept: Any = None) -> tuple[str, Tab]:
    """A tab with a measured model, as the browser has it."""
    identity = page.load(kept)["state"]
    tab = page.tab(identity)
    tab.session.state.text = TextChoice(window=16, windows=2)
    until(lambda: tab.session.view().model is not None)
    tab.session.state.calibration = TextChoice(window=16, windows=2, purpose="calibration")
    page.settle(identity)
    return identity, tab


def test_a_new_tab_gets_everything_once(page: Page) -> None:
    identity, tab = opened(page)
    until(lambda: not tab.session.jobs.busy)
    page.look(identity)
    assert set(page.look(identity)) == {"answer"}, "nothing has changed, so nothing is sent"
    assert (
        page.has(identity, "timer") == IDLE_TICK
        and not page.has(identity, "undo")["interactive"]
        and page.has(identity, "export")["interactive"]
    )
    assert "press Analyse" in page.has(identity, "chart-note")


def test_answers_that_overtook_each_other_are_sent_again(page: Page) -> None:
    identity, tab = opened(page)
    page.rest(identity)
    before = tab.answer
    newest = page.fire("map", "input", identity, {"blocks": [1], "attention": [], "mlp": []})["answer"]
    assert int(newest) == int(before) + 1
    page.settle(identity)
    until(lambda: not tab.session.jobs.busy)
    page.look(identity)
    shown = page.shown(identity) | {"answer": before}
    assert "removed" not in page.tick(identity, **shown), "an answer may still be under way"
    assert "removed" not in page.tick(identity, **shown), "it was sent a moment ago"
    tab.answered = 0.0
    again = page.tick(identity, **shown)
    assert {"status", "tiles", "removed", "undo", "timer"} <= set(again) and "ratio" not in again
    assert set(page.look(identity)) == {"answer"}


def test_answers_that_may_have_changed_places_before_the_last_one_are_sent_again(page: Page) -> None:
    identity, tab = opened(page)
    page.rest(identity)
    first = page.fire("map", "input", identity, {"blocks": [1], "attention": [], "mlp": []})
    second = page.fire("map", "input", identity, {"blocks": [1, 2], "attention": [], "mlp": []})
    assert "export" not in first and "undo" in first and "undo" not in second, (
        "the first may arrive last, with its tiles over the second's"
    )
    page.settle(identity)
    until(lambda: not tab.session.jobs.busy)
    page.look(identity)
    assert page.has(identity, "timer") == BUSY_TICK, "not before the browser is known to show everything"
    again = page.look(identity)
    assert {"tiles", "removed", "undo", "timer"} <= set(again)
    assert not {"map", "ratio", "device", "export"} & set(again), "only what was sent since it showed everything"
    assert page.has(identity, "timer") == IDLE_TICK
    assert set(page.look(identity)) == {"answer"}


def test_a_map_or_slider_that_shows_something_else_is_put_right_when_no_hand_is_on_it(page: Page) -> None:
    identity, tab = opened(page)
    page.rest(identity)
    page.fire("map", "input", identity, {"blocks": [1], "attention": [], "mlp": []})
    page.settle(identity)
    wrong = {"blocks": [], "attention": [], "mlp": []}
    for _ in range(2):
        update = page.tick(identity, tab.answer, map=wrong, ratio=50)
        assert "map" not in update and "ratio" not in update, "more clicks may be under way"
    tab.moved = 0.0
    update = page.tick(identity, tab.answer, map=wrong, ratio=50)
    assert update["map"].value["blocks"] == [1] and update["ratio"].value == 112
    assert set(page.look(identity)) == {"answer"}


def test_a_click_sends_numbers_but_not_the_click_itself(page: Page) -> None:
    identity, _ = opened(page)
    update = page.fire("map", "input", identity, {"blocks": [1], "attention": [], "mlp": []})
    assert "map" not in update and {"tiles", "removed", "undo", "browserstate"} <= set(update)
    assert page.has(identity, "timer") == BUSY_TICK
    assert "map" not in page.settle(identity)
    update = page.fire("undo", "click", identity)
    assert update["map"].value == {"blocks": [], "attention": [], "mlp": []}


def test_a_click_that_is_refused_is_taken_back_on_the_map(page: Page) -> None:
    identity, _ = opened(page)
    update = page.fire("map", "input", identity, {"blocks": [0, 1, 2, 3], "attention": [], "mlp": []})
    assert "every block" in update["status"] and update["map"].value["blocks"] == []


def test_the_slider_is_not_moved_under_the_hand(page: Page) -> None:
    identity, _ = opened(page)
    update = page.fire("ratio", "input", identity, 60, "maw", 32)
    assert "ratio" not in update and "map" in update, "the map shows the narrower MLPs"
    update = page.fire("undo", "click", identity)
    assert update["ratio"].value == update["ratio"].maximum == 112
    assert page.fire("ratio", "input", identity, 0, "maw", 1)["ratio"].value == 112, "a refused number is taken back"


def test_another_method_is_applied_only_to_narrowed_mlps(page: Page) -> None:
    identity, tab = opened(page)
    page.fire("method", "input", identity, "maw", 8)
    assert tab.session.view().history.current.edits == ()  # type: ignore[union-attr]
    page.fire("ratio", "input", identity, 60, "maw", 1)
    page.fire("method", "input", identity, "l2", 8)
    [edit] = tab.session.view().history.current.edits  # type: ignore[union-attr]
    assert edit.chosen_by is not None and edit.chosen_by.method == "l2"
    assert edit.chosen_by.budget == {"expansion_ratio": 0.6, "divisor": 8}


def test_charts_are_drawn_when_the_analysis_ends_and_when_their_tab_opens(page: Page) -> None:
    identity, tab = opened(page)
    assert "chart-runs" not in page.fire("tab-runs", "select", identity, *PICKS) or tab.tables["runs"] == ""
    page.fire("analyse", "click", identity)
    sent = page.settle(identity)
    assert (
        sent["chart-runs"] is not None and "chart-blocks" not in sent and "<table" in page.has(identity, "chart-note")
    )
    assert page.fire("tab-heads", "select", identity, *PICKS)["chart-heads"] is not None
    assert "chart-heads" not in page.fire("tab-heads", "select", identity, *PICKS), "it is drawn already"
    assert "chart-heads" in page.fire("head-statistic", "input", identity, "cfsp_fine", "output_norm")
    assert "chart-neurons" in page.fire("neuron-method", "input", identity, "maw", "entropy")


def test_a_page_that_is_not_loaded_yet_or_no_longer_known_is_told_so(page: Page) -> None:
    assert set(page.fire("tab-blocks", "select", "", *PICKS)) == {"answer"}
    update = page.tick("nobody", "")
    assert "reload the page" in update["status"] and update["timer"].active is False
    with pytest.raises(Exception, match="reload the page"):
        page.fire("undo", "click", "nobody")


def test_a_tab_may_be_closed_while_its_look_waits_for_a_number(page: Page, monkeypatch: pytest.MonkeyPatch) -> None:
    identity, tab = opened(page)
    monkeypatch.setattr(tab.session.measure, "wait_for_number", lambda seconds: page.sessions.free(identity))
    shown = page.shown(identity)
    assert page.tick(identity, **shown)
    assert page.sessions.get(identity) is None
    with pytest.raises(gr.Error, match="reload the page") as caught:
        page.fire("undo", "click", identity)
    assert not caught.value.print_exception, "the server's log needs no traceback of a closed tab"


def test_an_unforeseen_error_is_one_sentence(page: Page, monkeypatch: pytest.MonkeyPatch) -> None:
    identity, tab = opened(page)

    def broken() -> None:
        raise ZeroDivisionError("secret path")

    monkeypatch.setattr(tab.session.edit, "reset", broken)
    status = page.fire("reset", "click", identity)["status"]
    assert (
        "Something unforeseen went wrong (code " in status
        and ", ZeroDivisionError): the details are in" in status
        and "secret" not in status
    )


def test_a_reloaded_page_has_its_recipe(page: Page) -> None:
    identity, _ = opened(page)
    page.fire("map", "input", identity, {"blocks": [2], "attention": [], "mlp": [1]})
    kept = page.has(identity, "browserstate")
    update = page.load(kept)
    assert update["map"].value == {"blocks": [2], "attention": [], "mlp": [1]} and update["model"] == "default"


def test_a_remembered_model_that_cannot_be_opened_is_said(page: Page) -> None:
    identity = page.load({"source": "somebody/else"})["state"]
    tab = page.tab(identity)
    until(lambda: not tab.session.view().working)
    page.look(identity)
    assert "somebody/else is not in the local cache" in page.has(identity, "status") and "alert" in page.has(
        identity, "status"
    )


def _waiting_job(page: Page, identity: str, monkeypatch: pytest.MonkeyPatch) -> Any:
    def statistics(model: Any, windows: Any, report: Any) -> None:
        while True:
            Event().wait(0.005)
            report(0.5, "waiting")

    monkeypatch.setattr(workbench.OpenModel, "statistics", statistics)
    page.fire("analyse", "click", identity)
    tab = page.tab(identity)
    return tab.session.view().job


def test_a_closed_tab_is_freed_and_its_job_stopped(page: Page, monkeypatch: pytest.MonkeyPatch) -> None:
    identity, _ = opened(page)
    job = _waiting_job(page, identity, monkeypatch)
    page.sessions.free(identity)
    page.sessions.free(identity)
    page.sessions.free("nobody")
    assert len(page.sessions) == 0 and page.sessions.get(identity) is None
    until(lambda: job.over)
    assert job.state == "cancelled"


def test_a_job_that_a_reloaded_page_follows_goes_on(page: Page, monkeypatch: pytest.MonkeyPatch) -> None:
    identity, _ = opened(page)
    job = _waiting_job(page, identity, monkeypatch)
    page.look(identity)
    kept = page.has(identity, "browserstate")
    assert kept["job"] == job.id
    page.sessions.free(identity)
    again = page.load(kept)
    assert "progressbar" in again["status"]
    assert not job.stop.wait(0.3), "somebody looks at it"
    page.fire("cancel", "click", again["state"])
    until(lambda: job.over)


def test_an_own_device_is_chosen_and_listed(page: Page, tmp_path: Any) -> None:
    identity, _ = opened(page)
    own = tmp_path / "own.json"
    document = page.sessions.bench.devices.get(Target().device).model_dump_json(by_alias=True)
    own.write_text(document.replace('"Raspberry Pi 5, 8 GB"', '"Mine"'))
    update = page.fire("own-device", "upload", identity, str(own), 1024, "F16", "F16")
    assert ("Mine", str(own)) in update["device"]["choices"] and "Mine" in update["tiles"]
    own.unlink()
    page.fire("map", "input", identity, {"blocks": [1], "attention": [], "mlp": []})
    assert "Mine" in page.has(identity, "tiles"), "the device stays when its file is gone"
    assert "device" not in page.fire("own-device", "upload", identity, None, 1024, "F16", "F16")


def test_the_token_leaves_the_page_whatever_comes_of_it(page: Page) -> None:
    identity, _ = opened(page)
    update = page.fire("push", "click", identity, "owner/name", "a secret", True)
    assert "ms-error" in update["status"] and update["ship-token"] == ""
    assert "ship-token" not in page.fire("undo", "click", identity)


def test_a_number_typed_into_the_slider_is_brought_into_its_range(page: Page) -> None:
    slider = Ratio(10, 267)
    assert [slider.preprocess(number) for number in (1, 150, 999, -3, None)] == [10, 150, 267, 10, None]
    identity, tab = opened(page)
    page.fire("ratio", "input", identity, None, "maw", 1)
    assert tab.session.view().history.current.edits == ()  # type: ignore[union-attr]
