"""One healing from a recipe to a healed recipe: completes the structure, reads the text, trains, keeps the result."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from threading import Event
from typing import TYPE_CHECKING, Any

from analysis.importance.similarity import coarse_importance
from analysis.statistics.collect import collect
from analysis.text import Windows
from surgery.checkpoints.build import build_model
from surgery.common.progress import Report, checker_of, silent
from surgery.errors import RecipeError
from surgery.recipe import recipe as recipes
from surgery.recipe.healing import Heal, HealResult
from surgery.recipe.recipe import Recipe
from surgery.structure.structure import Structure
from surgery.training.adapters import Adapter, adapter_of, merge
from surgery.training.data import HealingText
from surgery.training.head import Head
from surgery.training.objectives import Contrastive, Distilled, PlainText
from surgery.training.processes import Processes
from surgery.training.student import Student
from surgery.training.targets import positions_of, ranks_by_importance
from surgery.training.teacher import Teacher, TopK, continuations
from surgery.training.trainer import Outcome, Progress, Trainer

if TYPE_CHECKING:
    from surgery.recipe.texts import TextChoice
    from surgery.workbench.open_model import OpenModel

IMPORTANCE_WINDOWS = 4
"""Healing windows from which the blocks' coarse importance is taken."""


@dataclass(frozen=True)
class Healed:
    """A finished healing."""

    recipe: Recipe
    """With the heal edit and what it reached."""
    structure: Structure
    """With the adapter merged, ready to be measured and built."""
    adapter: Adapter
    outcome: Outcome
    student: Student

    def document(self) -> dict[str, Any]:
        """Plain JSON values; `before` and `after` are perplexities of the held-out windows, null if one overflows."""
        outcome = self.outcome
        return {
            "before": _finite(outcome.before),
            "after": _finite(outcome.after),
            "steps": outcome.steps,
            "best_step": outcome.best_step,
            "ending": outcome.ending,
            "tokens_per_second": outcome.tokens_per_second,
            "seconds": outcome.seconds,
            "trainable_parameters": self.adapter.parameters,
            "adapter": self.adapter.fingerprint,
            "recipe": self.recipe.key,
        }

    def report(self) -> dict[str, Any]:
        """The document with the loss curve."""
        history = [{name: _finite(value) for name, value in entry.items()} for entry in self.outcome.history]
        return self.document() | {"history": history}


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def with_heal(recipe: Recipe, edit: Heal) -> Recipe:
    """A recipe with that healing behind its cuts and compensations, in the place of one that it has."""
    others = [other for other in recipe.edits if not isinstance(other, Heal)]
    late = (recipes.Quantize, recipes.Eora)
    place = next((index for index, other in enumerate(others) if isinstance(other, late)), len(others))
    return recipe.with_edits(*others[:place], edit, *others[place:])


def heal_of(recipe: Recipe) -> Heal:
    """A recipe's healing. Raises RecipeError: it has none."""
    edit = recipe.find(Heal)
    if edit is None:
        raise RecipeError("The recipe has no heal edit: add one.")
    return edit


class Healer:
    """Heals recipes of one open model.

    Args:
        model: never changed.
        recipe: with a heal edit; edits behind it do not matter here.
        text: the healing text that the edit names, held-out windows included.
        texts: calibration texts for the recipe's compensations.
        checkpoint: folder for the state of an unfinished training.
        report: progress of what comes before the training; may raise to stop.

    Raises:
        RecipeError: the recipe does not fit the model, or names another text.
    """

    def __init__(
        self,
        model: OpenModel,
        recipe: Recipe,
        text: HealingText,
        texts: Sequence[TextChoice] = (),
        processes: Processes | None = None,
        checkpoint: Path | None = None,
        report: Report = silent,
        stop: Event | None = None,
    ) -> None:
        self.model, self.recipe, self.edit = model, recipe, heal_of(recipe)
        self.processes = processes or Processes()
        if (text.windows.text_fingerprint, text.windows.count) != (self.edit.text.fingerprint, self.edit.text.windows):
            raise RecipeError(
                f"The recipe heals on {self.edit.text.source!r} (fingerprint {self.edit.text.fingerprint}), which is "
                "not the text given here: give that text."
            )
        resolved = model.resolve(recipe)
        if resolved.healing is None:
            raise RecipeError("The recipe has no heal edit: add one.")
        self.key = resolved.healing.key
        self.structure = model.trained_over(resolved, texts, report, stop)
        self.training, self.held_out = text.split(self.edit.held_out)
        self.student = Student(model.evaluator, self.structure, self.edit, self._ranks())
        material = self._material(report, stop)
        self.trainer = Trainer(self.student, material, self.held_out, self.edit, self.key, self.processes, checkpoint)

    def run(self, publish: Callable[[Progress], None] = lambda progress: None, stop: Event | None = None) -> Healed:
        """Train, and merge the best state. A set `stop` ends it within a step and keeps the best state so far.

        Raises:
            TrainingError: the loss is no longer a number, or memory is short.
        """
        outcome = self.trainer.run(publish, stop)
        adapter = adapter_of(self.student)
        structure = merge(self.student.runner, self.structure, adapter)
        before, after = _finite(outcome.before), _finite(outcome.after)
        reached = HealResult(adapter=adapter.fingerprint, step=outcome.best_step, before=before, after=after)
        recipe = with_heal(self.recipe, self.edit.model_copy(update={"result": reached}))
        return Healed(recipe, structure, adapter, outcome, self.student)

    def _ranks(self) -> list[int] | None:
        if self.edit.rank_by == "uniform":
            return None
        windows = self.training.windows
        few = Windows(windows.ids[:IMPORTANCE_WINDOWS], windows.source, windows.text_fingerprint, windows.bos)
        importance = coarse_importance(collect(self.model.runner, few).similarities).tolist()
        kept = self.structure.kept
        trained = positions_of(self.edit, self.structure)
        return ranks_by_importance([importance[kept[place].source] for place in trained], self.edit.rank)

    def _material(self, report: Report, stop: Event | None) -> PlainText:
        """What is trained on: the text, or the teacher's view of it."""
        settings = self.edit.distillation
        if settings is None:
            return PlainText(self.training)
        teacher = Teacher(self.model.runner, None if settings.top_k is not None else self._teachers_head())
        if settings.divergence == "contrastive":
            return self._contrastive(teacher, report, stop)
        top = None
        if settings.top_k is not None:
            top = TopK(
                teacher, self.training.windows, settings.top_k, settings.temperature, self.model.loaded.fingerprint,
                self.processes.index,
            )  # fmt: skip
        return Distilled(self.training, settings, teacher, top)

    def _teachers_head(self) -> Head:
        """The student's, so that both round alike; where it has another one, one of the same precision."""
        head = self.student.head
        return head if head.runner is self.model.runner else Head(self.model.runner, head.precision)

    def _contrastive(self, teacher: Teacher, report: Report, stop: Event | None) -> Contrastive:
        """Continuations of the windows' first halves, by the teacher and by the student before it is trained."""
        settings, edit = self.edit.distillation, self.edit
        assert settings is not None  # the caller has checked
        windows = self.training.windows
        needed = min(windows.count, edit.steps * edit.batch)
        prompt = windows.length // 2
        prompts = windows.ids[:needed, :prompt]
        check = checker_of(stop)
        report(0.0, "Writing the teacher's continuations")
        teachers = continuations(self.model.loaded.model, prompts, windows.length - prompt, edit.seed, check)
        report(0.5, "Writing the student's continuations")
        built = build_model(self.model.loaded.model, self.model.architecture, self.structure).model
        students = continuations(built, prompts, windows.length - prompt, edit.seed + 1, check)
        return Contrastive(self.training, settings, teacher, (teachers, students), prompt)


@dataclass(frozen=True)
class TrainingSpeed:
    """What a short measurement showed: seconds of a training step and of a held-out measurement."""

    step: float
    evaluation: float


def measure_speed(healer: Healer) -> TrainingSpeed:
    """Time a step and a held-out measurement, without taking a step."""
    step = healer.trainer.seconds_a_step()
    begun = time.perf_counter()
    healer.trainer.evaluate()
    return TrainingSpeed(step, healer.processes.from_main(time.perf_counter() - begun))
