"""Jobs: work longer than a second, owned by the headless core, with progress, time left and a stop that stops."""

from __future__ import annotations

import time
import uuid
import weakref
from collections import OrderedDict, deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from enum import Enum, auto
from threading import Event, Lock
from typing import Any, Literal

import psutil

from surgery.common.failure import sentence_of
from surgery.common.progress import raise_if_set
from surgery.errors import Cancelled, InputError

State = Literal["queued", "running", "done", "failed", "cancelled"]
Lane = Literal["heavy", "live"]
Work = Callable[["Context"], Any]
MESSAGES = 50
"""Messages a job remembers."""


class JobKind(Enum):
    """What a job is for. Titles are for people only; code asks for the kind."""

    OPEN = auto()
    ANALYSE = auto()
    SUGGEST = auto()
    SCAN = auto()
    BUILD = auto()
    FORECAST = auto()
    HEAL = auto()
    SHIP = auto()
    PUSH = auto()
    FIT = auto()
    READ = auto()
    COMPLETE = auto()
    """Computes the compensations and the quantisation of a recipe."""
    MEASURE = auto()
    OTHER = auto()
    """Work of which no session is told: a command, a call of the API."""


@dataclass
class Job:
    """One piece of work. Read by any thread; written by its own and by `cancel`."""

    id: str
    title: str
    lane: Lane
    state: State = "queued"
    kind: JobKind = JobKind.OTHER
    progress: float = 0.0
    message: str = ""
    messages: deque[str] = field(default_factory=lambda: deque(maxlen=MESSAGES))
    partial: Any = None
    """The latest intermediate result."""
    result: Any = None
    error: str = ""
    """One sentence for a person."""
    bad_input: bool = False
    """Whether the error is one that the person can put right."""
    started: float | None = None
    since: float | None = None
    """When the share done last began at nothing: preparations do not count for the time left."""
    finished: float | None = None
    stop: Event = field(default_factory=Event)
    future: Future[None] | None = None
    product_reference: weakref.ref[Any] | None = None

    @property
    def product(self) -> Any:
        """The files that it makes; None if it makes none, or once nobody else holds them: finished jobs are kept."""
        return None if self.product_reference is None else self.product_reference()

    @property
    def over(self) -> bool:
        """Whether it has ended, one way or another."""
        return self.state in ("done", "failed", "cancelled")

    @property
    def seconds(self) -> float:
        """Running time so far."""
        return 0.0 if self.started is None else (self.finished or time.monotonic()) - self.started

    @property
    def seconds_left(self) -> float | None:
        """Estimate from the share done; None before there is one."""
        since = self.since or self.started
        if self.state != "running" or self.progress < 0.02 or since is None:
            return None
        return (time.monotonic() - since) * (1 - self.progress) / self.progress

    def wait(self, timeout: float | None = None) -> None:
        """Block until it is over, or for `timeout` seconds."""
        if self.future is not None:
            try:
                self.future.result(timeout)
            except TimeoutError:
                return


@dataclass(frozen=True)
class Context:
    """What a job's function gets: a way to report and a flag to obey."""

    job: Job

    @property
    def stop(self) -> Event:
        """Set when the job is to stop."""
        return self.job.stop

    def report(self, progress: float, message: str) -> None:
        """Tell the share done and what is being done; raises `Cancelled` if the job is to stop."""
        raise_if_set(self.job.stop)
        self.job.progress = min(max(progress, 0.0), 1.0)
        if progress <= 0:
            self.job.since = time.monotonic()
        if message != self.job.message:
            self.job.message = message
            self.job.messages.append(message)

    def partial(self, value: Any) -> None:
        """Publish an intermediate result."""
        self.job.partial = value


class JobRegistry:
    """Runs jobs and remembers the last finished ones.

    Heavy jobs run one at a time; live measurements have a lane of their own, so that a click is not queued behind an
    analysis (they share the weights' lock step by step).

    Args:
        remembered: finished jobs that are kept; the oldest are forgotten.
        live: live measurements that may wait for the weights at one time.
    """

    def __init__(self, remembered: int = 64, live: int = 8) -> None:
        self.remembered = remembered
        self._jobs: OrderedDict[str, Job] = OrderedDict()
        self._lock = Lock()
        self._pools = {
            "heavy": ThreadPoolExecutor(1, thread_name_prefix="heavy"),
            "live": ThreadPoolExecutor(live, thread_name_prefix="live"),
        }

    def submit(
        self,
        title: str,
        work: Work,
        lane: Lane = "heavy",
        kind: JobKind = JobKind.OTHER,
        product: object = None,
        ended: Callable[[], None] = lambda: None,
    ) -> Job:
        """Queue work in a lane and return its job at once.

        The job does not keep its product alive, the files that it makes; its thread calls `ended` when it is over.
        """
        reference = None if product is None else weakref.ref(product)
        job = Job(uuid.uuid4().hex, title, lane, kind=kind, product_reference=reference)
        with self._lock:
            self._jobs[job.id] = job
            self._forget()
        job.future = self._pools[lane].submit(_run, job, work, ended)
        return job

    def get(self, identity: str | None) -> Job | None:
        """The job of that id, if it is still known."""
        with self._lock:
            return self._jobs.get(identity or "")

    def cancel(self, identity: str | None) -> None:
        """Ask a job to stop; it does within a second or one step. A queued one never starts."""
        job = self.get(identity)
        if job is not None and not job.over:
            job.stop.set()

    def position(self, job: Job) -> int:
        """Jobs before it in its lane; 0 when it runs."""
        with self._lock:
            ahead = [other for other in self._jobs.values() if other.lane == job.lane and not other.over]
        return ahead.index(job) if job in ahead else 0

    def close(self) -> None:
        """Stop everything and wait for it."""
        with self._lock:
            jobs = list(self._jobs.values())
        for job in jobs:
            job.stop.set()
        for pool in self._pools.values():
            pool.shutdown(wait=True, cancel_futures=True)

    def _forget(self) -> None:
        finished = [identity for identity, job in self._jobs.items() if job.over]
        for identity in finished[: max(0, len(finished) - self.remembered)]:
            del self._jobs[identity]


def _run(job: Job, work: Work, ended: Callable[[], None]) -> None:
    job.started = time.monotonic()
    job.state = "running"
    state: State = "done"
    try:
        raise_if_set(job.stop)
        job.result = work(Context(job))
        job.progress = 1.0
    except Cancelled:
        state, job.error = "cancelled", "Cancelled."
    except Exception as error:
        state, job.error, job.bad_input = "failed", sentence_of(error), isinstance(error, InputError)
    finally:
        job.finished = time.monotonic()
        job.state = state
        ended()
        if job.lane == "heavy" and hasattr(psutil, "heap_trim"):  # not every C library can
            psutil.heap_trim()  # what a job let go of stays with the C library else, and adds up over many people's
