"""The jobs of one session: a heavy one, a compensation and a measurement, and what they left to say."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Literal

from surgery.common.jobs import Job, JobKind, Work
from surgery.errors import InputError
from surgery.session.state import Listeners, SessionState

RECENT = 2.0
"""Seconds for which a session counts as busy after its last job."""
LONG_MEASUREMENT = 2.0
"""Seconds after which a measurement can be cancelled."""


class SessionJobs:
    """What a session knows of its jobs."""

    def __init__(self, state: SessionState) -> None:
        self.state = state
        self.job: Job | None = None
        """What a person asked for: opening, analysing, suggesting, scanning, building."""
        self.followed: Job | None = None
        """The job that another session has started and this one shows; None once its result is taken over."""
        self.refit: Job | None = None
        """Computes the compensations of the recipe in force, which is then measured."""
        self.live: Job | None = None
        """Measures the recipe in force."""
        self._takers: dict[JobKind, tuple[Listeners, Literal["result", "partial"]]] = {}

    def takes_over(
        self, kind: JobKind, take: Callable[[Any], object], left: Literal["result", "partial"] = "result"
    ) -> None:
        """Let `take`, a bound method, have what a followed job of that kind has left when it has ended."""
        listeners = Listeners()
        listeners.add(take)
        self._takers[kind] = listeners, left

    def start(self, kind: JobKind, title: str, work: Work, product: object = None) -> Job:
        """Start a heavy job; the last error is cleared. For the arguments see `surgery.common.jobs.JobRegistry.submit`.

        Raises:
            InputError: another one is under way.
        """
        with self.state.lock:
            self.refuse_second()
            self.fresh()
            self.job = self.state.bench.jobs.submit(title, work, kind=kind, product=product)
            return self.job

    def refuse_second(self) -> None:
        """Refuse to start a heavy job beside another one, by an `InputError`."""
        if self.job is not None and not self.job.over:
            raise InputError(f"{self.job.title} is still running: wait for it or cancel it.")

    def attach(self, identity: str | None) -> Job | None:
        """Follow a job that was started before the page was reloaded; None if it is not under way any more."""
        job = self.state.bench.jobs.get(identity)
        if job is None or job.over:
            return None
        with self.state.lock:
            self.job = self.followed = job
            self.state.changed()
        return job

    def settle(self) -> bool:
        """Take over what a followed job has left, once, when it has ended: its own session may be gone."""
        job = self.followed
        if job is None or not job.over:
            return False
        self.followed = None
        if job.kind in self._takers:
            take, left = self._takers[job.kind]
            if (found := getattr(job, left)) is not None:
                take.call(found)
        return True

    def follows(self, job: Job) -> bool:
        """Whether this session shows that job."""
        return job in (self.job, self.refit)

    @property
    def heavy(self) -> list[Job]:
        """Its heavy jobs that are under way."""
        with self.state.lock:
            return [job for job in (self.job, self.refit) if job is not None and not job.over]

    @property
    def refitting(self) -> bool:
        """Whether compensations or a quantisation are being computed."""
        return self.refit is not None and not self.refit.over

    @property
    def measuring(self) -> bool:
        """Whether the recipe in force is being measured."""
        return self.live is not None and not self.live.over

    @property
    def can_cancel(self) -> bool:
        """Whether there is something to cancel; a measurement only once it takes long."""
        long = self.live is not None and self.measuring and self.live.seconds > LONG_MEASUREMENT
        return bool(self.heavy) or long

    @property
    def busy(self) -> bool:
        """Whether something is under way, or has just ended."""
        with self.state.lock:
            now = time.monotonic()
            jobs = [job for job in (self.job, self.refit, self.live) if job is not None]
            return any(not job.over or (job.finished and now - job.finished < RECENT) for job in jobs)

    def shown(self) -> Job | None:
        """The job that runs, or else what the last ones have to say."""
        running = self.heavy
        if running:
            return running[0]
        unlucky = self.refit is not None and self.refit.state in ("failed", "cancelled")
        return self.refit if unlucky else self.job

    def cancel(self) -> None:
        """Stop the running heavy job, or else the compensation, or else the measurement."""
        with self.state.lock:
            if self.job is not None and not self.job.over:
                self.job = self._cancelled(self.job)
            elif self.refit is not None and not self.refit.over:
                self.refit = self._cancelled(self.refit)
            elif self.live is not None:
                self.live.stop.set()
                return
            self.state.changed()

    def _cancelled(self, job: Job) -> Job:
        """The job as it is shown from now on: a queued one never starts, but would say so only when its turn comes."""
        self.state.bench.jobs.cancel(job.id)
        if job.state != "queued":
            return job
        return replace(job, state="cancelled", error="Cancelled.", finished=time.monotonic())

    def stop_refit(self) -> None:
        """Stop the compensation and show it no more."""
        if self.refit is not None:
            self.refit.stop.set()
            self.refit = None

    def fresh(self) -> None:
        """Clear the last error and the job that has ended: the person has moved on."""
        self.state.error = ""
        if self.job is not None and self.job.over:
            self.job = None
        self.state.changed()

    def close(self, stop_job: bool) -> None:
        """Stop the measurement, and the heavy jobs only if asked: another session may follow them."""
        with self.state.lock:
            for job in (self.live, *((self.job, self.refit) if stop_job else ())):
                if job is not None:
                    job.stop.set()
