"""What a session has tried: measured recipes, pins, steps back, and what the panel says of them."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from surgery.errors import InputError
from surgery.session.compare import MOST_ATTEMPTS, Attempt, Tried
from surgery.session.session import Session
from surgery.session.view import View
from tests.sessions import SMALL, measured
from tests.tiny_workbench import open_model
from ui.presenters import compare as compare_words
from ui.presenters.tiles import tiles

FAMILY = "llama"


def after(session: Session, change: Callable[[], Any]) -> View:
    change()
    return measured(session)


def test_every_measured_recipe_is_remembered_once(session: Session) -> None:
    after(session, lambda: session.edit.switch([1], [], []))
    after(session, session.edit.undo)
    view = after(session, session.edit.redo)
    assert [one.key for one in view.compare.attempts] == [view.history.recipes[n].key for n in (0, 1)]  # type: ignore[union-attr]
    assert view.compare.attempts[1].estimate == view.measure.estimate and view.compare.attempts[1].fit == view.fit.now


def test_sizes_follow_the_device_in_force(session: Session) -> None:
    view = after(session, lambda: session.edit.set_target(replace(session.state.target, type="Q8_0")))
    assert view.compare.attempts[0].fit.type == "Q8_0" and view.compare.attempts[0].fit == view.fit.now


def test_going_back_is_a_step_of_the_history_or_a_new_one(session: Session) -> None:
    one = after(session, lambda: session.edit.switch([1], [], [])).history
    assert one is not None
    after(session, session.edit.undo)
    other = after(session, lambda: session.edit.switch([], [0], [])).history  # drops the first from the history
    assert other is not None and len(other.recipes) == 2
    session.compare.go_to(other.recipes[0].key)
    now = session.view().history
    assert now is not None and now.position == 0 and len(now.recipes) == 2, "a step that is there is gone to"
    session.compare.go_to(one.recipes[1].key)
    now = session.view().history
    assert now is not None and now.current.key == one.recipes[1].key and now.can_undo
    with pytest.raises(InputError, match="not tried"):
        session.compare.go_to("unknown")
    assert session.view().history == now


def test_another_text_has_attempts_of_its_own(session: Session) -> None:
    view = after(session, lambda: session.edit.set_text(replace(SMALL, windows=2)))
    assert len(view.compare.attempts) == 1 and view.compare.attempts[0].text.windows == 2
    assert len(after(session, lambda: session.edit.set_text(SMALL)).compare.attempts) == 1


def test_few_are_remembered_but_never_fewer_than_the_history(session: Session) -> None:
    model, estimate = session.state.need_model(), session.view().measure.estimate
    assert estimate is not None
    for number in range(MOST_ATTEMPTS + 20):
        recipe = model.recipe().with_edits(
            {"op": "prune_neurons", "removed": {"0": str(number % 8), "1": str(number // 8)}}
        )
        session.compare._attempts[(recipe.key, SMALL)] = (recipe, model.resolve(recipe), "", estimate)
    session.compare._keep(estimate)
    assert len(session.compare._attempts) <= MOST_ATTEMPTS + 1
    assert session.view().compare.of(session.edit.current_recipe().key) is not None


def test_pins_make_a_table(session: Session) -> None:
    assert "Pin a recipe" in compare_words.pinned_text(session.view())
    session.compare.pin("a")
    view = after(session, lambda: session.edit.switch([1], [], []))
    shown = compare_words.pinned_text(view)
    assert view.measure.estimate is not None and "B (in force)" in shown
    assert (
        f"{view.measure.estimate.difference:+.3f} ± {view.measure.estimate.difference_standard_error:.3f} nats" in shown
    )
    assert "<td>Blocks</td><td>4</td><td>3</td><td>-25.0%</td>" in shown
    assert all(word in shown for word in ("arithmetic", "estimated", "measured", "Parameters", "Decode"))
    session.compare.pin("b")
    session.edit.undo()
    assert "(in force)" not in compare_words.pinned_text(measured(session))
    session.compare.pin("a")
    assert session.view().compare.pins.keys() == {"b"}, "the same one again lets it go"


def test_the_front_is_what_no_smaller_one_beats(session: Session) -> None:
    base = session.view().compare.attempts[0]

    def made(size: int, nll: float) -> Attempt:
        fit = replace(base.fit, weights={"mlp": size})
        return replace(base, fit=fit, estimate=replace(base.estimate, nll=nll, perplexity=math.exp(nll)))

    points = [(10, 5.0), (20, 4.0), (20, 4.5), (30, 4.2), (40, 3.0), (50, 3.0)]
    attempts = tuple(made(*point) for point in points)
    naive = {
        (size, nll) for size, nll in points
        if not any((s <= size and n <= nll) and (s, n) != (size, nll) for s, n in points)
    }  # fmt: skip
    front = Tried(attempts).front
    assert {(one.fit.weights_bytes, one.estimate.nll) for one in front} == naive


def test_the_drawing_has_a_point_for_each_and_marks_the_one_in_force(session: Session) -> None:
    assert "appears here" in compare_words.drawing(session.view())
    view = after(session, lambda: session.edit.switch([1], [], []))
    shown = compare_words.drawing(view)
    keys = re.findall(r'data-key="(\w+)"', shown)
    assert keys == [one.key for one in view.compare.attempts] and shown.count("ms-now") == 1
    inside = [float(x) for x in re.findall(r'c[xy]="([\d.]+)"', shown)]
    assert all(0 < x < compare_words.WIDTH for x in inside) and "Perplexity, measured" in shown


def test_steps_are_listed_with_their_numbers(session: Session) -> None:
    view = after(session, lambda: session.edit.switch([1], [], []))
    shown = compare_words.steps(view)
    assert shown.count("<button") == 2 and shown.count("aria-current") == 1 and "Dense model" in shown
    assert view.measure.estimate is not None and f"{view.measure.estimate.perplexity:,.3f}" in shown


def test_tiles_tell_the_change_since_the_last_step(session: Session) -> None:
    dense = measured(session).measure.estimate
    view = after(session, lambda: session.edit.switch([1], [], []))
    assert dense is not None and view.measure.estimate is not None
    shown = tiles(view)
    assert f"last step {view.measure.estimate.nll - dense.nll:+.3f}" in shown and "last step -" in shown
    assert "last step" not in tiles(after(session, session.edit.undo))


def test_a_pin_may_come_before_the_first_measurement(session: Session) -> None:
    session.edit.adopt(open_model("opt"))
    session.compare.pin("a")
    view = measured(session)
    assert view.history is not None and view.compare.pins == {"a": view.history.current.key}
    assert len(view.compare.attempts) == 1, "those of the other model are forgotten"
