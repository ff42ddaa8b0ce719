"""Measuring the recipe in force, after its compensations and its quantisation have been computed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from surgery.common.jobs import Context, Job, JobKind
from surgery.compensation.compensator import Compensated
from surgery.evaluation.estimate import Estimate
from surgery.formats.table import format_of
from surgery.recipe.texts import TextChoice
from surgery.session.jobs import SessionJobs
from surgery.session.state import Listeners, SessionState
from surgery.structure.structure import Structure
from surgery.workbench.open_model import OpenModel

MOST_TRIED = 64
"""Recipes of a session whose quantisations are remembered."""


@dataclass(frozen=True)
class MeasureView:
    """The last number, and whether it is of the recipe in force."""

    estimate: Estimate | None = None
    measured: bool = False
    """Whether the estimate belongs to the current recipe and text (else it is the last one's)."""
    measuring: bool = False
    """Whether a number is awaited, the computing of compensations included."""
    error: str = ""
    compensated: Compensated | None = None
    """The current structure with its compensations and its quantisation, once they are computed."""
    compensating: bool = False
    """Whether they are being computed."""
    tried: Mapping[tuple[str, bool], float] = field(default_factory=dict)
    """Perplexities of GGUF types of the current recipe that were measured in this session, by type and importance
    matrix; the empty type stands for no quantisation."""


class SessionMeasure:
    """Keeps the last measurement and tells listeners of every complete one."""

    def __init__(self, state: SessionState, jobs: SessionJobs) -> None:
        self.state, self.jobs = state, jobs
        self._last: Estimate | None = None
        self._completed: tuple[str, Compensated] | None = None
        """The last structure that was completed, by its key: the model's own memory of them is bounded."""
        self._refitted = ""
        """Key of the structure that the compensation job is for."""
        self._tried: dict[tuple[str, TextChoice], dict[tuple[str, bool], float]] = {}
        """Measured perplexities by what is quantised and the text, then by type and importance matrix."""
        self.on_complete = Listeners()
        """Called with every complete measurement of the recipe in force, with the lock held."""
        state.on_adopt.add(self._forget)

    def start(self) -> None:
        """Measure the current recipe, after its compensations have been computed where it has some that are not known.

        What is under way for an older recipe stops.
        """
        state, jobs = self.state, self.jobs
        with state.lock:
            model, structure, text = state.need_model(), state.need_editor().structure, state.text
            if jobs.live is not None:
                jobs.live.stop.set()
            completed = self.known_complete(model, structure)
            if completed is None:
                jobs.live = None
                self._complete(model, structure)
                return
            jobs.stop_refit()
            self._completed = structure.key, completed

            def work(job: Context) -> None:
                for estimate in model.evaluator.evaluate(completed.structure, model.windows(text), job.stop):
                    job.partial(estimate)
                    job.report(estimate.windows / estimate.of_windows, "Measuring")
                    self._keep(job.job, estimate)

            jobs.live = state.bench.jobs.submit("Measuring", work, "live", JobKind.MEASURE, ended=self._wake)

    def wait_for_number(self, seconds: float) -> None:
        """Until what is being measured has another number, or ends, or so many seconds are over.

        A heavy job is not waited beside: somebody wants to see its progress.
        """
        with self.state.lock:
            known = self._last
            self.state.lock.wait_for(
                lambda: self._last is not known or bool(self.jobs.heavy) or not self.jobs.measuring, seconds
            )

    def known_complete(self, model: OpenModel, structure: Structure) -> Compensated | None:
        """A structure with everything computed, if that is known."""
        if self._completed is not None and self._completed[0] == structure.key:
            return self._completed[1]
        return model.known_complete(structure)

    def shown(self) -> MeasureView:
        """The number, and whether it is of the recipe in force."""
        live, refit, structure = self.jobs.live, self.jobs.refit, self.state.structure
        known = self._completed
        return MeasureView(
            estimate=(live.partial if live else None) or self._last,
            measured=live is not None and live.partial is not None,
            measuring=self.jobs.refitting or self.jobs.measuring,
            error=next((job.error for job in (live, refit) if job and job.state == "failed"), ""),
            compensated=known[1] if known and structure and known[0] == structure.key else None,
            compensating=self.jobs.refitting,
            tried=dict(self._tried.get(self._quantised_thing(structure), {})) if structure else {},
        )

    def _complete(self, model: OpenModel, structure: Structure) -> None:
        """Compute what is pending as a job, then measure; one that is under way for this structure goes on."""
        jobs, wanted = self.jobs, structure.key
        if jobs.refit is not None and not jobs.refit.over and not jobs.refit.stop.is_set():
            if self._refitted == wanted:
                return
            jobs.stop_refit()
        texts = self.state.texts_for(structure)

        def work(job: Context) -> None:
            found = model.complete(structure, texts, job.report, job.stop)
            with self.state.lock:
                if jobs.refit is job.job and self.state.need_editor().structure.key == wanted:
                    self._completed = wanted, found
                    self.start()

        self._refitted = wanted
        title = "Compensating" if structure.compensations else "Quantising"
        jobs.refit = self.state.bench.jobs.submit(title, work, kind=JobKind.COMPLETE)
        self.state.changed()

    def _keep(self, job: Job, estimate: Estimate) -> None:
        with self.state.lock:
            if job is not self.jobs.live:
                return
            self._last = estimate
            if estimate.complete:
                self._remember(estimate.perplexity)
                self.on_complete.call(estimate)
            self.state.changed()

    def _remember(self, perplexity: float) -> None:
        """Keep what a GGUF type of the current recipe, or no quantisation, has given."""
        structure = self.state.need_editor().structure
        edit = structure.quantize
        if structure.eora is None and (edit is None or format_of(edit).one_file):
            kind = ("", False) if edit is None else (edit.type, edit.text is not None)
            self._tried.setdefault(self._quantised_thing(structure), {})[kind] = perplexity
            for oldest in list(self._tried)[:-MOST_TRIED]:
                del self._tried[oldest]

    def _quantised_thing(self, structure: Structure) -> tuple[str, TextChoice]:
        return replace(structure, quantize=None, eora=None).key, self.state.text

    def _forget(self, model: OpenModel) -> None:
        self._last, self._completed = None, None

    def _wake(self) -> None:
        with self.state.lock:
            self.state.lock.notify_all()
