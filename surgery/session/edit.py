"""The recipe of one person's session: an open model, edits with undo, a text and a device, and the measurement."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from typing import Any

from analysis.text import Windows
from surgery.common.jobs import Context, Job
from surgery.common.ranges import check_blocks
from surgery.compensation.compensator import Compensated
from surgery.errors import InputError, RecipeError, TextError
from surgery.evaluation.estimate import Estimate
from surgery.fit.kv_cache import check_kv_type
from surgery.fit.weight_types import weight_type
from surgery.formats.table import format_of
from surgery.pruning.narrowing import Narrowing
from surgery.recipe.base import TextReference
from surgery.recipe.edits import Compensate, How
from surgery.recipe.recipe import SCHEMA, Recipe
from surgery.recipe.texts import TextChoice, text_reference
from surgery.session.editor import Editor
from surgery.session.jobs import JobHolder
from surgery.session.view import Target
from surgery.structure.resolve import NAMES
from surgery.structure.structure import Part, Structure, dense
from surgery.workbench.open_model import OpenModel
from surgery.workbench.workbench import Workbench

MOST_TEXTS = 16
"""Calibration texts of a session that its recipes may go on naming."""
LOOK = 0.02
"""Seconds between two looks at what is awaited."""
MOST_TRIED = 64
"""Recipes of a session whose quantisations are remembered."""
COMPENSATIONS: tuple[How, ...] = ("least_squares", "linear_patch", "bias")
RIVALS: dict[How, How] = {"least_squares": "bias", "bias": "least_squares"}
"""Compensations that make up for the same loss: switching one on switches the other off."""


@dataclass(frozen=True)
class Opened:
    """Result of a job that opened a model. It does not hold the model: finished jobs are remembered for long."""

    source: str
    revision: str | None


class EditingSession(JobHolder):
    """See the module.

    Args:
        bench: what all sessions share.
    """

    def __init__(self, bench: Workbench) -> None:
        super().__init__(bench)
        self.text = TextChoice()
        self.calibration = TextChoice(windows=16, purpose="calibration")
        self.target = Target()
        self._device = bench.devices.get(self.target.device)
        self._model: OpenModel | None = None
        self._editor: Editor | None = None
        self._dense: Structure | None = None
        self._analysed: Windows | None = None
        self._pending: tuple[Narrowing, ...] = ()
        """What waits for an analysis: of all MLPs, or of different blocks."""
        self.locked: tuple[int, ...] = ()
        """Blocks that must stay."""
        self._locked_before: tuple[int, ...] = ()
        self._last: Estimate | None = None
        self._texts: dict[str, TextChoice] = {}
        """Calibration texts that were chosen here, by fingerprint: the ones that a compensation may be computed on."""
        self._refitted = ""
        """Key of the structure that the compensation job is for."""
        self._tried: dict[tuple[str, TextChoice], dict[tuple[str, bool], float]] = {}
        """Measured perplexities by what is quantised and the text, then by type and importance matrix."""
        self._completed: tuple[str, Compensated] | None = None
        """The last structure that was completed, by its key: the model's own memory of them is bounded."""

    def open(self, source: str, revision: str | None = None, recipe: Recipe | None = None) -> Job | None:
        """Open a model: at once if it is open for somebody else, otherwise as a job; then it is measured.

        Args:
            source: as for `surgery.models.loading.load`.
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
            self._pending, self._last, self._completed = (), None, None
            count = len(model.architecture.blocks)
            self.locked, self._locked_before = tuple(block for block in self._locked_before if block < count), ()
            self._analysed = self._known_analysis(model)
            self._fresh()
            self.error = problem
        self.measure()

    def _known_analysis(self, model: OpenModel) -> Windows | None:
        """The calibration windows, if somebody has had them analysed already."""
        try:
            windows = self._calibration_windows(model)
        except TextError:
            return None
        return windows if model.known_statistics(windows) is not None else None

    def _calibration_windows(self, model: OpenModel) -> Windows:
        """The windows of the calibration text, which recipes of this session may name from now on."""
        chosen = self.calibration
        windows = model.windows(chosen)
        with self._lock:
            self._texts.pop(windows.text_fingerprint, None)
            self._texts[windows.text_fingerprint] = chosen
            for oldest in list(self._texts)[:-MOST_TEXTS]:
                del self._texts[oldest]
        return windows

    def switch(self, blocks: list[int], attention: list[int], mlp: list[int]) -> None:
        """Switch exactly these parts off."""
        self._edit(lambda editor: editor.change(lambda choices: choices.switched(blocks, attention, mlp)))

    def switch_heads(self, block: int, kv_groups: Collection[int], query_heads: Collection[int] = ()) -> None:
        """Switch exactly these KV groups of a block off, and exactly these query heads of the groups that stay.

        Raises:
            InputError: the block has no attention, or it is removed.
            RecipeError: no checkpoint can express it.
        """
        with self._lock:
            self._refuse_removed(block, "attention")
            attention = self._need_model().architecture.blocks[block].attention
            assert attention is not None  # it would have been refused
            size = attention.heads_per_group
            alone = [head for head in query_heads if head // size not in kv_groups]
            self._edit(lambda editor: editor.change(lambda choices: choices.without_heads(block, kv_groups, alone)))

    def _refuse_removed(self, block: int, part: Part) -> None:
        """Refuse to narrow what is not there."""
        structure, blocks = self._need_editor().structure, self._need_model().architecture.blocks
        if not 0 <= block < len(blocks):
            raise InputError(f"There is no block {block}: the model has blocks 0 to {len(blocks) - 1}.")
        if getattr(blocks[block], part) is None:
            raise InputError(f"Block {block} has no {NAMES[part]} in this model.")
        if not any(spec.source == block and getattr(spec, part) for spec in structure.blocks):
            raise InputError(f"The {NAMES[part]} of block {block} is removed: bring it back first.")

    def lock(self, blocks: Collection[int]) -> None:
        """Say which blocks must stay: suggestions leave them as they are. Not a part of the recipe.

        Raises:
            InputError: no model is open, or it has no such block.
        """
        count = len(self._need_model().architecture.blocks)
        check_blocks(blocks, count, "Only the blocks 0 to {last} can be locked.")
        with self._lock:
            self.locked = tuple(sorted(set(blocks)))
            self._changed()

    def remember_locked(self, blocks: Collection[int]) -> None:
        """Blocks that were locked in the model that is opened next, as far as it has them."""
        self._locked_before = tuple(sorted(set(blocks)))

    def compensate(self, how: Collection[How], on: bool) -> None:
        """Switch compensations on, on the calibration text, or off. Others stay, but least squares and bias exclude
        each other.

        Raises:
            InputError: the calibration text has a single window.
            RecipeError: the recipe cannot be compensated in that way.
        """
        model = self._need_model()
        with self._lock:
            there = [edit for edit in self._need_editor().history.current.edits if isinstance(edit, Compensate)]
            going = {RIVALS.get(name) for name in how} - set(how) if on else set(how)
            edits = [edit for edit in there if edit.how not in going]
            new = [name for name in COMPENSATIONS if on and name in set(how) - {edit.how for edit in edits}]
            if new:
                text = edits[0].text if edits else self._text_reference(model)
                edits += [Compensate(how=name, text=text) for name in new]
            self._edit(lambda editor: editor.change(lambda choices: choices.replaced(("compensate",), edits)))

    def quantise(self, settings: dict[str, Any] | None) -> None:
        """Store the weights in fewer bits, or as they are. What needs a text takes the calibration text.

        Args:
            settings: of a `Quantize` edit, without `text`; `importance` asks for an importance matrix. None: as they
                are, which takes a low-rank repair away too.

        Raises:
            InputError: the settings make no sense, or the format cannot hold the model.
        """
        model = self._need_model()
        edits: list[dict[str, Any]] = []
        if settings is not None:
            chosen = dict(settings)
            weighted = chosen.pop("importance", False) or chosen.get("method") == "gptq"
            text = self._text_reference(model).model_dump() if weighted else None
            edits = [{"op": "quantize", **chosen, "text": text}]
        ops = ("quantize",) if edits else ("quantize", "eora")
        new = Recipe.read({"schema": SCHEMA, "model": model.reference, "edits": edits}).edits
        self._edit(lambda editor: editor.change(lambda choices: choices.replaced(ops, new)))

    def repair(self, rank: int) -> None:
        """Repair the quantised model by low-rank matrices of that rank, from the calibration text; 0 for none.

        Raises:
            InputError: there is no quantisation to repair, or the rank is out of range.
        """
        model = self._need_model()
        with self._lock:
            if rank and self._need_editor().structure.quantize is None:
                raise InputError("There is nothing to repair: choose how the weights are stored first.")
            edits = [{"op": "eora", "rank": rank, "text": self._text_reference(model).model_dump()}] if rank else []
            new = Recipe.read({"schema": SCHEMA, "model": model.reference, "edits": edits}).edits
            self._edit(lambda editor: editor.change(lambda choices: choices.replaced(("eora",), new)))

    def _text_reference(self, model: OpenModel) -> TextReference:
        windows = self._calibration_windows(model)
        if windows.count < 2:
            raise InputError("This needs at least 2 windows of text: set more windows to measure on.")
        return text_reference(windows)

    def take(self, recipe: Recipe) -> None:
        """Make a recipe the current one (import).

        Raises:
            RecipeError: it does not fit this model.
        """
        self._decide(lambda editor: editor.take(recipe))

    def take_ready(self, name: str) -> None:
        """Make a ready recipe of the open model the current one.

        Raises:
            InputError: there is none of that name.
        """
        self.take(self.bench.ready_recipes.get(name, self._need_model().loaded.fingerprint))

    def current_recipe(self) -> Recipe:
        """The recipe in force."""
        with self._lock:
            return self._need_editor().history.current

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
            self._pending = ()

    def _edit(self, change: Callable[[Editor], None]) -> None:
        """Change the recipe and measure it."""
        with self._lock:
            change(self._need_editor())
            self._fresh()
            self.measure()

    def set_text(self, text: TextChoice) -> None:
        """Measure on another text, and analyse its calibration half from now on.

        Raises:
            TextError: it cannot be cut into such windows.
        """
        model = self._need_model()
        self.bench.limits.check_text(text)
        model.windows(text)
        with self._lock:
            self.text = text
            windows = max(text.windows, 16) if text.source == "embedded" else text.windows
            self.calibration = replace(text, purpose="calibration", windows=windows)
            self._analysed = self._known_analysis(model)
            self._fresh()
        self.measure()

    def set_target(self, target: Target) -> None:
        """Another device, context, weight type or KV-cache type.

        Raises:
            InputError: unknown or out of range.
        """
        device = self.bench.devices.get(target.device)
        weight_type(target.type)
        check_kv_type(target.kv_type)
        if target.context < 1:
            raise InputError("The context must be at least 1 token.")
        with self._lock:
            self.target, self._device = target, device
            self._fresh()

    def measure(self) -> None:
        """Measure the current recipe, after its compensations have been computed where it has some that are not known.

        What is under way for an older recipe stops.
        """
        with self._lock:
            model, structure, text = self._need_model(), self._need_editor().structure, self.text
            if self._live is not None:
                self._live.stop.set()
            completed = self._known_complete(model, structure)
            if completed is None:
                self._live = None
                self._complete(model, structure)
                return
            self._stop_refit()
            self._completed = structure.key, completed

            def work(job: Context) -> None:
                for estimate in model.evaluator.evaluate(completed.structure, model.windows(text), job.stop):
                    job.partial(estimate)
                    job.report(estimate.windows / estimate.of_windows, "Measuring")
                    self._keep(job.job, estimate)

            self._live = self.bench.jobs.submit("Measuring", work, "live")

    def wait_for_number(self, seconds: float) -> None:
        """Until what is being measured has another number, or ends, or the time is over.

        A heavy job is not waited beside: somebody wants to see its progress.

        Args:
            seconds: the longest wait.
        """
        known, end = self._last, time.monotonic() + seconds
        while self._last is known and time.monotonic() < end and not self.heavy:
            if self._live is None or self._live.over:
                return
            time.sleep(LOOK)

    def _known_complete(self, model: OpenModel, structure: Structure) -> Compensated | None:
        if self._completed is not None and self._completed[0] == structure.key:
            return self._completed[1]
        return model.known_complete(structure)

    def _complete(self, model: OpenModel, structure: Structure) -> None:
        """Compute what is pending as a job, then measure; one that is under way for this structure goes on."""
        wanted = structure.key
        if self._refit is not None and not self._refit.over and not self._refit.stop.is_set():
            if self._refitted == wanted:
                return
            self._stop_refit()
        texts = self._texts_for(structure)

        def work(job: Context) -> None:
            found = model.complete(structure, texts, job.report, job.stop)
            with self._lock:
                if self._refit is job.job and self._need_editor().structure.key == wanted:
                    self._completed = wanted, found
                    self.measure()

        self._refitted = wanted
        self._refit = self.bench.jobs.submit("Compensating" if structure.compensations else "Quantising", work)
        self._changed()

    def _stop_refit(self) -> None:
        if self._refit is not None:
            self._refit.stop.set()
            self._refit = None

    def _texts_for(self, structure: Structure) -> list[TextChoice]:
        """Texts that edits name and that were chosen in this session; the embedded one is always at hand."""
        named = (edit.text for edit in (*structure.compensations, structure.quantize, structure.eora) if edit)
        found = {text.fingerprint: self._texts.get(text.fingerprint) for text in named if text}
        return [text for text in found.values() if text is not None]

    def _keep(self, job: Job, estimate: Estimate) -> None:
        with self._lock:
            if job is self._live:
                self._last = estimate
                if estimate.complete:
                    self._remember(estimate.perplexity)
                self._changed()

    def _remember(self, perplexity: float) -> None:
        """Keep what a GGUF type of the current recipe, or no quantisation, has given."""
        structure = self._need_editor().structure
        edit = structure.quantize
        if structure.eora is None and (edit is None or format_of(edit).one_file):
            kind = ("", False) if edit is None else (edit.type, edit.text is not None)
            self._tried.setdefault(self._quantised_thing(structure), {})[kind] = perplexity
            for oldest in list(self._tried)[:-MOST_TRIED]:
                del self._tried[oldest]

    def _quantised_thing(self, structure: Structure) -> tuple[str, TextChoice]:
        return replace(structure, quantize=None, eora=None).key, self.text

    def _need_model(self) -> OpenModel:
        if self._model is None:
            raise InputError("No model is open yet: wait for it to load, or open one.")
        return self._model

    def _need_editor(self) -> Editor:
        if self._editor is None:
            raise InputError("No model is open yet: wait for it to load, or open one.")
        return self._editor
