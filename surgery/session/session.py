"""One person's session at the workbench: a model, a recipe with its history, a text, a device, the running jobs.

Headless: the page shows what `view` says and calls the methods. Every method may be called from any thread; a change
raises `version`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from analysis.importance import registry
from analysis.importance.predictions import predicted_changes
from analysis.text import Windows
from surgery.common.files import refuse_without_room
from surgery.common.jobs import Context, Job
from surgery.common.progress import part_of
from surgery.compensation.compensator import Compensated
from surgery.errors import InputError
from surgery.evaluation.scan import KINDS, scan
from surgery.pruning import catalogue
from surgery.pruning.budget import Budget, Rules
from surgery.pruning.narrowing import Narrowing
from surgery.pruning.neurons import WidthBudget
from surgery.pruning.suggest import suggest
from surgery.recipe.recipe import Edit, Recipe
from surgery.recipe.texts import shown_source
from surgery.session.compare import ComparingSession
from surgery.session.edit import Opened
from surgery.session.heal import Forecasted, HealedCuts
from surgery.session.read import Reading
from surgery.session.view import Cost, Fitted, Scanned, Suggestion, View
from surgery.shipping.download import Download, checkpoint_bytes, pack
from surgery.shipping.shipment import ShippingDownload
from surgery.structure.removal import RemovalKind
from surgery.structure.structure import Structure
from surgery.workbench.open_model import OpenModel
from surgery.workbench.workbench import Workbench

ANALYSING = "Analysing"
"""How the titles of analyses begin: only these take up a narrowing that waits."""
LONG_MEASUREMENT = 2.0
"""Seconds after which a measurement can be cancelled."""


@dataclass(frozen=True)
class Analysed:
    """Result of a job that analysed a text, and what was to be narrowed by it."""

    fingerprint: str
    windows: Windows
    narrowings: tuple[Narrowing, ...]


@dataclass(frozen=True)
class Suggested:
    """Result of a job that chose what goes: these edits take the place of all edits of those ops."""

    fingerprint: str
    ops: tuple[str, ...]
    edits: tuple[Edit, ...]
    cost: Cost | None = None


class Session(ComparingSession):
    """See the module.

    Args:
        bench: what all sessions share.
    """

    def __init__(self, bench: Workbench) -> None:
        super().__init__(bench)
        self._suggestion: Suggestion | None = None
        self._scanned: Scanned | None = None
        self._download: Download | None = None

    def attach(self, identity: str | None) -> bool:
        """Follow a job that was started before the page was reloaded; whether it is still under way."""
        attached = super().attach(identity)
        found = self.bench.downloads.get(identity or "")
        if attached and not isinstance(found, ShippingDownload):
            with self._lock:
                self._download = found
        return attached

    def close(self, stop_job: bool = True) -> None:
        """Stop what still runs, see `JobHolder.close`, and let go of the built file."""
        super().close(stop_job)
        with self._lock:
            self._download = None

    def _settle(self) -> None:
        """Take over the result of a followed job that has ended: its own session may be gone."""
        job = self._followed
        if job is None or not job.over:
            return
        self._followed = None
        try:
            if isinstance(job.result, Opened):
                model = self.bench.opened(job.result.source, job.result.revision)
                if model is not None:
                    self.adopt(model)
            elif isinstance(job.result, Analysed):
                self._finish_analysis(job.result)
            elif isinstance(job.result, Suggested):
                self._finish_suggestion(job.result)
            elif isinstance(job.result, Scanned):
                self._finish_scan(job.result)
            elif isinstance(job.result, Fitted):
                self._finish_fitting(job.result)
            elif isinstance(job.result, Forecasted):
                self._forecasted = job.result
            elif isinstance(job.result, HealedCuts):
                self._finish_healing(job.result)
            elif isinstance(job.partial, Reading):  # a cancelled one has no result, but what was written
                self._reading = job.partial
        except InputError as error:
            self.error = str(error)
        self._pending = ()
        self._changed()

    def analyse(self) -> Job:
        """Run the analysis of the calibration text (as a job)."""
        return self._start_analysis(ANALYSING)

    def _start_analysis(self, title: str) -> Job:
        model = self._need_model()

        def work(job: Context) -> Analysed:
            try:
                windows = self._calibration_windows(model)
                model.statistics(windows, job.report)
                while True:
                    with self._lock:
                        wanted = self._pending
                        if all(narrowing.possible(model, windows) for narrowing in wanted):
                            result = Analysed(model.loaded.fingerprint, windows, wanted)
                            self._finish_analysis(result)
                            return result
                    model.gradients(windows, job.report)
            finally:
                self._pending = ()

        return self._start(title, work)

    def _finish_analysis(self, result: Analysed) -> None:
        with self._lock:
            model, wanted = self._need_model(), self._pending or result.narrowings
            if model.loaded.fingerprint != result.fingerprint or model.known_statistics(result.windows) is None:
                return
            self._analysed, self._pending = result.windows, ()
            self._changed()
            for narrowing in wanted:
                self._narrow(model, narrowing)

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
        budget, method = (
            WidthBudget("expansion_ratio", expansion_ratio, divisor),
            registry.method(method_name, "neurons"),
        )
        with self._lock:
            there = {spec.source for spec in self._need_editor().structure.blocks if spec.mlp}
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
        with self._lock:
            self._refuse_removed(block, "mlp")
            mlp = self._need_model().architecture.blocks[block].mlp
            if mlp is None or not 1 <= width <= mlp.width:
                raise InputError(f"Block {block} can keep 1 to {mlp.width if mlp else 0:,} neurons.")
            return self._narrow_or_wait(Narrowing(method, WidthBudget("width", width), (block,)))

    def _narrow_or_wait(self, wanted: Narrowing) -> Job | None:
        """Narrow at once, or as soon as an analysis gives the scores; it takes the place of what waits for the same."""
        model = self._need_model()
        with self._lock:
            others = tuple(other for other in self._pending if wanted.blocks and other.blocks != wanted.blocks)
            self._pending = others
            if wanted.nothing(model) or wanted.possible(model, self._analysed):
                self._narrow(model, wanted)
                return None
            if self._job is None or self._job.over or not self._job.title.startswith(ANALYSING):
                self._start_analysis(f"{ANALYSING} for {wanted.method.title}")
            self._pending = (*others, wanted)
            self._changed()
            return self._job

    def _narrow(self, model: OpenModel, wanted: Narrowing) -> None:
        edit = None if wanted.nothing(model) else wanted.edit(model, self._analysed)
        self._edit(lambda editor: editor.change(lambda choices: choices.narrowed(edit, wanted.blocks), wanted.stroke))

    def cancel(self) -> None:
        """Stop what runs, see `JobHolder.cancel`; a narrowing that waits for it is dropped."""
        with self._lock:
            if self.heavy:
                self._pending = ()
            super().cancel()

    def suggest(self, method_name: str, budget: Budget, rules: Rules = Rules()) -> Job:
        """Let a method of the catalogue choose what goes, and measure that on the session's text (as a job). Its edits
        take the place of the recipe's edits of the kind that it makes, and the other edits stay. Cancelled while it
        measures, the suggestion stays. What is still to be compensated or quantised is not measured.

        Args:
            method_name: of the catalogue.
            budget: how much should go, of the source model.
            rules: by which rules; the locked blocks are protected besides.

        Raises:
            InputError: there is no such method, or another job is under way.
        """
        model, item, text = self._need_model(), catalogue.entry(method_name), self.text
        kept = replace(rules, protect_blocks=tuple(sorted({*rules.protect_blocks, *self.locked})))

        def work(job: Context) -> Suggested:
            needs_text = item.needs_text or rules.allocation == "cfsp"
            windows = self._calibration_windows(model) if needs_text else None
            recipe = suggest(model, item.name, budget, kept, windows, job.stop, part_of(job.report, 0.0, 0.9))
            result = Suggested(model.loaded.fingerprint, tuple(catalogue.KINDS[item.kind].ops), recipe.edits)
            found = self._finish_suggestion(result)
            if found is not None and not found.structure.pending:
                job.report(0.9, "Measuring what it costs")
                estimate = model.evaluator.measure(found.structure, model.windows(text), job.stop)
                result = replace(result, cost=Cost(found.structure.key, text, estimate))
                with self._lock:
                    if self._suggestion is found:  # else it was taken or discarded meanwhile
                        self._suggestion = replace(found, cost=result.cost)
                        self._changed()
            return result

        return self._start(f"Suggesting: {item.title}", work)

    def _finish_suggestion(self, result: Suggested) -> Suggestion | None:
        """Show what it would make of the recipe in force; None if another model is open."""
        with self._lock:
            model, editor = self._need_model(), self._need_editor()
            if model.loaded.fingerprint != result.fingerprint:
                return None
            self._analysed = self._analysed or self._known_analysis(model)
            recipe = editor.preview(lambda choices: choices.replaced(result.ops, result.edits))
            base, structure = editor.history.current.key, model.resolve(recipe)
            cost = result.cost if result.cost is not None and result.cost.structure == structure.key else None
            self._suggestion = Suggestion(base, result.ops, result.edits, recipe, structure, editor.structure, cost)
            self._changed()
            return self._suggestion

    def take_suggestion(self) -> None:
        """Make the last suggestion the current recipe, as one step.

        Raises:
            InputError: there is none for the recipe in force.
        """
        with self._lock:
            found = self._shown_suggestion()
            if found is None:
                raise InputError("There is no suggestion for this recipe: ask for one.")
            self._decide(lambda editor: editor.change(lambda choices: choices.replaced(found.ops, found.edits)))
            self._suggestion = None

    def discard_suggestion(self) -> None:
        """Forget the last suggestion."""
        with self._lock:
            self._suggestion = None
            self._fresh()

    def _shown_suggestion(self) -> Suggestion | None:
        """The last one, while the recipe is the one that it starts from."""
        known, editor = self._suggestion, self._editor
        return known if known and editor and known.base == editor.history.current.key else None

    def scan(self, kinds: Sequence[RemovalKind] = KINDS) -> Job:
        """Measure each single removal on the session's text, and predict it from the gradients on the calibration text
        (as a job). What has been measured is kept when the rest is cancelled.

        Raises:
            InputError: no kind is named, or another job is under way.
        """
        model, text = self._need_model(), self.text
        if not kinds:
            raise InputError("Choose what is to be removed: blocks, attentions or MLPs.")

        def work(job: Context) -> Scanned:
            found = scan(model.evaluator, model.windows(text), kinds, job.stop, part_of(job.report, 0.0, 0.7))
            result = Scanned(model.loaded.fingerprint, text, found, None)
            self._finish_scan(result)
            gradients = model.gradients(self._calibration_windows(model), part_of(job.report, 0.7, 1.0))
            result = replace(result, predicted=predicted_changes(gradients))
            self._finish_scan(result)
            return result

        return self._start("Measuring every removal", work)

    def _finish_scan(self, result: Scanned) -> None:
        """Keep a scan, and what an earlier one on the same text has measured besides."""
        with self._lock:
            self._scanned = result if self._scanned is None else result.joined(self._scanned)
            self._changed()

    def build(self, base: Path | None = None) -> Job:
        """Make the smaller model as one file to take away (as a job). A session keeps one: the last one is deleted.

        Args:
            base: the folder in which to make one; the system's place for temporary files when None.

        Raises:
            InputError: there is not enough room, or another job is under way.
        """
        model = self._need_model()
        with self._lock:
            self._refuse_second_job()
            recipe, structure = self._documented(), self._need_editor().structure
            self._download = None  # its room is needed
            download = Download(base)
            refuse_without_room(download.folder, 2 * checkpoint_bytes(model, structure))
            known, texts = self._known_complete(model, structure), self._texts_for(structure)

            def work(job: Context) -> None:
                compensating = 0.0 if known else 0.5
                completed = known or model.complete(structure, texts, part_of(job.report, 0.0, 0.5), job.stop)
                pack(model, completed.structure, recipe, download, part_of(job.report, compensating, 1.0))

            job = self._start("Building", work)
            self._download = self.bench.downloads[job.id] = download
            return job

    def exported(self) -> str:
        """The recipe file's text, with its measured results when they are complete."""
        return self._documented().to_json()

    def _documented(self) -> Recipe:
        view = self.view()
        recipe = self._need_editor().history.current
        if view.measured and view.estimate is not None and view.estimate.complete and not view.measuring:
            results = view.estimate.document() | {"text": shown_source(view.text.source), "window": view.text.window}
            recipe = recipe.model_copy(update={"results": results})
        return recipe

    def view(self) -> View:
        """What there is to show."""
        with self._lock:
            self._settle()
            model, editor, live, job, target = self._model, self._editor, self._live, self._shown_job(), self.target
            structure = editor.structure if editor else None
            fits = [self._fit(shape) if shape else None for shape in (structure, self._dense)]
            compensating = self._refit is not None and not self._refit.over
            measuring = compensating or (live is not None and not live.over)
            scanned = self._scanned
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
                locked=self.locked,
                measured=live is not None and live.partial is not None,
                measuring=measuring,
                measure_error=next((j.error for j in (live, self._refit) if j and j.state == "failed"), ""),
                statistics=model.known_statistics(self._analysed) if model and self._analysed else None,
                analysed=self._analysed,
                pending_ratio=next((wait.budget.value for wait in self._pending if wait.budget.unit != "width"), None),
                pending_widths={
                    block: int(wait.budget.value)
                    for wait in self._pending
                    if wait.budget.unit == "width"
                    for block in wait.blocks or ()
                },
                job=job,
                queue=self.bench.jobs.position(job) if job else 0,
                can_cancel=bool(self.heavy) or (live is not None and measuring and live.seconds > LONG_MEASUREMENT),
                error=self.error,
                text=self.text,
                target=target,
                compensated=self._shown_compensation(structure),
                compensating=compensating,
                tried=dict(self._tried.get(self._quantised_thing(structure), {})) if structure else {},
                scanned=scanned if scanned is not None and model is not None and scanned.of(model, self.text) else None,
                packed=self._download.packed if self._download is not None else None,
                shipment=self.shipment,
                room=self._shown_room(structure),
                fitted=self._shown_fitting(),
                heal_progress=self._shown_progress(),
                heal_forecast=self._shown_forecast(),
                healed=self._shown_outcome(),
                adapter=self._shown_adapter(structure),
                reading=self._shown_reading(),
                suggestion=self._shown_suggestion(),
                compared=self._shown_tried(),
            )

    def _shown_compensation(self, structure: Structure | None) -> Compensated | None:
        known = self._completed
        return known[1] if known is not None and structure is not None and known[0] == structure.key else None
