"""A job that is found again after a reload is taken over by the feature of its kind; titles are for people only."""

from __future__ import annotations

import ast
import gc
from collections.abc import Callable, Iterator
from pathlib import Path
from threading import Event
from types import SimpleNamespace
from typing import Any

import pytest

from analysis.importance import registry
from surgery.common.jobs import Context, Job, JobKind
from surgery.errors import Cancelled
from surgery.evaluation.generation import Answer, Sampling
from surgery.pruning.narrowing import Narrowing
from surgery.pruning.neurons import WidthBudget
from surgery.recipe.edits import RemoveBlocks
from surgery.recipe.recipe import Recipe
from surgery.session.analyse import Analysed
from surgery.session.edit import Opened
from surgery.session.fit import Fitted
from surgery.session.heal import Forecasted, HealedCuts
from surgery.session.read import Reading
from surgery.session.scan import Scanned
from surgery.session.session import Session
from surgery.session.suggest import Suggested
from surgery.session.view import View
from surgery.shipping.download import Download
from surgery.shipping.shipment import ShippingDownload
from surgery.workbench.open_model import OpenModel
from surgery.workbench.workbench import Workbench
from tests.sessions import LONG, measured

ROOT = Path(__file__).resolve().parents[3]
HEAL = {"op": "heal", "steps": 1, "text": {"source": "x", "fingerprint": "y", "window": 8, "windows": 4}}
Case = tuple[Any, Callable[[View], bool]]
"""A job's result, and what a view says once it is taken over."""


def healed(model: OpenModel) -> Any:
    return model.recipe(RemoveBlocks(blocks=(1,))).with_edits(HEAL).edits[-1]


def results(session: Session, model: OpenModel) -> dict[JobKind, Case]:
    """By kind, with the first block removed in the session."""
    fingerprint, windows = model.loaded.fingerprint, model.windows(session.state.calibration)
    cuts, text = session.edit.current_recipe().edits, session.state.text
    narrowing = Narrowing(registry.method("cfsp_fine", "neurons"), WidthBudget("width", 33), (2,))
    scanned = Scanned(fingerprint, text, SimpleNamespace(removals={}), None)  # type: ignore[arg-type]
    fitted = Fitted(fingerprint, session.state.target, text, session.edit.current_recipe(), SimpleNamespace())  # type: ignore[arg-type]
    reading = Reading(fingerprint, "key", "", "prompt", Sampling(), Answer(), None)
    return {
        JobKind.OPEN: (Opened("tiny", None), lambda view: view.model is not None and view.model.loaded.id == "tiny"),
        JobKind.ANALYSE: (
            Analysed(fingerprint, windows, (narrowing,)),
            lambda view: view.analyse.windows is not None and "prune_neurons" in ops(view),
        ),
        JobKind.SUGGEST: (
            Suggested(fingerprint, ("remove_blocks",), (RemoveBlocks(blocks=(2,)),)),
            lambda view: view.suggest is not None and view.suggest.edits[0].blocks == (2,),  # type: ignore[union-attr]
        ),
        JobKind.SCAN: (scanned, lambda view: view.scan is not None),
        JobKind.FIT: (fitted, lambda view: view.fit.found is fitted),
        JobKind.FORECAST: (Forecasted(cuts, "words"), lambda view: view.heal.forecast == "words"),  # type: ignore[arg-type]
        JobKind.HEAL: (
            HealedCuts(fingerprint, cuts, healed(model), "outcome"),  # type: ignore[arg-type]
            lambda view: view.heal.outcome == "outcome" and "heal" in ops(view),
        ),
        JobKind.READ: (reading, lambda view: view.read is reading),
    }


def ops(view: View) -> list[str]:
    assert view.history is not None
    return [edit.op for edit in view.history.current.edits]


WITH_RESULT = (
    JobKind.OPEN, JobKind.ANALYSE, JobKind.SUGGEST, JobKind.SCAN, JobKind.FIT, JobKind.FORECAST, JobKind.HEAL,
    JobKind.READ,
)  # fmt: skip
WITH_FILES = (JobKind.BUILD, JobKind.SHIP, JobKind.PUSH)
WITHOUT = (JobKind.COMPLETE, JobKind.MEASURE, JobKind.OTHER)


def test_every_kind_of_job_is_tried_here() -> None:
    assert {*WITH_RESULT, *WITH_FILES, *WITHOUT} == set(JobKind)


@pytest.fixture
def model(session: Session) -> OpenModel:
    session.edit.switch([1], [], [])
    found = measured(session).model
    assert found is not None
    found.statistics(found.windows(session.state.calibration), lambda *_: None)
    session.state.bench.open("tiny")
    return found


def followed(session: Session, work: Callable[[Context], Any], **options: Any) -> tuple[Job, Event]:
    """A job of somebody who has gone that the session follows, under a title that says nothing; it waits."""
    go = Event()

    def waiting(job: Context) -> Any:
        assert go.wait(LONG)
        return work(job)

    job = session.state.bench.jobs.submit("Some work", waiting, **options)
    assert session.attach(job.id)
    return job, go


def ended(session: Session, job: Job, go: Event) -> View:
    go.set()
    job.wait(LONG)
    return session.view()


@pytest.mark.parametrize("kind", WITH_RESULT)
@pytest.mark.parametrize("told", [True, False], ids=["its kind", "another kind"])
def test_a_result_is_taken_over_by_the_feature_of_its_kind(
    session: Session, model: OpenModel, kind: JobKind, told: bool
) -> None:
    result, reached = results(session, model)[kind]

    def work(job: Context) -> Any:
        job.partial(result if kind is JobKind.READ else None)
        return result

    assert kind is JobKind.OPEN or not reached(session.view())
    if kind is JobKind.OPEN:  # it is another object than the one that is open
        reached = lambda view: view.model is session.state.bench.opened("tiny")  # noqa: E731
    job, go = followed(session, work, kind=kind if told else JobKind.OTHER)
    view = ended(session, job, go)
    assert reached(view) is told and not view.error, view.error
    assert session.jobs.followed is None, "once"


@pytest.mark.parametrize("kind", WITHOUT)
def test_what_has_no_result_changes_nothing(session: Session, model: OpenModel, kind: JobKind) -> None:
    before = session.view()
    job, go = followed(session, lambda job: Recipe, kind=kind)
    view = ended(session, job, go)
    assert view.history == before.history and not view.error and session.jobs.followed is None


@pytest.mark.parametrize("kind", WITH_RESULT)
def test_a_job_that_failed_leaves_everything_as_it_was(session: Session, model: OpenModel, kind: JobKind) -> None:
    before = session.view()
    job, go = followed(session, lambda job: 1 / 0, kind=kind)
    view = ended(session, job, go)
    assert view.history == before.history and view.model is before.model and not view.error


@pytest.mark.parametrize("kind", [JobKind.READ, JobKind.HEAL, JobKind.FIT])
def test_of_cancelled_jobs_only_a_reading_leaves_what_it_has_published(
    session: Session, model: OpenModel, kind: JobKind
) -> None:
    before, (result, reached) = session.view(), results(session, model)[kind]

    def work(job: Context) -> None:
        job.partial(result)
        raise Cancelled("Cancelled.")

    job, go = followed(session, work, kind=kind)
    view = ended(session, job, go)
    assert reached(view) is (kind is JobKind.READ)
    assert view.history == before.history and not view.error and view.job is job and job.state == "cancelled"


def test_a_result_that_does_not_fit_any_more_is_an_error_once(session: Session, model: OpenModel) -> None:
    gone = Suggested(model.loaded.fingerprint, ("remove_blocks",), (RemoveBlocks(blocks=(99,)),))
    job, go = followed(session, lambda job: gone, kind=JobKind.SUGGEST)
    before = session.version
    view = ended(session, job, go)
    assert "99" in view.error and view.suggest is None and view.version > before
    assert session.jobs.followed is None and session.view().version == view.version


@pytest.mark.parametrize("kind", WITH_FILES)
def test_files_are_held_from_the_moment_that_their_job_is_found(
    bench: Workbench, session: Session, tmp_path: Path, kind: JobKind
) -> None:
    made: list[Any] = [Download(tmp_path) if kind is JobKind.BUILD else ShippingDownload(tmp_path)]
    job, go = followed(session, lambda job: None, kind=kind, product=made[0])
    stranger, go_too = Session(bench), Event()
    other = bench.jobs.submit("Some work", lambda job: go_too.wait(LONG), product=made[0])
    assert stranger.attach(other.id)
    setattr(made[0], "packed" if kind is JobKind.BUILD else "shipment", "files")
    made.clear()
    gc.collect()
    for view in (session.view(), ended(session, job, go)):
        assert (view.build, view.ship) == (("files", None) if kind is JobKind.BUILD else (None, "files"))
    go_too.set()
    other.wait(LONG)
    assert (stranger.view().build, stranger.view().ship) == (None, None), "of a kind that has no files"
    session.close()
    gc.collect()
    assert job.product is None and list(tmp_path.iterdir()) == [], "a job that is remembered keeps no files"


def title_comparisons(source: str) -> Iterator[int]:
    """Lines that compare a title or look into it. Beside a message it may stand: a message may repeat it."""
    methods = {"startswith", "endswith", "removeprefix", "removesuffix", "find", "index", "split", "partition", "count"}
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Compare):
            sides = [node.left, *node.comparators]
            sides += [
                inner for side in sides if isinstance(side, ast.Tuple | ast.List | ast.Set) for inner in side.elts
            ]
            names = {getattr(side, "attr", "") for side in sides}
            if "title" in names and "message" not in names:
                yield node.lineno
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in methods:
            if getattr(node.func.value, "attr", "") == "title":
                yield node.lineno
        elif isinstance(node, ast.Match) and getattr(node.subject, "attr", "") == "title":
            yield node.lineno


@pytest.mark.parametrize("package", ["surgery", "ui"])
def test_no_module_compares_the_titles_of_jobs(package: str) -> None:
    found = {path: list(title_comparisons(path.read_text("utf-8"))) for path in sorted((ROOT / package).rglob("*.py"))}
    assert len(found) > 10 and {path: lines for path, lines in found.items() if lines} == {}


@pytest.mark.parametrize(
    ("source", "seen"),
    [
        ("job.title == HEALING", True),
        ("'Reading' != view.job.title", True),
        ("job.title in ('a', 'b')", True),
        ("x in (job.title, 'b')", True),
        ("job.title.startswith('Analysing')", True),
        ("match job.title:\n    case 'x': pass", True),
        ("job.message in ('', job.title)", False),
        ("f'{job.title} was cancelled'", False),
        ("job.kind is JobKind.READ", False),
    ],
)
def test_the_checker_sees_a_comparison(source: str, seen: bool) -> None:
    assert bool(list(title_comparisons(source))) is seen
