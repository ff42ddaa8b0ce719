"""What a session has tried: every measured recipe with its size, two of them pinned, and steps back to any."""

from __future__ import annotations

from surgery.common.jobs import Job
from surgery.errors import InputError
from surgery.evaluation.estimate import Estimate
from surgery.fit.fit import Fit, fit
from surgery.fit.weight_types import type_of_edit
from surgery.pruning.recipe_summary import recipe_words
from surgery.recipe.recipe import Recipe
from surgery.recipe.texts import TextChoice
from surgery.session.read import ReadingSession
from surgery.session.view import Attempt, Pin, Target, Tried
from surgery.structure.structure import Structure
from surgery.workbench.open_model import OpenModel
from surgery.workbench.workbench import Workbench

MOST_ATTEMPTS = 200
"""Measured recipes that are remembered; the oldest that is neither pinned nor in the history goes first."""


class ComparingSession(ReadingSession):
    """See the module.

    Args:
        bench: what all sessions share.
    """

    def __init__(self, bench: Workbench) -> None:
        super().__init__(bench)
        self._attempts: dict[tuple[str, TextChoice], tuple[Recipe, Structure, str, Estimate]] = {}
        self._pins: dict[Pin, str] = {}
        self._fits: dict[tuple[str, Target, str], Fit] = {}
        self._compared = ""
        """Fingerprint of the model that the attempts are of."""

    def adopt(self, model: OpenModel, recipe: Recipe | None = None) -> None:
        """As before; what was tried of another model is forgotten."""
        with self._lock:
            if self._compared != model.loaded.fingerprint:
                self._attempts, self._pins, self._compared = {}, {}, model.loaded.fingerprint
        super().adopt(model, recipe)

    def pin(self, place: Pin) -> None:
        """Keep the recipe in force as A or B; the same one again lets it go."""
        with self._lock:
            key = self.current_recipe().key
            if self._pins.get(place) == key:
                del self._pins[place]
            else:
                self._pins[place] = key
            self._fresh()

    def go_to(self, key: str) -> None:
        """Make a recipe that was tried the current one: a step of the history if it is one, else a new step.

        Raises:
            InputError: it was not tried here.
        """
        with self._lock:
            history = self._need_editor().history
            place = next((n for n, recipe in enumerate(history.recipes) if recipe.key == key), None)
            if place is not None:
                self._decide(lambda editor: editor.go_to(place))
                return
            known = next((recipe for (name, _), (recipe, *_) in self._attempts.items() if name == key), None)
            if known is None:
                raise InputError("That recipe was not tried in this session: choose one that is shown.")
            self.take(known)

    def _keep(self, job: Job, estimate: Estimate) -> None:
        with self._lock:
            super()._keep(job, estimate)
            if job is self._live and estimate.complete:
                self._keep_attempt(estimate)

    def _keep_attempt(self, estimate: Estimate) -> None:
        """Remember a complete measurement of the recipe in force."""
        model, editor = self._need_model(), self._need_editor()
        recipe, structure = editor.history.current, editor.structure
        words = recipe_words(recipe, structure, model.evaluator.dense)
        self._attempts[(recipe.key, self.text)] = (recipe, structure, words, estimate)
        kept = {*self._pins.values(), *(one.key for one in editor.history.recipes)}
        for key in list(self._attempts)[: max(0, len(self._attempts) - MOST_ATTEMPTS)]:
            if key[0] not in kept:
                del self._attempts[key]

    def _fit(self, shape: Structure) -> Fit:
        """On the session's target; what a recipe quantises is counted as it says."""
        target, device = self.target, self._device
        key = (shape.key, target, device.name)
        if key not in self._fits:
            kind = target.type if shape.quantize is None else type_of_edit(shape.quantize)
            for oldest in list(self._fits)[: max(0, len(self._fits) - 2 * MOST_ATTEMPTS)]:
                del self._fits[oldest]
            self._fits[key] = fit(shape, device, target.context, kind, target.kv_type)
        return self._fits[key]

    def _shown_tried(self) -> Tried:
        """Attempts of the open model on the text in force."""
        if self._model is None or self._compared != self._model.loaded.fingerprint:
            return Tried()
        found = tuple(
            Attempt(recipe, structure, words, text, estimate, self._fit(structure))
            for (_, text), (recipe, structure, words, estimate) in self._attempts.items()
            if text == self.text
        )
        return Tried(found, dict(self._pins))
