"""The analysis of the calibration text, and the narrowing of MLPs by what it finds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from analysis.importance import registry
from analysis.statistics.collect import Statistics
from analysis.text import Windows
from surgery.common.jobs import Context, Job, JobKind
from surgery.errors import InputError
from surgery.pruning.narrowing import Narrowing
from surgery.pruning.neurons import WidthBudget
from surgery.session.edit import SessionEdit
from surgery.session.jobs import SessionJobs
from surgery.session.state import SessionState
from surgery.workbench.open_model import OpenModel


@dataclass(frozen=True)
class Analysed:
    """Result of a job that analysed a text, and what was to be narrowed by it."""

    fingerprint: str
    """Of the model."""
    windows: Windows
    narrowings: tuple[Narrowing, ...]


@dataclass(frozen=True)
class AnalyseView:
    """What was found on the calibration text, and what waits for it."""

    statistics: Statistics | None = None
    windows: Windows | None = None
    """The analysed ones."""
    pending_ratio: float | None = None
    """The expansion ratio that is applied when the running analysis ends."""
    pending_widths: Mapping[int, int] = field(default_factory=dict)
    """Widths, by block, that are applied when the running analysis ends."""


class SessionAnalyse:
    """Analyses the calibration text, and narrows at once or when the analysis gives the scores."""

    def __init__(self, state: SessionState, jobs: SessionJobs, edit: SessionEdit) -> None:
        self.state, self.jobs, self.edit = state, jobs, edit
        self._waiting: tuple[Narrowing, ...] = ()
        """What waits for an analysis: of all MLPs, or of different blocks."""
        state.on_adopt.add(self._forget)
        edit.on_decide.add(self.drop)
        jobs.takes_over(JobKind.ANALYSE, self._finish)

    def start(self) -> Job:
        """Run the analysis of the calibration text (as a job)."""
        return self._start("Analysing")

    def drop(self) -> None:
        """Forget the narrowings that wait for an analysis."""
        self._waiting = ()

    def narrow(
        self, method_name: str, expansion_ratio: float, divisor: int = 1, blocks: tuple[int, ...] | None = None
    ) -> Job | None:
        """Narrow every MLP, or those of some blocks, to an expansion ratio (1.0 is the hidden size) by a method.

        At once when the scores need no new analysis; else when an analysis that is started here, or that is under way,
        has ended. At the source's own ratio nothing is narrowed.

        Raises:
            InputError: it makes no sense, none of the blocks has an MLP any more, or an analysis is needed and another
                job is under way.
        """
        budget = WidthBudget("expansion_ratio", expansion_ratio, divisor)
        method = registry.method(method_name, "neurons")
        with self.state.lock:
            there = {spec.source for spec in self.state.need_editor().structure.blocks if spec.mlp}
            chosen = None if blocks is None else tuple(block for block in blocks if block in there)
            if chosen == ():
                raise InputError("None of these blocks has an MLP that could be narrowed: choose others.")
            return self._narrow_or_wait(Narrowing(method, budget, chosen))

    def narrow_block(self, block: int, width: int, method_name: str) -> Job | None:
        """Leave a block's MLP that many neurons, the most important ones by a method; the others stay as they are.

        At once or after an analysis, as `narrow`; at the source's own width the block is not narrowed.

        Raises:
            InputError: it makes no sense, the block's MLP is not there, or an analysis is needed and another job is
                under way.
        """
        method = registry.method(method_name, "neurons")
        with self.state.lock:
            self.state.refuse_removed(block, "mlp")
            mlp = self.state.need_model().architecture.blocks[block].mlp
            if mlp is None or not 1 <= width <= mlp.width:
                raise InputError(f"Block {block} can keep 1 to {mlp.width if mlp else 0:,} neurons.")
            return self._narrow_or_wait(Narrowing(method, WidthBudget("width", width), (block,)))

    def shown(self) -> AnalyseView:
        """What is known, and what waits."""
        model, windows = self.state.model, self.state.analysed
        return AnalyseView(
            statistics=model.known_statistics(windows) if model and windows else None,
            windows=windows,
            pending_ratio=next((wait.budget.value for wait in self._waiting if wait.budget.unit != "width"), None),
            pending_widths={
                block: int(wait.budget.value)
                for wait in self._waiting
                if wait.budget.unit == "width"
                for block in wait.blocks or ()
            },
        )

    def _start(self, title: str) -> Job:
        state = self.state
        model = state.need_model()

        def work(job: Context) -> Analysed:
            try:
                windows = state.calibration_windows(model)
                model.statistics(windows, job.report)
                while True:
                    with state.lock:
                        wanted = self._waiting
                        if all(narrowing.possible(model, windows) for narrowing in wanted):
                            result = Analysed(model.loaded.fingerprint, windows, wanted)
                            self._finish(result)
                            return result
                    model.gradients(windows, job.report)
            finally:
                self.drop()

        return self.jobs.start(JobKind.ANALYSE, title, work)

    def _finish(self, result: Analysed) -> None:
        with self.state.lock:
            model, wanted = self.state.need_model(), self._waiting or result.narrowings
            if model.loaded.fingerprint != result.fingerprint or model.known_statistics(result.windows) is None:
                return
            self.state.analysed = result.windows
            self.drop()
            self.state.changed()
            for narrowing in wanted:
                self._narrow(model, narrowing)

    def _narrow_or_wait(self, wanted: Narrowing) -> Job | None:
        """Narrow at once, or as soon as an analysis gives the scores; it takes the place of what waits for the same."""
        model = self.state.need_model()
        with self.state.lock:
            others = tuple(other for other in self._waiting if wanted.blocks and other.blocks != wanted.blocks)
            self._waiting = others
            if wanted.nothing(model) or wanted.possible(model, self.state.analysed):
                self._narrow(model, wanted)
                return None
            job = self.jobs.job
            if job is None or job.over or job.kind is not JobKind.ANALYSE:
                job = self._start(f"Analysing for {wanted.method.title}")
            self._waiting = (*others, wanted)
            self.state.changed()
            return job

    def _forget(self, model: OpenModel) -> None:
        self.drop()

    def _narrow(self, model: OpenModel, wanted: Narrowing) -> None:
        edit = None if wanted.nothing(model) else wanted.edit(model, self.state.analysed)
        self.edit.apply(
            lambda editor: editor.change(lambda choices: choices.narrowed(edit, wanted.blocks), wanted.stroke)
        )
