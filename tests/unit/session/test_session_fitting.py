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
from surgery.session import fit as session_fitting
from surgery.session.session import Session
from surgery.session.state import Target
from surgery.session.view import View
from surgery.structure.structure import dense
from surgery.workbench import workbench
from surgery.workbench.workbench import Workbench
from tests.sessions import SMALL, idle, measured, opened, until
from tests.wide_models import open_wide
from ui.presenters import fit as words

CONTEXT = 32


@pytest.fixture
def session(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Session]:
    """On a device that holds the model in Q8_0, and not in F16."""
    monkeypatch.setattr(workbench, "load", lambda *rest: pytest.fail("nothing is loaded here"))
    bench = Workbench()
    model = open_wide("llama_tied")
    made = opened(bench, model)
    device = bench.devices.get("raspberry-pi-5-8gb")
    found = fit(dense(model.architecture), device, CONTEXT, "Q8_0")
    memory = device.reserved_bytes.value + found.needed_bytes + 100
    small = device.model_copy(update={"memory_bytes": device.memory_bytes.model_copy(update={"value": memory})})
    path = tmp_path / "small.json"
    path.write_text(small.model_dump_json(by_alias=True))
    made.edit.set_target(Target(str(path), CONTEXT, "F16", "F16"))
    measured(made)
    yield made
    bench.jobs.close()


def fitted(session: Session) -> View:
    session.fit.start()
    view = idle(session)
    assert view.job is not None and view.job.state == "done", view.job
    return view


def test_options_fit_and_are_taken_and_undone(session: Session) -> None:
    before = measured(session)
    assert (
        before.fit.now is not None
        and not before.fit.now.fits
        and before.fit.room is not None
        and before.fit.found is None
    )
    assert before.fit.room.missing_bytes == -before.fit.now.spare_bytes
    assert "does not fit" in words.room_text(before) and words.options_text(before) == "" == "".join(
        shown for shown, _ in words.choices(before)
    )
    view = fitted(session)
    assert view.fit.found is not None and view.fit.found.fitting.complete
    options = view.fit.found.fitting.options
    assert ("as it is", "Q8_0") in {(option.how, option.type) for option in options}
    assert all(option.fit.fits for option in options)
    shown = words.options_text(view)
    assert shown.count("<tr><td>") == len(options) == len(words.choices(view))
    for option in options:
        assert f"{option.how}, {option.type}" in shown and f'title="{option.fit.weights_bytes:,} bytes"' in shown
    number = 1 + [(option.how, option.type) for option in options].index(("as it is", "Q8_0"))
    session.fit.take_option(number)
    taken = measured(session)
    assert taken.history is not None and taken.history.current == options[number - 1].recipe
    assert taken.fit.now is not None and taken.fit.now.fits and taken.measure.estimate is not None
    assert taken.measure.estimate.nll == pytest.approx(options[number - 1].estimate.nll)
    assert taken.fit.found is not None and "It fits" in words.room_text(taken)  # another one can be tried
    session.edit.undo()
    undone = measured(session).history
    assert undone is not None and before.history is not None and undone.current == before.history.current


def test_a_compensated_option_can_be_computed_again_from_its_recipe(session: Session) -> None:
    options = fitted(session).fit.found.fitting.options  # type: ignore[union-attr]
    number = next(n for n, option in enumerate(options, 1) if option.how != "as it is")
    assert session.view().model is not None
    session.view().model.completer._stages[0].cache.clear()  # type: ignore[union-attr]
    session.fit.take_option(number)
    view = measured(session)
    assert view.measure.estimate is not None and view.measure.estimate.nll == pytest.approx(
        options[number - 1].estimate.nll
    )


def test_options_are_of_one_device_context_and_text(session: Session) -> None:
    view = fitted(session)
    session.edit.set_target(replace(view.target, type="Q4_0"))
    assert session.view().fit.found is not None  # the type is what they choose
    session.edit.set_target(replace(view.target, context=CONTEXT + 1))
    assert session.view().fit.found is None
    session.edit.set_target(view.target)
    assert session.view().fit.found is not None
    session.edit.set_text(replace(SMALL, windows=2))
    assert session.view().fit.found is None


@pytest.mark.parametrize("chosen", ["", None, "x", "0", "99", "1e9", "-1", "²"])
def test_what_is_no_option_is_refused(session: Session, chosen: Any) -> None:
    before = session.edit.current_recipe()
    with pytest.raises(InputError, match="Choose one of the options"):
        session.fit.take_option(words.number_of(chosen))
    assert session.edit.current_recipe() == before


def test_a_cancelled_search_keeps_what_was_measured(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    real, first = session_fitting.make_it_fit, Event()

    def slow(*arguments: Any, found: Any, stop: Event, **more: Any) -> Any:
        def told(fitting: Any) -> None:
            found(fitting)
            first.set()
            stop.wait(20)

        return real(*arguments, found=told, stop=stop, **more)

    monkeypatch.setattr(session_fitting, "make_it_fit", slow)
    session.fit.start()
    assert first.wait(20)
    view = until(session, lambda view: view.fit.found is not None)
    assert view.fit.found is not None and not view.fit.found.fitting.complete
    with pytest.raises(InputError, match="still running"):
        session.fit.start()
    session.cancel()
    view = idle(session)
    assert (
        view.fit.found is not None and len(view.fit.found.fitting.options) == 1 and not view.fit.found.fitting.complete
    )
    assert "Not all candidates" in words.options_text(view)


def test_a_followed_search_arrives_after_a_reload(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    real, go = session_fitting.make_it_fit, Event()
    monkeypatch.setattr(session_fitting, "make_it_fit", lambda *a, **k: (go.wait(20), real(*a, **k))[1])
    job = session.fit.start()
    other = Session(session.state.bench)
    other.state.text, other.state.calibration = session.state.text, session.state.calibration
    other.edit.adopt(open_wide("llama_tied"))
    other.edit.set_target(session.state.target)
    assert other.attach(job.id)
    go.set()
    view = until(other, lambda view: view.fit.found is not None)
    assert view.fit.found is not None and view.fit.found.fitting.complete and view.fit.found.fitting.options
