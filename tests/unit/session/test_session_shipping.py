"""Shipping from a session, and what the page says of it."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from surgery.common import scratch
from surgery.errors import GatedModel, InputError
from surgery.recipe.edits import RemoveBlocks
from surgery.recipe.texts import TextChoice
from surgery.session import ship as session_shipping
from surgery.session.session import Session
from surgery.session.ship import is_public
from surgery.session.view import View
from surgery.shipping import verify as verification
from surgery.shipping.record import Sample
from surgery.shipping.weights import ShipOptions
from surgery.workbench.workbench import Workbench
from tests.sessions import LONG, idle, measured, opened
from tests.shipped import source
from ui.presenters import ship as ship_words

SECRET = "hf_this-is-the-secret-token"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return source(tmp_path_factory.mktemp("source") / "tiny<b>")


@pytest.fixture
def session(model: Any) -> Iterator[Session]:
    bench = Workbench()
    made = opened(bench, model)
    made.edit.take(model.recipe(RemoveBlocks(blocks=(1,))))
    yield made
    bench.jobs.close()


def shipped(session: Session, base: Path, options: ShipOptions = ShipOptions()) -> View:
    session.ship.start(options, base)
    view = idle(session)
    assert view.job is not None and view.job.state == "done", view.job and view.job.error
    return view


def test_what_ships_is_what_the_page_shows(session: Session, tmp_path: Path) -> None:
    shown = measured(session).measure.estimate
    assert shown is not None and ship_words.ship_text(session.view()).startswith('<p class="ms-note ">Makes a folder')
    view = shipped(session, tmp_path, ShipOptions(gguf="Q8_0"))
    shipment = view.ship
    assert shipment is not None and shipment.bytes == shipment.zip.stat().st_size
    checkpoint, file = shipment.shipped.verification.differences
    assert checkpoint.recorded_nll == shown.nll and file.kind == "gguf"
    assert shipment.recipe == session.edit.current_recipe().key != shipment.shipped.record.recipe
    with zipfile.ZipFile(shipment.zip) as archive:
        names = archive.namelist()
    assert {f"{shipment.zip.stem}/{name}" for name in shipment.shipped.verification.sums.sha256} < set(names)
    text = ship_words.ship_text(view)
    assert "Checkpoint, float32" in text and "GGUF, Q8_0" in text and f"{shown.perplexity:.3f}" in text
    assert str(tmp_path) not in text and "<b>" not in text and "README.md" in text
    assert ship_words.download(shipment)[1].startswith(f"Download {shipment.zip.name} (")
    session.edit.switch([2], [], [])
    assert "made from an earlier recipe" in ship_words.ship_text(session.view())
    assert ship_words.download(None) == (None, "") and ship_words.ship_text(replace(view, model=None)) == ""


def test_one_shipment_is_kept_until_the_next_one_or_the_end(session: Session, tmp_path: Path) -> None:
    first = shipped(session, tmp_path).ship
    second = shipped(session, tmp_path).ship
    assert first is not None and second is not None and first.zip != second.zip
    del first
    assert [entry.name for entry in tmp_path.iterdir()] == [second.zip.parent.name]
    session.close()
    assert session.view().ship is None and list(tmp_path.iterdir()) == []


def test_a_reloaded_page_gets_the_shipment_and_not_a_build(
    session: Session, model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = session_shipping.ship
    attached: list[bool] = []
    again = Session(session.state.bench)

    def waiting(*arguments: Any) -> Any:
        attached.append(again.attach(job_id[0]))
        return plain(*arguments)

    monkeypatch.setattr(session_shipping, "ship", waiting)
    job_id = [""]
    real = session.state.bench.jobs.submit

    def submit(title: str, work: Any, *rest: Any, **options: Any) -> Any:
        def later(job: Any) -> Any:
            job_id[0] = job.job.id
            return work(job)

        return real(title, later, *rest, **options)

    monkeypatch.setattr(session.state.bench.jobs, "submit", submit)
    session.ship.start(ShipOptions(), tmp_path)
    idle(session)
    session.close(stop_job=False)
    again.edit.adopt(model)
    assert attached == [True] and again.view().ship is not None and again.view().build is None
    again.close()


def test_a_cancelled_or_failed_shipment_leaves_nothing(
    session: Session, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = session.edit.current_recipe()

    def cancelling(*arguments: Any) -> Any:
        session.cancel()
        return plain(*arguments)

    plain = session_shipping.ship
    monkeypatch.setattr(session_shipping, "ship", cancelling)
    job = session.ship.start(ShipOptions(), tmp_path)
    job.wait(LONG)
    assert job.state == "cancelled" and session.view().ship is None and session.edit.current_recipe() == before
    assert [file for folder in tmp_path.iterdir() for file in folder.iterdir() if file.name != scratch.LOCK] == []
    monkeypatch.setattr(session_shipping, "ship", plain)
    monkeypatch.setattr(verification, "LOSS_TOLERANCE", dict.fromkeys(verification.LOSS_TOLERANCE, -1.0))
    job = session.ship.start(ShipOptions(), tmp_path)
    job.wait(LONG)
    assert job.state == "failed" and not job.bad_input and "is not what was shipped" in job.error
    assert str(tmp_path) not in job.error, "a person on the page has no use for the server's folders"
    assert session.view().ship is None and session.edit.current_recipe() == before


def test_bad_choices_are_said(session: Session, tmp_path: Path) -> None:
    job = session.ship.start(ShipOptions(checkpoint=False), tmp_path)
    job.wait(LONG)
    assert job.bad_input and "nothing to ship" in job.error
    with pytest.raises(InputError, match="Nothing is shipped yet"):
        session.ship.push("owner/name", SECRET)


@pytest.mark.parametrize(
    ("text", "public"),
    [
        (TextChoice(), True),
        (TextChoice("wikitext-2"), True),
        (TextChoice("hub:owner/name"), True),
        (TextChoice("/tmp/gradio/mine.txt"), False),
        (TextChoice("pasted", content="mine"), False),
        (TextChoice("embedded", content="mine"), False),
    ],
)
def test_only_public_texts_go_along(text: TextChoice, public: bool) -> None:
    assert is_public(text) is public


def test_a_pasted_text_stays_at_home(session: Session, tmp_path: Path) -> None:
    session.edit.set_text(TextChoice("pasted", 16, 3, content="My own words, and nobody else's business at all. " * 4))
    shipment = shipped(session, tmp_path).ship
    assert shipment is not None and Sample.load(shipment.shipped.path).windows is None


def test_uploading_with_ones_own_token(session: Session, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[Any] = []

    def push(folder: Path, repository: str, token: str, private: bool, *rest: Any) -> str:
        calls.append((folder, repository, token, private))
        if repository == "owner/no":
            raise GatedModel("This token may not write to owner/no: use one that may.")
        return f"https://huggingface.co/{repository}"

    monkeypatch.setattr(session_shipping, "push", push)
    monkeypatch.setenv("HF_TOKEN", "hf_of-the-server")
    shipped(session, tmp_path)
    for token in ("", "  "):
        with pytest.raises(InputError, match="token of your own"):
            session.ship.push("owner/name", token)
    assert calls == [], "the server's own token is nobody's"
    session.ship.push(" owner/name ", f" {SECRET} ", private=False)
    view = idle(session)
    shipment = view.ship
    assert shipment is not None and calls == [(shipment.shipped.path, "owner/name", SECRET, False)]
    assert "Uploaded to https://huggingface.co/owner/name." in ship_words.ship_text(view).replace("&#x27;", "'")
    assert SECRET not in repr(view) + repr(vars(session)) + repr(
        [vars(job) for job in session.state.bench.jobs._jobs.values()]
    )
    session.ship.push("owner/no", SECRET)
    view = idle(session)
    assert view.job is not None and view.job.bad_input and "may not write" in view.job.error
