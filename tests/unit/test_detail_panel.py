"""The handlers of one block's detail: what is sent, what is not echoed, and that no move of a hand is lost."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from surgery.workbench import workbench
from surgery.workbench.workbench import Workbench
from tests.tiny_workbench import loaded
from tests.unit.test_tabs import PARTS, PICKS, opened, rest, shown
from ui.panels.detail import DetailHandlers
from ui.tabs import Sessions, Tab

OWN = ("room", "make_fit", "fit_options", "fit_choice", "fit_take", "detail", "detail_block", "detail_words")


@pytest.fixture
def handlers(monkeypatch: pytest.MonkeyPatch) -> Iterator[DetailHandlers]:
    monkeypatch.setattr(workbench, "load", lambda source, *rest: loaded(name=source))
    bench = Workbench()
    made = DetailHandlers(Sessions(bench, grace=0.05))
    made.parts = Names({name: name for name in (*PARTS, *OWN)})
    yield made
    bench.jobs.close()


class Names(dict[str, Any]):
    """Components of the other panels are their names."""

    def __missing__(self, name: str) -> str:
        return name


@pytest.fixture
def tab(handlers: DetailHandlers) -> tuple[str, Tab]:
    identity, made = opened(handlers)
    handlers.select(identity, "2", *PICKS)
    return identity, made


def cut(block: int | None = 2, groups: Any = (), heads: Any = (), width: int = 80) -> Any:
    return {"block": block, "groups": list(groups), "heads": list(heads), "width": width}


def steps(tab: Tab) -> int:
    history = tab.session.view().history
    assert history is not None
    return history.position


def test_a_block_is_selected_shown_and_left(handlers: DetailHandlers) -> None:
    identity, tab = opened(handlers)
    assert "Select a block" in tab.sent["detail_words"] and tab.sent["detail_block"][1] == "none"
    update = handlers.select(identity, "3", *PICKS)
    assert tab.selected == 3 and update["detail"].value == cut(3) and update["detail"].props["model"]["block"] == 3
    assert "Block 3" in update["detail_words"] and "detail_block" not in update, "the list shows it already"
    assert update["ranked_by"]["visible"] is True
    tab.selected = 1  # as the map does
    update = handlers.show_by(identity, "magnitude_heads", "maw", *PICKS)
    assert update["detail_block"].value == "1" and update["detail"].props["model"]["mlp"]["ranked"] is True
    assert update["detail"].props["model"]["attention"]["values"]
    update = handlers.select(identity, "none", *PICKS)
    assert tab.selected is None and update["detail"].value["block"] is None
    update = handlers.select(identity, "x", *PICKS)
    assert "from the list" in update["status"]
    handlers.cut(identity, cut(None), *PICKS)
    assert steps(tab) == 0


def test_a_move_sends_numbers_but_not_the_move_itself(handlers: DetailHandlers, tab: tuple[str, Tab]) -> None:
    identity, made = tab
    handlers.show_by(identity, "entropy", "maw", *PICKS)
    update = handlers.cut(identity, cut(groups=[1]), *PICKS)
    assert {"tiles", "removed", "detail_words", "undo"} <= set(update) and "detail" not in update
    update = handlers.cut(identity, cut(groups=[1], width=40), *PICKS)
    assert "value" not in update["detail"]._constructor_args[0], "the strip's own data, but not the decision"
    assert steps(made) == 2 and "40 of 80 neurons" in update["detail_words"]
    update = handlers.undo(identity, *PICKS)
    assert update["detail"].value == cut(groups=[1])
    handlers.cut(identity, cut(groups=[1]), *PICKS)
    assert steps(made) == 1, "nothing has changed, so nothing is done"


def test_a_move_that_is_refused_is_taken_back(handlers: DetailHandlers, tab: tuple[str, Tab]) -> None:
    identity, made = tab
    for wrong in (cut(groups=[0, 1, 2]), cut(groups=[7]), cut(heads=[0]), cut(width=81), cut(9, [0])):
        update = handlers.cut(identity, wrong, *PICKS)
        assert "ms-error" in update["status"] and update["detail"].value == cut()
    assert steps(made) == 0


def test_twenty_fast_moves_of_two_blocks_lose_none(handlers: DetailHandlers, tab: tuple[str, Tab]) -> None:
    identity, made = tab
    handlers.show_by(identity, "entropy", "maw", *PICKS)
    for turn in range(10):
        handlers.cut(identity, cut(2, [turn % 3], width=70 - turn), *PICKS)
        handlers.cut(identity, cut(1, [(turn + 1) % 3], width=50 + turn), *PICKS)
    structure = made.session.view().structure
    assert structure is not None
    assert [(spec.kv_heads, len(spec.neurons)) for spec in structure.blocks[1:3]] == [((0, 2), 59), ((1, 2), 61)]


def test_a_detail_that_shows_something_else_is_put_right_when_no_hand_is_on_it(
    handlers: DetailHandlers, tab: tuple[str, Tab]
) -> None:
    identity, made = tab
    handlers.cut(identity, cut(groups=[1]), *PICKS)
    rest(handlers, identity)

    def tick() -> dict[str, Any]:
        return handlers.tick_detail(identity, cut(), *shown(handlers, identity), *PICKS)

    made.touched()
    assert "detail" not in tick() and "detail" not in tick(), "more clicks may be under way"
    made.moved = 0.0
    assert tick()["detail"].value == cut(groups=[1])
    assert "reload the page" in handlers.tick_detail("nobody", cut(), "", {}, None, *PICKS)["status"]


def test_a_block_is_locked_and_the_map_shows_it(handlers: DetailHandlers, tab: tuple[str, Tab]) -> None:
    identity, made = tab
    update = handlers.lock(identity, True, *PICKS)
    assert update["map"].props["model"]["locked"] == [2] and "detail_lock" not in update, "the box shows it already"
    update = handlers.select(identity, "1", *PICKS)
    assert update["detail_lock"].value is False
    update = handlers.select(identity, "2", *PICKS)
    assert update["detail_lock"].value is True
    assert handlers.lock(identity, False, *PICKS)["map"].props["model"]["locked"] == []
    handlers.select(identity, "none", *PICKS)
    handlers.lock(identity, True, *PICKS)
    assert made.session.state.locked == ()


def test_the_map_is_coloured_otherwise(handlers: DetailHandlers, tab: tuple[str, Tab]) -> None:
    identity, _ = tab
    assert handlers.colour_map(identity, "measured loss", *PICKS)["map"].props["model"]["measure"] == "measured loss"


def test_the_slider_is_of_the_blocks_that_were_named(handlers: DetailHandlers, tab: tuple[str, Tab]) -> None:
    identity, made = tab
    handlers.narrow_where(identity, "1-2", *PICKS)
    handlers.narrow(identity, 50, "maw", 1, *PICKS)
    structure = made.session.view().structure
    assert structure is not None and [len(spec.neurons) for spec in structure.blocks] == [80, 36, 36, 80]
    assert handlers.narrow_where(identity, "", *PICKS)["slider"].value == 112
    assert handlers.narrow_where(identity, "2", *PICKS)["slider"].value == 50
    assert "range of them" in handlers.narrow_where(identity, "7", *PICKS)["status"]
