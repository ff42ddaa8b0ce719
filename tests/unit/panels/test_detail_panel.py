"""The handlers of one block's detail: what is sent, what is not echoed, and that no move of a hand is lost."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from surgery.workbench import workbench
from surgery.workbench.workbench import Workbench
from tests.events import Page
from tests.tiny_workbench import loaded
from tests.unit.panels.test_tabs import opened
from ui.tabs import Sessions, Tab


@pytest.fixture
def page(monkeypatch: pytest.MonkeyPatch) -> Iterator[Page]:
    monkeypatch.setattr(workbench, "load", lambda source, *rest: loaded(name=source))
    bench = Workbench()
    yield Page(Sessions(bench, grace=0.05))
    bench.jobs.close()


@pytest.fixture
def tab(page: Page) -> tuple[str, Tab]:
    identity, made = opened(page)
    page.fire("detail-block", "input", identity, "2")
    return identity, made


def cut(block: int | None = 2, groups: Any = (), heads: Any = (), width: int = 80) -> Any:
    return {"block": block, "groups": list(groups), "heads": list(heads), "width": width}


def steps(tab: Tab) -> int:
    history = tab.session.view().history
    assert history is not None
    return history.position


def test_a_block_is_selected_shown_and_left(page: Page) -> None:
    identity, tab = opened(page)
    assert (
        "Select a block" in page.has(identity, "detail-words") and page.has(identity, "detail-block")["value"] == "none"
    )
    update = page.fire("detail-block", "input", identity, "3")
    assert tab.selected == 3 and update["detail"].value == cut(3) and update["detail"].props["model"]["block"] == 3
    assert "Block 3" in update["detail-words"] and "detail-block" not in update, "the list shows it already"
    assert update["ranked-by"]["visible"] is True
    tab.selected = 1  # as the map does
    update = page.fire("coloured-by", "input", identity, "magnitude_heads", "maw")
    assert update["detail-block"]["value"] == "1" and update["detail"].props["model"]["mlp"]["ranked"] is True
    assert update["detail"].props["model"]["attention"]["values"]
    update = page.fire("detail-block", "input", identity, "none")
    assert tab.selected is None and update["detail"].value["block"] is None
    update = page.fire("detail-block", "input", identity, "x")
    assert "from the list" in update["status"]
    page.fire("detail", "input", identity, cut(None))
    assert steps(tab) == 0


def test_a_move_sends_numbers_but_not_the_move_itself(page: Page, tab: tuple[str, Tab]) -> None:
    identity, made = tab
    page.fire("coloured-by", "input", identity, "entropy", "maw")
    update = page.fire("detail", "input", identity, cut(groups=[1]))
    assert {"tiles", "removed", "detail-words", "undo"} <= set(update) and "detail" not in update
    update = page.fire("detail", "input", identity, cut(groups=[1], width=40))
    assert "value" not in update["detail"]._constructor_args[0], "the strip's own data, but not the decision"
    assert steps(made) == 2 and "40 of 80 neurons" in update["detail-words"]
    update = page.fire("undo", "click", identity)
    assert update["detail"].value == cut(groups=[1])
    page.fire("detail", "input", identity, cut(groups=[1]))
    assert steps(made) == 1, "nothing has changed, so nothing is done"


def test_a_move_that_is_refused_is_taken_back(page: Page, tab: tuple[str, Tab]) -> None:
    identity, made = tab
    for wrong in (cut(groups=[0, 1, 2]), cut(groups=[7]), cut(heads=[0]), cut(width=81), cut(9, [0])):
        update = page.fire("detail", "input", identity, wrong)
        assert "ms-error" in update["status"] and update["detail"].value == cut()
    assert steps(made) == 0


def test_twenty_fast_moves_of_two_blocks_lose_none(page: Page, tab: tuple[str, Tab]) -> None:
    identity, made = tab
    page.fire("coloured-by", "input", identity, "entropy", "maw")
    for turn in range(10):
        page.fire("detail", "input", identity, cut(2, [turn % 3], width=70 - turn))
        page.fire("detail", "input", identity, cut(1, [(turn + 1) % 3], width=50 + turn))
    structure = made.session.view().structure
    assert structure is not None
    assert [(spec.kv_heads, len(spec.neurons)) for spec in structure.blocks[1:3]] == [((0, 2), 59), ((1, 2), 61)]


def test_a_detail_that_shows_something_else_is_put_right_when_no_hand_is_on_it(
    page: Page, tab: tuple[str, Tab]
) -> None:
    identity, made = tab
    page.fire("detail", "input", identity, cut(groups=[1]))
    page.rest(identity)

    def tick() -> dict[str, Any]:
        return page.tick(identity, **page.shown(identity) | {"detail": cut()})

    made.touched()
    assert "detail" not in tick() and "detail" not in tick(), "more clicks may be under way"
    made.moved = 0.0
    assert tick()["detail"].value == cut(groups=[1])
    assert "reload the page" in page.tick("nobody", "", detail=cut())["status"]


def test_a_block_is_locked_and_the_map_shows_it(page: Page, tab: tuple[str, Tab]) -> None:
    identity, made = tab
    update = page.fire("detail-lock", "input", identity, True)
    assert update["map"].props["model"]["locked"] == [2] and "detail-lock" not in update, "the box shows it already"
    update = page.fire("detail-block", "input", identity, "1")
    assert update["detail-lock"]["value"] is False
    update = page.fire("detail-block", "input", identity, "2")
    assert update["detail-lock"]["value"] is True
    assert page.fire("detail-lock", "input", identity, False)["map"].props["model"]["locked"] == []
    page.fire("detail-block", "input", identity, "none")
    page.fire("detail-lock", "input", identity, True)
    assert made.session.state.locked == ()


def test_the_map_is_coloured_otherwise(page: Page, tab: tuple[str, Tab]) -> None:
    identity, _ = tab
    assert (
        page.fire("map-colour", "input", identity, "measured loss")["map"].props["model"]["measure"] == "measured loss"
    )


def test_the_slider_is_of_the_blocks_that_were_named(page: Page, tab: tuple[str, Tab]) -> None:
    identity, made = tab
    page.fire("narrow-blocks", "blur", identity, "1-2")
    page.fire("ratio", "input", identity, 50, "maw", 1)
    structure = made.session.view().structure
    assert structure is not None and [len(spec.neurons) for spec in structure.blocks] == [80, 36, 36, 80]
    assert page.fire("narrow-blocks", "blur", identity, "")["ratio"].value == 112
    assert page.fire("narrow-blocks", "blur", identity, "2")["ratio"].value == 50
    assert "range of them" in page.fire("narrow-blocks", "blur", identity, "7")["status"]
