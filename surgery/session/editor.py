"""The edited model of one session: a recipe, its history, and what is parked while the part it belongs to is off."""

from __future__ import annotations

import time
from collections.abc import Callable

from surgery.recipe.recipe import Recipe
from surgery.session.history import History
from surgery.structure.choices import Choices
from surgery.structure.structure import Structure
from surgery.workbench.open_model import OpenModel

ONE_STROKE = 1.0
"""Seconds within which further moves of a slider belong to the same step of the history."""


class Editor:
    """Every change makes a new recipe; one that does not fit the model raises and leaves everything as it was."""

    def __init__(self, model: OpenModel, recipe: Recipe | None = None) -> None:
        self.model = model
        self.history = History.start(model.recipe())
        self.structure: Structure = model.resolve(self.history.current)
        self._choices: dict[str, Choices] = {}
        """With what is parked, by recipe key, for the recipes of the history that were made by `change`."""
        self._stroke: tuple[str, float] = ("", 0.0)
        if recipe is not None:
            self.take(recipe)

    def change(self, change: Callable[[Choices], Choices], stroke: str = "") -> None:
        """Apply a change of choices as a new recipe.

        Args:
            change: from the choices in force to others.
            stroke: changes of one name in quick succession (a slider that is dragged) are one step of the history.
        """
        history = self.history
        choices = self._changed(change)
        recipe = history.current.with_edits(*choices.edits())
        before, moment = self._stroke
        if stroke and before == stroke + history.current.key and time.monotonic() - moment < ONE_STROKE:
            history = history.undo()
        self._go(history.add(recipe))
        self._choices[recipe.key] = choices
        self._stroke = (stroke + recipe.key, time.monotonic())

    def preview(self, change: Callable[[Choices], Choices]) -> Recipe:
        """The recipe that `change` would make; whether it fits the model shows when it is resolved."""
        return self.history.current.with_edits(*self._changed(change).edits())

    def _changed(self, change: Callable[[Choices], Choices]) -> Choices:
        current = self.history.current
        return change(self._choices.get(current.key) or Choices.of(current))

    def take(self, recipe: Recipe) -> None:
        """Make a recipe from elsewhere the current one; `RecipeError` if it does not fit the model."""
        self.model.resolve(recipe)
        own = recipe.model_copy(update={"model": self.model.reference, "results": None})
        self._choices.pop(own.key, None)
        self._go(self.history.add(own))

    def undo(self) -> None:
        """One step back."""
        self._go(self.history.undo())

    def redo(self) -> None:
        """One step forward."""
        self._go(self.history.redo())

    def go_to(self, place: int) -> None:
        """The step of that number in the history, from 0."""
        self._go(self.history.go_to(place))

    def reset(self) -> None:
        """Back to the dense model, as a step that can be undone."""
        self._go(self.history.add(self.model.recipe()))

    def _go(self, history: History) -> None:
        self.structure, self.history = self.model.resolve(history.current), history
        keys = {recipe.key for recipe in history.recipes}
        self._choices = {key: choices for key, choices in self._choices.items() if key in keys}
        self._stroke = ("", 0.0)
