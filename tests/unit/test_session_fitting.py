"""Making a session's model fit: options are kept, taken, undone, and gone with another target; what the page says."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from threading import Event
from typing import Any

import pytest

from surgery.errors import InputError
from surgery.fit.fit import fit
from surgery.recipe.texts import TextChoice
from surgery.session import fit as session_fitting
from surgery.session.session import Session
from surgery.session.view import Target, View
from surgery.structure.structure import dense
from surgery.workbench import workbench
from surgery.workbench.completion import Completer
from surgery.workbench.workbench import Workbench
from tests.sessions import SMALL, idle, measured, until
from tests.wide_models import open_wide
from ui.presenters import fit as words

CONTEXT = 32


@pytest.fixture
def session(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Session]:
    """On a device that holds the model in Q8_0, and not in F16."""
    monkeypatch.setattr(workbench, "load", lambda *rest: pytest.fail("nothing is loaded here"))
    bench = Workbench()
    made = Session(bench)
    made.text, made.calibration = SMALL, TextChoice(window=16, windows=4, purpose="calibration")
    model = open_wide("llama_tied")
    made.adopt(model)
    device = bench.devices.get("raspberry-pi-5-8gb")
    found = fit(dense(model.architecture), device, CONTEXT, "Q8_0")
    memory = device.reserved_bytes.value + found.needed_bytes + 100
    small = device.model_copy(update={"memory_bytes": device.memory_bytes.model_copy(update={"value": memory})})
    path = tmp_path / "small.json"
    path.write_text(small.model_dump_json(by_alias=True))
    made.set_target(Target(str(path), CONTEXT, "F16", "F16"))
    measured(made)
    yield made
    bench.jobs.close()


def fitted(session: Session) -> View:
    session.make_it_fit()
    view = idle(session)
    assert view.job is not None and view.job.state == "done", view.job
    return view


def test_options_fit_and_are_taken_and_undone(session: Session) -> None:
    before = measured(session)
    assert before.fit is not None and not before.fit.fits and before.room is not None and before.fitted is None
    assert before.room.missing_bytes == -before.fit.spare_bytes
    assert "does not fit" in words.room_text(before) and words.options_text(before) == "" == "".join(
        shown for shown, _ in words.choices(before)
    )
    view = fitted(session)
    assert view.fitted is not None and view.fitted.fitting.complete
    options = view.fitted.fitting.options
    assert ("as it is", "Q8_0") in {(option.how, option.type) for option in options}
    assert all(option.fit.fits for option in options)
    shown = words.options_text(view)
    assert shown.count("<tr><td>") == len(options) == len(words.choices(view))
    for option in options:
        assert f"{option.how}, {option.type}" in shown and f'title="{option.fit.weights_bytes:,} bytes"' in shown
    number = 1 + [(option.how, option.type) for option in options].index(("as it is", "Q8_0"))
    session.take_option(number)
    taken = measured(session)
    assert taken.history is not None and taken.history.current == options[number - 1].recipe
    assert taken.fit is not None and taken.fit.fits and taken.estimate is not None
    assert taken.estimate.nll == pytest.approx(options[number - 1].estimate.nll)
    assert taken.fitted is not None and "It fits" in words.room_text(taken)  # another one can be tried
    session.undo()
    undone = measured(session).history
    assert undone is not None and before.history is not None and undone.current == before.history.current


def test_a_compensated_option_can_be_computed_again_from_its_recipe(session: Session) -> None:
    options = fitted(session).fitted.fitting.options  # type: ignore[union-attr]
    number = next(n for n, option in enumerate(options, 1) if option.how != "as it is")
    model = session.view().model
    assert model is not None
    model.completer = Completer(model.loaded, model.evaluator)
    session.take_option(number)
    view = measured(session)
    assert view.estimate is not None and view.estimate.nll == pytest.approx(options[number - 1].estimate.nll)


def test_options_are_of_one_device_context_and_text(session: Session) -> None:
    view = fitted(session)
    session.set_target(replace(view.target, type="Q4_0"))
    assert session.view().fitted is not None  # the type is what they choose
    session.set_target(replace(view.target, context=CONTEXT + 1))
    assert session.view().fitted is None
    session.set_target(view.target)
    assert session.view().fitted is not None
    session.set_text(replace(SMALL, windows=2))
    assert session.view().fitted is None


@pytest.mark.parametrize("chosen", ["", None, "x", "0", "99", "1e9", "-1", "²"])
def test_what_is_no_option_is_refused(session: Session, chosen: Any) -> None:
    before = session.recipe
    with pytest.raises(InputError, match="Choose one of the options"):
        session.take_option(words.number_of(chosen))
    assert session.recipe == before


def test_a_cancelled_search_keeps_what_was_measured(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    real, first = session_fitting.make_it_fit, Event()

    def slow(*arguments: Any, found: Any, stop: Event, **more: Any) -> Any:
        def told(fitting: Any) -> None:
            found(fitting)
            first.set()
            stop.wait(20)

        return real(*arguments, found=told, stop=stop, **more)

    monkeypatch.setattr(session_fitting, "make_it_fit", slow)
    session.make_it_fit()
    assert first.wait(20)
    view = until(session, lambda view: view.fitted is not None)
    assert view.fitted is not None and not view.fitted.fitting.complete
    with pytest.raises(InputError, match="still running"):
        session.make_it_fit()
    session.cancel()
    view = idle(session)
    assert view.fitted is not None and len(view.fitted.fitting.options) == 1 and not view.fitted.fitting.complete
    assert "Not all candidates" in words.options_text(view)


def test_a_followed_search_arrives_after_a_reload(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    real, go = session_fitting.make_it_fit, Event()
    monkeypatch.setattr(session_fitting, "make_it_fit", lambda *a, **k: (go.wait(20), real(*a, **k))[1])
    job = session.make_it_fit()
    other = Session(session.bench)
    other.text, other.calibration = session.text, session.calibration
    other.adopt(open_wide("llama_tied"))
    other.set_target(session.target)
    assert other.attach(job.id)
    go.set()
    view = until(other, lambda view: view.fitted is not None)
    assert view.fitted is not None and view.fitted.fitting.complete and view.fitted.fitting.options
