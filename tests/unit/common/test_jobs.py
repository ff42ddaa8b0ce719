"""Jobs: progress, partial results, time left, cancelling, errors in one sentence, bounded memory, lanes."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from pathlib import Path
from threading import Event
from typing import Any

import pytest

from surgery.common.jobs import MESSAGES, Context, Job, JobKind, JobRegistry
from surgery.errors import Cancelled, TextError

LONG = 20.0


@pytest.fixture
def registry() -> Iterator[JobRegistry]:
    jobs = JobRegistry()
    yield jobs
    jobs.close()


def _waiting(begun: Event, go: Event) -> Any:
    """Work that says when it has begun and ends when it may, or when it is to stop."""

    def work(job: Context) -> str:
        begun.set()
        while not go.wait(0.005):
            job.report(0.5, "waiting")
        return "done"

    return work


def test_a_job_runs_and_keeps_its_result(registry: JobRegistry) -> None:
    job = registry.submit("Adding", lambda context: 1 + 1)
    job.wait(LONG)
    assert (job.state, job.result, job.progress, job.over, job.error) == ("done", 2, 1.0, True, "")
    assert job.started is not None and job.finished is not None and job.seconds >= 0
    assert registry.get(job.id) is job


def test_progress_messages_and_partial_results_are_seen_while_it_runs(registry: JobRegistry) -> None:
    reported, go = Event(), Event()

    def work(job: Context) -> None:
        job.report(0.25, "first")
        job.report(0.5, "second")
        job.report(0.5, "second")
        job.partial({"so": "far"})
        reported.set()
        go.wait(LONG)
        job.report(7.0, "more than everything")

    job = registry.submit("Working", work)
    assert reported.wait(LONG)
    assert (job.state, job.progress, job.message) == ("running", 0.5, "second")
    assert list(job.messages) == ["first", "second"]
    assert job.partial == {"so": "far"}
    assert job.seconds_left == pytest.approx(job.seconds, abs=0.2)
    assert job.started is not None
    job.since, job.started = job.started, job.started - 100  # a long preparation
    assert job.seconds_left < 10 < job.seconds
    go.set()
    job.wait(LONG)
    assert job.progress == 1.0 and job.seconds_left is None


def test_the_share_done_stays_between_nothing_and_everything(registry: JobRegistry) -> None:
    seen: list[float] = []

    def work(job: Context) -> None:
        for share in (-3.0, 0.4, 99.0):
            job.report(share, "")
            seen.append(job.job.progress)

    registry.submit("Working", work).wait(LONG)
    assert seen == [0.0, 0.4, 1.0]


def test_there_is_no_time_left_before_there_is_progress() -> None:
    job = Job("x", "Working", "heavy")
    assert job.seconds_left is None and job.seconds == 0
    job.state, job.started = "running", 0.0
    assert job.seconds_left is None


def test_only_the_last_messages_are_remembered(registry: JobRegistry) -> None:
    def work(job: Context) -> None:
        for number in range(3 * MESSAGES):
            job.report(0.1, f"step {number}")

    job = registry.submit("Talking", work)
    job.wait(LONG)
    assert len(job.messages) == MESSAGES and job.messages[-1] == f"step {3 * MESSAGES - 1}"


def test_a_running_job_stops_at_its_next_report(registry: JobRegistry) -> None:
    begun, go = Event(), Event()
    job = registry.submit("Working", _waiting(begun, go))
    assert begun.wait(LONG)
    registry.cancel(job.id)
    job.wait(1.0)
    assert job.state == "cancelled" and job.error == "Cancelled." and job.result is None


def test_a_queued_job_that_is_cancelled_never_starts(registry: JobRegistry) -> None:
    begun, go, ran = Event(), Event(), Event()
    first = registry.submit("First", _waiting(begun, go))
    assert begun.wait(LONG)
    second = registry.submit("Second", lambda job: ran.set())
    assert second.state == "queued" and registry.position(second) == 1 and registry.position(first) == 0
    registry.cancel(second.id)
    go.set()
    second.wait(LONG)
    assert second.state == "cancelled" and not ran.is_set()


def test_a_job_does_not_keep_what_it_makes(registry: JobRegistry) -> None:
    class Files:
        pass

    files = Files()
    job = registry.submit("Making", lambda context: None, kind=JobKind.BUILD, product=files)
    assert job.product is files and job.kind is JobKind.BUILD
    job.wait(LONG)
    assert job.product is files
    del files
    gc.collect()
    assert job.product is None and registry.submit("Other", lambda context: None).product is None


@pytest.mark.parametrize("error", [None, TextError("No."), KeyError("surprise"), Cancelled("Cancelled.")])
def test_whoever_waits_is_told_once_a_job_is_over(registry: JobRegistry, error: Exception | None) -> None:
    seen: list[bool] = []
    made: list[Job] = []
    known = Event()

    def work(job: Context) -> None:
        assert known.wait(LONG) and not seen
        if error is not None:
            raise error

    job = registry.submit("Working", work, "live", ended=lambda: seen.append(made[0].over))
    made.append(job)
    known.set()
    job.wait(LONG)
    assert seen == [True]


def test_cancelling_what_is_over_or_unknown_does_nothing(registry: JobRegistry) -> None:
    job = registry.submit("Working", lambda context: None)
    job.wait(LONG)
    registry.cancel(job.id)
    registry.cancel("nobody")
    registry.cancel(None)
    assert job.state == "done" and not job.stop.is_set()


@pytest.mark.parametrize(
    ("error", "state", "said", "bad_input", "logged"),
    [
        (TextError("The text is empty."), "failed", "The text is empty.", True, False),
        (MemoryError(), "failed", "not enough memory", False, False),
        (RuntimeError("can't allocate memory"), "failed", "not enough memory", False, False),
        (OSError(28, "No space left on device"), "failed", "No space left on device", False, False),
        (KeyError("surprise"), "failed", "unforeseen", False, True),
        (Cancelled("A newer request has taken its place."), "cancelled", "Cancelled.", False, False),
    ],
)
def test_errors_become_one_sentence(
    registry: JobRegistry,
    error: Exception,
    state: str,
    said: str,
    bad_input: bool,
    logged: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("MODEL_SURGERY_CACHE", str(tmp_path))

    def work(job: Context) -> None:
        raise error

    job = registry.submit("Working", work)
    job.wait(LONG)
    assert job.state == state and said in job.error and job.bad_input == bad_input
    assert job.error.endswith(".") and "\n" not in job.error and "surprise" not in job.error
    assert (tmp_path / "logs").exists() == logged


def test_a_failed_job_does_not_keep_the_next_one_from_running(registry: JobRegistry) -> None:
    def work(job: Context) -> None:
        raise RuntimeError("broken")

    registry.submit("Broken", work)
    job = registry.submit("Whole", lambda context: 3)
    job.wait(LONG)
    assert job.result == 3


def test_heavy_jobs_run_one_at_a_time_and_live_ones_beside_them(registry: JobRegistry) -> None:
    begun, go, second = Event(), Event(), Event()
    heavy = registry.submit("Heavy", _waiting(begun, go))
    assert begun.wait(LONG)
    waiting = registry.submit("Heavy too", lambda job: second.set())
    live = registry.submit("Live", lambda job: "quick", "live")
    live.wait(LONG)
    assert live.result == "quick" and not heavy.over and not second.is_set()
    assert registry.position(live) == 0 and registry.position(waiting) == 1
    go.set()
    waiting.wait(LONG)
    assert second.is_set()


def test_the_registry_forgets_the_oldest_finished_jobs() -> None:
    jobs = JobRegistry(remembered=3)
    made = []
    for number in range(8):
        job = jobs.submit(f"Job {number}", lambda context: None)
        job.wait(LONG)
        made.append(job)
    last = jobs.submit("Last", lambda context: None)
    last.wait(LONG)
    known = [job for job in made if jobs.get(job.id) is not None]
    jobs.close()
    assert known == made[-3:] and jobs.get(last.id) is last


def test_closing_stops_everything() -> None:
    jobs, begun, go = JobRegistry(), Event(), Event()
    job = jobs.submit("Working", _waiting(begun, go))
    assert begun.wait(LONG)
    waiting = jobs.submit("Waiting", lambda context: None)
    jobs.close()
    assert job.state == "cancelled" and waiting.state != "done"
    with pytest.raises(RuntimeError):
        jobs.submit("Too late", lambda context: None)
