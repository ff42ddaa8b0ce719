"""A session's history of recipes: undo, redo, bounded. A value: every change returns a new one."""

from __future__ import annotations

from dataclasses import dataclass, replace

from surgery.recipe.recipe import Recipe

LONGEST = 100
"""Recipes remembered."""


@dataclass(frozen=True)
class History:
    """Recipes in the order they were made and the position of the current one."""

    recipes: tuple[Recipe, ...]
    position: int = 0

    @classmethod
    def start(cls, recipe: Recipe) -> History:
        """A history that holds one recipe."""
        return cls((recipe,))

    @property
    def current(self) -> Recipe:
        """The recipe in force."""
        return self.recipes[self.position]

    @property
    def can_undo(self) -> bool:
        """Whether there is an earlier recipe."""
        return self.position > 0

    @property
    def can_redo(self) -> bool:
        """Whether there is a later recipe."""
        return self.position < len(self.recipes) - 1

    def add(self, recipe: Recipe) -> History:
        """A new current recipe; what was undone before is dropped, the oldest are forgotten."""
        if recipe.key == self.current.key:
            return self
        recipes = (*self.recipes[: self.position + 1], recipe)[-LONGEST:]
        return History(recipes, len(recipes) - 1)

    def undo(self) -> History:
        """One step back, if there is one."""
        return replace(self, position=self.position - 1) if self.can_undo else self

    def redo(self) -> History:
        """One step forward, if there is one."""
        return replace(self, position=self.position + 1) if self.can_redo else self

    def go_to(self, position: int) -> History:
        """The step of that number, from 0; the nearest one if there is none."""
        return replace(self, position=min(max(position, 0), len(self.recipes) - 1))
