"""What a session has tried: every measured recipe with its size, two of them pinned, and steps back to any."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from surgery.errors import InputError
from surgery.evaluation.estimate import Estimate
from surgery.fit.fit import Fit
from surgery.pruning.recipe_summary import recipe_words
from surgery.recipe.recipe import Recipe
from surgery.recipe.texts import TextChoice
from surgery.session.edit import SessionEdit
from surgery.session.fit import SessionFit
from surgery.session.jobs import SessionJobs
from surgery.session.measure import SessionMeasure
from surgery.session.state import SessionState
from surgery.structure.structure import Structure
from surgery.workbench.open_model import OpenModel

MOST_ATTEMPTS = 200
"""Measured recipes that are remembered; the oldest that is neither pinned nor in the history goes first."""
Pin = Literal["a", "b"]


@dataclass(frozen=True)
class Attempt:
    """A recipe that was measured to the end, on one text. Its sizes are worked out again for the device in force."""

    recipe: Recipe
    structure: Structure
    words: str
    text: TextChoice
    estimate: Estimate
    fit: Fit

    @property
    def key(self) -> str:
        """Of the recipe."""
        return self.recipe.key


@dataclass(frozen=True)
class Tried:
    """All attempts on the text in force, the oldest first; which ones are pinned, by their keys."""

    attempts: tuple[Attempt, ...] = ()
    pins: Mapping[Pin, str] = field(default_factory=dict)

    def of(self, key: str | None) -> Attempt | None:
        """The attempt of a recipe."""
        return next((attempt for attempt in self.attempts if attempt.key == key), None)

    @property
    def front(self) -> tuple[Attempt, ...]:
        """Those that no smaller file beats in perplexity, by size (the Pareto front)."""
        found: list[Attempt] = []
        for attempt in sorted(self.attempts, key=lambda one: (one.fit.weights_bytes, one.estimate.nll)):
            if not found or attempt.estimate.nll < found[-1].estimate.nll:
                found.append(attempt)
        return tuple(found)


class SessionCompare:
    """Remembers every complete measurement of the open model."""

    def __init__(
        self, state: SessionState, jobs: SessionJobs, edit: SessionEdit, measure: SessionMeasure, fit: SessionFit
    ) -> None:
        self.state, self.jobs, self.edit, self.fit = state, jobs, edit, fit
        self._attempts: dict[tuple[str, TextChoice], tuple[Recipe, Structure, str, Estimate]] = {}
        self._pins: dict[Pin, str] = {}
        self._fingerprint = ""
        """Of the model that the attempts are of."""
        state.on_adopt.add(self._forget_others)
        measure.on_complete.add(self._keep)

    def pin(self, place: Pin) -> None:
        """Keep the recipe in force as A or B; the same one again lets it go."""
        with self.state.lock:
            key = self.edit.current_recipe().key
            if self._pins.get(place) == key:
                del self._pins[place]
            else:
                self._pins[place] = key
            self.jobs.fresh()

    def go_to(self, key: str) -> None:
        """Make a recipe that was tried the current one: a step of the history if it is one, else a new step."""
        with self.state.lock:
            history = self.state.need_editor().history
            place = next((n for n, recipe in enumerate(history.recipes) if recipe.key == key), None)
            if place is not None:
                self.edit.decide(lambda editor: editor.go_to(place))
                return
            known = next((recipe for (name, _), (recipe, *_) in self._attempts.items() if name == key), None)
            if known is None:
                raise InputError("That recipe was not tried in this session: choose one that is shown.")
            self.edit.take(known)

    def shown(self) -> Tried:
        """Attempts of the open model on the text in force."""
        model = self.state.model
        if model is None or self._fingerprint != model.loaded.fingerprint:
            return Tried()
        found = tuple(
            Attempt(recipe, structure, words, text, estimate, self.fit.of(structure))
            for (_, text), (recipe, structure, words, estimate) in self._attempts.items()
            if text == self.state.text
        )
        return Tried(found, dict(self._pins))

    def _keep(self, estimate: Estimate) -> None:
        """Remember a complete measurement of the recipe in force."""
        model, editor = self.state.need_model(), self.state.need_editor()
        recipe, structure = editor.history.current, editor.structure
        words = recipe_words(recipe, structure, model.evaluator.dense)
        self._attempts[(recipe.key, self.state.text)] = (recipe, structure, words, estimate)
        kept = {*self._pins.values(), *(one.key for one in editor.history.recipes)}
        for key in list(self._attempts)[: max(0, len(self._attempts) - MOST_ATTEMPTS)]:
            if key[0] not in kept:
                del self._attempts[key]

    def _forget_others(self, model: OpenModel) -> None:
        """Forget what was tried of another model."""
        if self._fingerprint != model.loaded.fingerprint:
            self._attempts, self._pins, self._fingerprint = {}, {}, model.loaded.fingerprint
