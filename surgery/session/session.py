"""One person's session at the workbench: a model, a recipe with its history, a text, a device, the running jobs.

Headless: the page shows what `view` says and calls the features' methods. Every method may be called from any thread; a
change raises `version`.
"""

from __future__ import annotations

from surgery.errors import InputError
from surgery.session.analyse import SessionAnalyse
from surgery.session.build import SessionBuild
from surgery.session.compare import SessionCompare
from surgery.session.edit import SessionEdit
from surgery.session.fit import SessionFit
from surgery.session.heal import SessionHeal
from surgery.session.jobs import SessionJobs
from surgery.session.measure import SessionMeasure
from surgery.session.read import SessionRead
from surgery.session.scan import SessionScan
from surgery.session.ship import SessionShip
from surgery.session.state import SessionState
from surgery.session.suggest import SessionSuggest
from surgery.session.view import View
from surgery.workbench.workbench import Workbench


class Session:
    """The features of one session over its shared state; each is an attribute that is named after it."""

    def __init__(self, bench: Workbench) -> None:
        self.state = state = SessionState(bench)
        self.jobs = jobs = SessionJobs(state)
        self.measure = measure = SessionMeasure(state, jobs)
        self.edit = edit = SessionEdit(state, jobs, measure)
        self.analyse = SessionAnalyse(state, jobs, edit)
        self.suggest = SessionSuggest(state, jobs, edit)
        self.scan = SessionScan(state, jobs)
        self.build = SessionBuild(state, jobs, measure)
        self.heal = SessionHeal(state, jobs, edit)
        self.ship = SessionShip(state, jobs)
        self.fit = SessionFit(state, jobs, edit)
        self.read = SessionRead(state, jobs, edit)
        self.compare = SessionCompare(state, jobs, edit, measure, self.fit)

    @property
    def version(self) -> int:
        """Raised by every change."""
        return self.state.version

    @property
    def error(self) -> str:
        """What went wrong last, in one sentence; empty when nothing did."""
        return self.state.error

    def attach(self, identity: str | None) -> bool:
        """Follow a job that was started before the page was reloaded; whether it is still under way."""
        with self.state.lock:
            job = self.jobs.attach(identity)
            if job is not None:
                self.build.hold(job)
                self.ship.hold(job)
            return job is not None

    def cancel(self) -> None:
        """Stop the running heavy job, or else the compensation, or else the measurement.

        A narrowing that waits for a heavy job is dropped.
        """
        with self.state.lock:
            if self.jobs.heavy:
                self.analyse.drop()
            self.jobs.cancel()

    def close(self, stop_job: bool = True) -> None:
        """Stop what still runs for this session, the heavy jobs only if asked, and let go of its files."""
        with self.state.lock:
            self.jobs.close(stop_job)
            for feature in (self.build, self.heal, self.ship):
                feature.close()

    def view(self) -> View:
        """What there is to show; the result of a followed job that has ended is taken over first."""
        state, jobs = self.state, self.jobs
        with state.lock:
            self._settle()
            job = jobs.shown()
            return View(
                version=state.version,
                error=state.error,
                model=state.model,
                dense=state.dense,
                history=state.editor.history if state.editor else None,
                structure=state.structure,
                locked=state.locked,
                text=state.text if state.model is None else state.model.fitted(state.text),
                target=state.target,
                device=state.device,
                job=job,
                working=job is not None and not job.over,
                queue=state.bench.jobs.position(job) if job else 0,
                can_cancel=jobs.can_cancel,
                measure=self.measure.shown(),
                analyse=self.analyse.shown(),
                suggest=self.suggest.shown(),
                scan=self.scan.shown(),
                build=self.build.shown(),
                heal=self.heal.shown(),
                ship=self.ship.shown(),
                fit=self.fit.shown(),
                read=self.read.shown(),
                compare=self.compare.shown(),
            )

    def _settle(self) -> None:
        """Take over a followed job that has ended; a narrowing that waited for it is dropped."""
        try:
            if not self.jobs.settle():
                return
        except InputError as error:
            self.state.error = str(error)
        self.analyse.drop()
        self.state.changed()
