"""One person's session at the workbench: a model, a recipe with its history, a text, a device, the running jobs.

Headless: the page shows what `view` says and calls the methods. Every method may be called from any thread; a change
raises `version`.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from threading import RLock

from analysis import registry
from analysis.text import Windows
from surgery.editor import Editor
from surgery.errors import InputError, RecipeError, TextError
from surgery.jobs import Context, Job, Work
from surgery.live import Estimate
from surgery.memory import fit, weight_type
from surgery.narrowing import Narrowing, shown_source
from surgery.recipe import Recipe
from surgery.selection import WidthBudget
from surgery.structure import Structure, dense
from surgery.view import Target, View
from surgery.workbench import OpenModel, TextChoice, Workbench

RECENT = 2.0
"""Seconds for which a session counts as busy after its last job."""
LONG_MEASUREMENT = 2.0
"""Seconds after which a measurement can be cancelled."""


@dataclass(frozen=True)
class Opened:
    """Result of a job that opened a model. It does not hold the model: finished jobs are remembered for long."""

    source: str
    revision: str | None


@dataclass(frozen=True)
class Analysed:
    """Result of a job that analysed a text, and what was to be narrowed by it."""

    fingerprint: str
    windows: Windows
    narrowing: Narrowing | None


class Session:
    """See the module.

    Args:
        bench: what all sessions share.
    """

    def __init__(self, bench: Workbench) -> None:
        self.bench = bench
        self.text = TextChoice()
        self.calibration = TextChoice(windows=16, purpose="calibration")
        self.target = Target()
        self.error = ""
        self.version = 0
        self._device = bench.devices.get(self.target.device)
        self._model: OpenModel | None = None
        self._editor: Editor | None = None
        self._dense: Structure | None = None
        self._analysed: Windows | None = None
        self._pending: Narrowing | None = None
        self._job: Job | None = None
        self._followed: Job | None = None
        self._live: Job | None = None
        self._last: Estimate | None = None
        self._lock = RLock()

    def open(self, source: str, revision: str | None = None, recipe: Recipe | None = None) -> Job | None:
        """Open a model: at once if it is open for somebody else, otherwise as a job; then it is measured.

        Args:
            source: as for `surgery.loading.load`.
            revision: for a Hub id.
            recipe: to start with, see `adopt`.
        """
        source, revision = source.strip(), revision or None
        with self._lock:
            self._refuse_second_job()
            known = self.bench.opened(source, revision)
            if known is not None:
                self.adopt(known, recipe)
                return None

        def work(job: Context) -> Opened:
            self.adopt(self.bench.open(source, revision, job.report), recipe)
            return Opened(source, revision)

        return self._start(f"Opening {source}", work)

    def adopt(self, model: OpenModel, recipe: Recipe | None = None) -> None:
        """Work on an open model from now on; a remembered recipe that does not fit it is left out, and said so."""
        editor, problem = Editor(model), ""
        if recipe is not None:
            try:
                editor.take(recipe)
            except RecipeError as error:
                problem = f"The recipe kept in this browser was left out: {error}"
        with self._lock:
            self._model, self._editor, self._dense = model, editor, dense(model.architecture)
            self._pending, self._last = None, None
            self._analysed = self._known_analysis(model)
            self._fresh()
            self.error = problem
        self.measure()

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
        return self._job is job

    def _settle(self) -> None:
        """Take over the result of a followed job that has ended: its own session may be gone."""
        job = self._followed
        if job is None or not job.over:
            return
        self._followed = None
        if isinstance(job.result, Opened):
            model = self.bench.opened(job.result.source, job.result.revision)
            if model is not None:
                self.adopt(model)
        elif isinstance(job.result, Analysed):
            try:
                self._finish_analysis(job.result)
            except InputError as error:
                self.error = str(error)
        self._pending = None
        self._changed()

    def analyse(self) -> Job:
        """Run the analysis of the calibration text (as a job)."""
        return self._start_analysis("Analysing")

    def _start_analysis(self, title: str) -> Job:
        model, calibration = self._need_model(), self.calibration

        def work(job: Context) -> Analysed:
            try:
                windows = model.windows(calibration)
                model.statistics(windows, job.report)
                while True:
                    with self._lock:
                        wanted = self._pending
                        if wanted is None or wanted.possible(model, windows):
                            result = Analysed(model.loaded.fingerprint, windows, wanted)
                            self._finish_analysis(result)
                            return result
                    model.gradients(windows, job.report)
            finally:
                self._pending = None

        return self._start(title, work)

    def _finish_analysis(self, result: Analysed) -> None:
        with self._lock:
            model, wanted = self._need_model(), self._pending or result.narrowing
            if model.loaded.fingerprint != result.fingerprint or model.known_statistics(result.windows) is None:
                return
            self._analysed, self._pending = result.windows, None
            self._changed()
            if wanted is not None:
                self._narrow(model, wanted)

    def _known_analysis(self, model: OpenModel) -> Windows | None:
        """The calibration windows, if somebody has had them analysed already."""
        try:
            windows = model.windows(self.calibration)
        except TextError:
            return None
        return windows if model.known_statistics(windows) is not None else None

    def switch(self, blocks: list[int], attention: list[int], mlp: list[int]) -> None:
        """Switch exactly these parts off."""
        self._edit(lambda editor: editor.change(lambda choices: choices.switched(blocks, attention, mlp)))

    def narrow(self, method_name: str, expansion_ratio: float, divisor: int = 1) -> Job | None:
        """Narrow every MLP to an expansion ratio (1.0 is the hidden size) by a method.

        At once when the scores need no new analysis; else when an analysis that is started here, or that is under way,
        has ended. At the source's own ratio nothing is narrowed.
        """
        model = self._need_model()
        wanted = Narrowing(
            registry.method(method_name, "neurons"), WidthBudget("expansion_ratio", expansion_ratio, divisor)
        )
        with self._lock:
            self._pending = None
            if wanted.nothing(model):
                self._edit(lambda editor: editor.change(lambda choices: choices.narrowed(None), wanted.stroke))
                return None
            if wanted.possible(model, self._analysed):
                self._narrow(model, wanted)
                return None
            if self._job is None or self._job.over:
                self._start_analysis(f"Analysing for {wanted.method.title}")
            self._pending = wanted
            self._changed()
            return self._job

    def _narrow(self, model: OpenModel, wanted: Narrowing) -> None:
        edit = wanted.edit(model, self._analysed)
        self._edit(lambda editor: editor.change(lambda choices: choices.narrowed(edit), wanted.stroke))

    def take(self, recipe: Recipe) -> None:
        """Make a recipe the current one (import).

        Raises:
            RecipeError: it does not fit this model.
        """
        self._decide(lambda editor: editor.take(recipe))

    def undo(self) -> None:
        """One step back."""
        self._decide(Editor.undo)

    def redo(self) -> None:
        """One step forward."""
        self._decide(Editor.redo)

    def reset(self) -> None:
        """Back to the dense model, as a step that can be undone."""
        self._decide(Editor.reset)

    def _decide(self, change: Callable[[Editor], None]) -> None:
        """A change that also settles how wide the MLPs are: a narrowing that waits for an analysis is dropped."""
        with self._lock:
            self._edit(change)
            self._pending = None

    def _edit(self, change: Callable[[Editor], None]) -> None:
        """Change the recipe and measure it."""
        with self._lock:
            change(self._need_editor())
            self._fresh()
            self.measure()

    def exported(self) -> str:
        """The recipe file's text, with its measured results when they are complete."""
        view = self.view()
        recipe = self._need_editor().history.current
        if view.measured and view.estimate is not None and view.estimate.complete and not view.measuring:
            results = view.estimate.document() | {"text": shown_source(view.text.source), "window": view.text.window}
            recipe = recipe.model_copy(update={"results": results})
        return recipe.to_json()

    def set_text(self, text: TextChoice) -> None:
        """Measure on another text, and analyse its calibration half from now on.

        Raises:
            TextError: it cannot be cut into such windows.
        """
        model = self._need_model()
        model.windows(text)
        with self._lock:
            self.text = text
            windows = max(text.windows, 16) if text.source == "embedded" else text.windows
            self.calibration = replace(text, purpose="calibration", windows=windows)
            self._analysed = self._known_analysis(model)
            self._fresh()
        self.measure()

    def set_target(self, target: Target) -> None:
        """Another device, context or weight type.

        Raises:
            InputError: unknown or out of range.
        """
        device = self.bench.devices.get(target.device)
        weight_type(target.type)
        if target.context < 1:
            raise InputError("The context must be at least 1 token.")
        with self._lock:
            self.target, self._device = target, device
            self._fresh()

    def measure(self) -> None:
        """Measure the current recipe; a measurement that is under way for an older one stops."""
        with self._lock:
            model, structure, text = self._need_model(), self._need_editor().structure, self.text
            if self._live is not None:
                self._live.stop.set()

            def work(job: Context) -> None:
                for estimate in model.evaluator.evaluate(structure, model.windows(text), job.stop):
                    job.partial(estimate)
                    job.report(estimate.windows / estimate.of_windows, "Measuring")
                    self._keep(job.job, estimate)

            self._live = self.bench.jobs.submit("Measuring", work, "live")

    def cancel(self) -> None:
        """Stop the running heavy job, or else a long measurement."""
        with self._lock:
            job = self._job
            if job is None or job.over:
                if self._live is not None:
                    self._live.stop.set()
                return
            self._pending = None
            self.bench.jobs.cancel(job.id)
            if job.state == "queued":  # it never starts, but would say so only when its turn has come
                self._job = replace(job, state="cancelled", error="Cancelled.", finished=time.monotonic())
            self._changed()

    def fail(self, message: str) -> None:
        """Show an error."""
        with self._lock:
            self.error = message
            self._changed()

    def close(self, stop_job: bool = True) -> None:
        """Stop what still runs for this session, its heavy job only if asked: another session may follow it."""
        with self._lock:
            for job in (self._live, self._job if stop_job else None):
                if job is not None:
                    job.stop.set()

    @property
    def busy(self) -> bool:
        """Whether something is under way, or has just ended."""
        with self._lock:
            now = time.monotonic()
            jobs = [job for job in (self._job, self._live) if job is not None]
            return any(not job.over or (job.finished and now - job.finished < RECENT) for job in jobs)

    def view(self) -> View:
        """What there is to show."""
        with self._lock:
            self._settle()
            model, editor, live, job, target = self._model, self._editor, self._live, self._job, self.target
            structure = editor.structure if editor else None
            fits = [
                fit(shape, self._device, target.context, target.type) if shape else None
                for shape in (structure, self._dense)
            ]
            measuring = live is not None and not live.over
            return View(
                version=self.version,
                model=model,
                history=editor.history if editor else None,
                structure=structure,
                dense=self._dense,
                device=self._device,
                fit=fits[0],
                dense_fit=fits[1],
                estimate=(live.partial if live else None) or self._last,
                measured=live is not None and live.partial is not None,
                measuring=measuring,
                measure_error=live.error if live and live.state == "failed" else "",
                statistics=model.known_statistics(self._analysed) if model and self._analysed else None,
                analysed=self._analysed,
                pending_ratio=self._pending.budget.value if self._pending else None,
                job=job,
                queue=self.bench.jobs.position(job) if job else 0,
                can_cancel=(job is not None and not job.over)
                or (live is not None and measuring and live.seconds > LONG_MEASUREMENT),
                error=self.error,
                text=self.text,
                target=target,
            )

    def _start(self, title: str, work: Work) -> Job:
        with self._lock:
            self._refuse_second_job()
            self._fresh()
            self._job = self.bench.jobs.submit(title, work)
            return self._job

    def _refuse_second_job(self) -> None:
        if self._job is not None and not self._job.over:
            raise InputError(f"{self._job.title} is still running: wait for it or cancel it.")

    def _need_model(self) -> OpenModel:
        if self._model is None:
            raise InputError("No model is open yet: wait for it to load, or open one.")
        return self._model

    def _need_editor(self) -> Editor:
        if self._editor is None:
            raise InputError("No model is open yet: wait for it to load, or open one.")
        return self._editor

    def _keep(self, job: Job, estimate: Estimate) -> None:
        with self._lock:
            if job is self._live:
                self._last = estimate
                self._changed()

    def _fresh(self) -> None:
        """Something was done: what went wrong before is no longer of interest."""
        self.error = ""
        if self._job is not None and self._job.over:
            self._job = None
        self._changed()

    def _changed(self) -> None:
        self.version += 1
