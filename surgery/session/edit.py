"""The recipe of one session: an open model, edits with undo, a text and a device."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from typing import Any

from surgery.common.jobs import Context, Job, JobKind
from surgery.common.numbers import whole
from surgery.common.ranges import check_blocks
from surgery.errors import InputError, RecipeError
from surgery.fit.kv_cache import check_kv_type
from surgery.fit.weight_types import weight_type
from surgery.recipe.base import TextReference
from surgery.recipe.edits import Compensate, How
from surgery.recipe.recipe import SCHEMA, Recipe
from surgery.recipe.texts import TextChoice, text_reference
from surgery.session.editor import Editor
from surgery.session.jobs import SessionJobs
from surgery.session.measure import SessionMeasure
from surgery.session.state import Listeners, SessionState, Target
from surgery.structure.structure import dense
from surgery.workbench.open_model import OpenModel

COMPENSATIONS: tuple[How, ...] = ("least_squares", "linear_patch", "bias")
RIVALS: dict[How, How] = {"least_squares": "bias", "bias": "least_squares"}
"""Compensations that make up for the same loss: switching one on switches the other off."""


@dataclass(frozen=True)
class Opened:
    """Result of a job that opened a model. It does not hold the model: finished jobs are remembered for long."""

    source: str
    revision: str | None


class SessionEdit:
    """Opens models and changes the shared state; every change of the recipe or the text is measured."""

    def __init__(self, state: SessionState, jobs: SessionJobs, measure: SessionMeasure) -> None:
        self.state, self.jobs, self.measure = state, jobs, measure
        self.on_decide = Listeners()
        """Called after a change that settles how wide the MLPs are, with the lock held."""
        self._locked_before: tuple[int, ...] = ()
        jobs.takes_over(JobKind.OPEN, self._take_over)

    def open(self, source: str, revision: str | None = None, recipe: Recipe | None = None) -> Job | None:
        """Open a model: at once if it is open for somebody else, otherwise as a job; then it is measured.

        The arguments are those of `surgery.models.loading.load`, and a recipe to start with, see `adopt`.

        Raises:
            InputError: another job is under way.
        """
        source, revision = source.strip(), revision or None
        with self.state.lock:
            self.jobs.refuse_second()
            known = self.state.bench.opened(source, revision)
            if known is not None:
                self.adopt(known, recipe)
                return None

        def work(job: Context) -> Opened:
            self.adopt(self.state.bench.open(source, revision, job.report), recipe)
            return Opened(source, revision)

        return self.jobs.start(JobKind.OPEN, f"Opening {source}", work)

    def _take_over(self, opened: Opened) -> None:
        model = self.state.bench.opened(opened.source, opened.revision)
        if model is not None:
            self.adopt(model)

    def adopt(self, model: OpenModel, recipe: Recipe | None = None) -> None:
        """Work on an open model from now on; a remembered recipe that does not fit it is left out, and said so."""
        editor, problem, state = Editor(model), "", self.state
        if recipe is not None:
            try:
                editor.take(recipe)
            except RecipeError as error:
                problem = f"The recipe kept in this browser was left out: {error}"
        with state.lock:
            state.model, state.editor, state.dense = model, editor, dense(model.architecture)
            state.on_adopt.call(model)
            count = len(model.architecture.blocks)
            state.locked, self._locked_before = tuple(block for block in self._locked_before if block < count), ()
            state.analysed = state.known_analysis(model)
            self.jobs.fresh()
            state.error = problem
            self.measure.start()

    def switch(self, blocks: list[int], attention: list[int], mlp: list[int]) -> None:
        """Switch exactly these parts off; `RecipeError` if there is no such part, or nothing would be left."""
        self.apply(lambda editor: editor.change(lambda choices: choices.switched(blocks, attention, mlp)))

    def switch_heads(self, block: int, kv_groups: Collection[int], query_heads: Collection[int] = ()) -> None:
        """Switch exactly these KV groups of a block off, and exactly these query heads of the groups that stay.

        Raises:
            InputError: the block has no attention, or it is removed.
            RecipeError: no checkpoint can express it.
        """
        with self.state.lock:
            self.state.refuse_removed(block, "attention")
            attention = self.state.need_model().architecture.blocks[block].attention
            assert attention is not None  # it would have been refused
            size = attention.heads_per_group
            alone = [head for head in query_heads if head // size not in kv_groups]
            self.apply(lambda editor: editor.change(lambda choices: choices.without_heads(block, kv_groups, alone)))

    def lock(self, blocks: Collection[int]) -> None:
        """Say which blocks must stay: suggestions leave them as they are. Not a part of the recipe."""
        count = len(self.state.need_model().architecture.blocks)
        check_blocks(blocks, count, "Only the blocks 0 to {last} can be locked.")
        with self.state.lock:
            self.state.locked = tuple(sorted(set(blocks)))
            self.state.changed()

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
        model = self.state.need_model()
        with self.state.lock:
            there = [edit for edit in self.current_recipe().edits if isinstance(edit, Compensate)]
            going = {RIVALS.get(name) for name in how} - set(how) if on else set(how)
            edits = [edit for edit in there if edit.how not in going]
            new = [name for name in COMPENSATIONS if on and name in set(how) - {edit.how for edit in edits}]
            if new:
                text = edits[0].text if edits else self._text_reference(model)
                edits += [Compensate(how=name, text=text) for name in new]
            self.apply(lambda editor: editor.change(lambda choices: choices.replaced(("compensate",), edits)))

    def quantise(self, settings: dict[str, Any] | None) -> None:
        """Store the weights in fewer bits, or as they are. What needs a text takes the calibration text.

        Args:
            settings: of a `Quantize` edit, without `text`; `importance` asks for an importance matrix. None: as they
                are, which takes a low-rank repair away too.

        Raises:
            InputError: the settings make no sense, or the format cannot hold the model.
        """
        model = self.state.need_model()
        edits: list[dict[str, Any]] = []
        if settings is not None:
            chosen = dict(settings)
            weighted = chosen.pop("importance", False) or chosen.get("method") == "gptq"
            text = self._text_reference(model).model_dump() if weighted else None
            edits = [{"op": "quantize", **chosen, "text": text}]
        ops = ("quantize",) if edits else ("quantize", "eora")
        new = Recipe.read({"schema": SCHEMA, "model": model.reference, "edits": edits}).edits
        self.apply(lambda editor: editor.change(lambda choices: choices.replaced(ops, new)))

    def repair(self, rank: int) -> None:
        """Repair the quantised model by low-rank matrices of that rank, from the calibration text; 0 for none."""
        model = self.state.need_model()
        with self.state.lock:
            if rank and self.state.need_editor().structure.quantize is None:
                raise InputError("There is nothing to repair: choose how the weights are stored first.")
            edits = [{"op": "eora", "rank": rank, "text": self._text_reference(model).model_dump()}] if rank else []
            new = Recipe.read({"schema": SCHEMA, "model": model.reference, "edits": edits}).edits
            self.apply(lambda editor: editor.change(lambda choices: choices.replaced(("eora",), new)))

    def _text_reference(self, model: OpenModel) -> TextReference:
        windows = self.state.calibration_windows(model)
        if windows.count < 2:
            raise InputError("This needs at least 2 windows of text: set more windows to measure on.")
        return text_reference(windows)

    def take(self, recipe: Recipe) -> None:
        """Make a recipe the current one (import); `RecipeError` if it does not fit this model."""
        self.decide(lambda editor: editor.take(recipe))

    def take_ready(self, name: str) -> None:
        """Make a ready recipe of the open model the current one; `InputError` if there is none of that name."""
        self.take(self.state.bench.ready_recipes.get(name, self.state.need_model().loaded.fingerprint))

    def current_recipe(self) -> Recipe:
        """The recipe in force."""
        with self.state.lock:
            return self.state.need_editor().history.current

    def undo(self) -> None:
        """One step back."""
        self.decide(Editor.undo)

    def redo(self) -> None:
        """One step forward."""
        self.decide(Editor.redo)

    def reset(self) -> None:
        """Back to the dense model, as a step that can be undone."""
        self.decide(Editor.reset)

    def decide(self, change: Callable[[Editor], None]) -> None:
        """Apply a change that also settles how wide the MLPs are: a narrowing that waits for an analysis is dropped."""
        with self.state.lock:
            self.apply(change)
            self.on_decide.call()

    def apply(self, change: Callable[[Editor], None]) -> None:
        """Change the recipe and measure it; a change that is refused leaves everything as it was."""
        with self.state.lock:
            change(self.state.need_editor())
            self.jobs.fresh()
            self.measure.start()

    def set_text(self, text: TextChoice) -> None:
        """Measure on another text, and analyse its calibration half from now on; `TextError` if it is too short."""
        state = self.state
        model = state.need_model()
        state.bench.limits.check_text(text)
        model.windows(text)
        with state.lock:
            state.text = text
            windows = max(text.windows, 16) if text.source == "embedded" else text.windows
            state.calibration = replace(text, purpose="calibration", windows=windows)
            state.analysed = state.known_analysis(model)
            self.jobs.fresh()
            self.measure.start()

    def set_target(self, target: Target) -> None:
        """Another device, context, weight type or KV-cache type; `InputError` if there is no such one."""
        device = self.state.bench.devices.get(target.device)
        weight_type(target.type)
        check_kv_type(target.kv_type)
        whole(target.context, "The context (tokens)", 1)
        with self.state.lock:
            self.state.target, self.state.device = target, device
            self.jobs.fresh()
