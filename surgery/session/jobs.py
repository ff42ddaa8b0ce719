"""The jobs of one session: a heavy one, a compensation and a measurement, and what they left to say."""

from __future__ import annotations

import time
from dataclasses import replace
from threading import RLock

from surgery.common.jobs import Job, Work
from surgery.errors import InputError
from surgery.workbench.workbench import Workbench

RECENT = 2.0
"""Seconds for which a session counts as busy after its last job."""


class JobHolder:
    """What a session knows of its jobs. Every method may be called from any thread; a change raises `version`.

    Args:
        bench: what all sessions share.
    """

    def __init__(self, bench: Workbench) -> None:
        self.bench = bench
        self.error = ""
        self.version = 0
        self._job: Job | None = None
        """What a person asked for: opening, analysing, suggesting, scanning, building."""
        self._followed: Job | None = None
        self._refit: Job | None = None
        """Computes the compensations of the recipe in force, which is then measured."""
        self._live: Job | None = None
        """Measures the recipe in force."""
        self._lock = RLock()

    def attach(self, identity: str | None) -> bool:
        """Follow a job that was started before the page was reloaded; whether it is still under way."""
        job = self.bench.jobs.get(identity)
        if job is None or job.over:
            return False
        with self._lock:
            self._job = self._followed = job
            self._changed()
        return True

    def follows(self, job: Job) -> bool:
        """Whether this session shows that job."""
        return job in (self._job, self._refit)

    @property
    def heavy(self) -> list[Job]:
        """Its heavy jobs that are under way."""
        with self._lock:
            return [job for job in (self._job, self._refit) if job is not None and not job.over]

    @property
    def busy(self) -> bool:
        """Whether something is under way, or has just ended."""
        with self._lock:
            now = time.monotonic()
            jobs = [job for job in (self._job, self._refit, self._live) if job is not None]
            return any(not job.over or (job.finished and now - job.finished < RECENT) for job in jobs)

    def cancel(self) -> None:
        """Stop the running heavy job, or else the compensation, or else the measurement."""
        with self._lock:
            if self._job is not None and not self._job.over:
                self._job = self._cancelled(self._job)
            elif self._refit is not None and not self._refit.over:
                self._refit = self._cancelled(self._refit)
            elif self._live is not None:
                self._live.stop.set()
                return
            self._changed()

    def _cancelled(self, job: Job) -> Job:
        """The job as it is shown from now on: a queued one never starts, but would say so only when its turn comes."""
        self.bench.jobs.cancel(job.id)
        if job.state != "queued":
            return job
        return replace(job, state="cancelled", error="Cancelled.", finished=time.monotonic())

    def fail(self, message: str) -> None:
        """Show an error."""
        with self._lock:
            self.error = message
            self._changed()

    def close(self, stop_job: bool = True) -> None:
        """Stop what still runs for this session, its heavy jobs only if asked: another session may follow them."""
        with self._lock:
            for job in (self._live, *((self._job, self._refit) if stop_job else ())):
                if job is not None:
                    job.stop.set()

    def _start(self, title: str, work: Work) -> Job:
        with self._lock:
            self._refuse_second_job()
            self._fresh()
            self._job = self.bench.jobs.submit(title, work)
            return self._job

    def _refuse_second_job(self) -> None:
        if self._job is not None and not self._job.over:
            raise InputError(f"{self._job.title} is still running: wait for it or cancel it.")

    def _shown_job(self) -> Job | None:
        """The job that runs, or else what the last ones have to say."""
        running = self.heavy
        if running:
            return running[0]
        unlucky = self._refit is not None and self._refit.state in ("failed", "cancelled")
        return self._refit if unlucky else self._job

    def _fresh(self) -> None:
        """Something was done: what went wrong before is no longer of interest."""
        self.error = ""
        if self._job is not None and self._job.over:
            self._job = None
        self._changed()

    def _changed(self) -> None:
        self.version += 1
