"""A suggestion of what goes, by a method of the catalogue, before anybody has agreed to it."""

from __future__ import annotations

from dataclasses import dataclass, replace

from surgery.common.jobs import Context, Job, JobKind
from surgery.common.progress import part_of
from surgery.errors import InputError
from surgery.evaluation.estimate import Estimate
from surgery.pruning import catalogue
from surgery.pruning.budget import Budget, Rules
from surgery.pruning.suggest import suggest
from surgery.recipe.recipe import Edit, Recipe
from surgery.recipe.texts import TextChoice
from surgery.session.edit import SessionEdit
from surgery.session.jobs import SessionJobs
from surgery.session.state import SessionState
from surgery.structure.structure import Structure


@dataclass(frozen=True)
class Cost:
    """What a structure, named by its key, was measured to cost on a text."""

    structure: str
    text: TextChoice
    estimate: Estimate


@dataclass(frozen=True)
class Suggested:
    """Result of a job that chose what goes: these edits take the place of all edits of those ops."""

    fingerprint: str
    """Of the model."""
    ops: tuple[str, ...]
    edits: tuple[Edit, ...]
    cost: Cost | None = None


@dataclass(frozen=True)
class Suggestion:
    """What a method would take out of the recipe in force, before anybody has agreed to it."""

    base: str
    """Key of the recipe that it starts from."""
    ops: tuple[str, ...]
    """Edits of these kinds are replaced."""
    edits: tuple[Edit, ...]
    recipe: Recipe
    """As it would be."""
    structure: Structure
    before: Structure
    cost: Cost | None = None
    """Measured before anybody has agreed; None until then, and where something is to be computed first."""


class SessionSuggest:
    """Asks a method, and keeps the last suggestion until it is taken or discarded."""

    def __init__(self, state: SessionState, jobs: SessionJobs, edit: SessionEdit) -> None:
        self.state, self.jobs, self.edit = state, jobs, edit
        self._suggestion: Suggestion | None = None
        jobs.takes_over(JobKind.SUGGEST, self._finish)

    def start(self, method_name: str, budget: Budget, rules: Rules = Rules()) -> Job:
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
        state = self.state
        model, item, text = state.need_model(), catalogue.entry(method_name), state.text
        kept = replace(rules, protect_blocks=tuple(sorted({*rules.protect_blocks, *state.locked})))

        def work(job: Context) -> Suggested:
            needs_text = item.needs_text or rules.allocation == "cfsp"
            windows = state.calibration_windows(model) if needs_text else None
            recipe = suggest(model, item.name, budget, kept, windows, job.stop, part_of(job.report, 0.0, 0.9))
            result = Suggested(model.loaded.fingerprint, tuple(catalogue.KINDS[item.kind].ops), recipe.edits)
            found = self._finish(result)
            if found is not None and not found.structure.pending:
                job.report(0.9, "Measuring what it costs")
                estimate = model.evaluator.measure(found.structure, model.windows(text), job.stop)
                result = replace(result, cost=Cost(found.structure.key, text, estimate))
                with state.lock:
                    if self._suggestion is found:  # else it was taken or discarded meanwhile
                        self._suggestion = replace(found, cost=result.cost)
                        state.changed()
            return result

        return self.jobs.start(JobKind.SUGGEST, f"Suggesting: {item.title}", work)

    def take(self) -> None:
        """Make the last suggestion the current recipe, as one step; `InputError` if there is none for it now."""
        with self.state.lock:
            found = self.shown()
            if found is None:
                raise InputError("There is no suggestion for this recipe: ask for one.")
            self.edit.decide(lambda editor: editor.change(lambda choices: choices.replaced(found.ops, found.edits)))
            self._suggestion = None

    def discard(self) -> None:
        """Forget the last suggestion."""
        with self.state.lock:
            self._suggestion = None
            self.jobs.fresh()

    def shown(self) -> Suggestion | None:
        """The last one, while the recipe is the one that it starts from."""
        known, editor = self._suggestion, self.state.editor
        return known if known and editor and known.base == editor.history.current.key else None

    def _finish(self, result: Suggested) -> Suggestion | None:
        """Show what it would make of the recipe in force; None if another model is open."""
        state = self.state
        with state.lock:
            model, editor = state.need_model(), state.need_editor()
            if model.loaded.fingerprint != result.fingerprint:
                return None
            state.analysed = state.analysed or state.known_analysis(model)
            recipe = editor.preview(lambda choices: choices.replaced(result.ops, result.edits))
            base, structure = editor.history.current.key, model.resolve(recipe)
            cost = result.cost if result.cost is not None and result.cost.structure == structure.key else None
            self._suggestion = Suggestion(base, result.ops, result.edits, recipe, structure, editor.structure, cost)
            state.changed()
            return self._suggestion
