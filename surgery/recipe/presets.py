"""Recipes that come with the workbench, for the models whose weights they were measured on.

Their compensations were computed on a text that is not here, so they are left out: what stays can be measured at once,
and compensated on a text that is at hand.
"""

from __future__ import annotations

from functools import cached_property
from pathlib import Path

from surgery.errors import InputError
from surgery.recipe.edits import Compensate
from surgery.recipe.recipe import Recipe

FOLDER = Path(__file__).resolve().parents[2] / "presets" / "recipes"


class ReadyRecipes:
    """The files of a folder."""

    def __init__(self, folder: Path = FOLDER) -> None:
        self.folder = folder

    @cached_property
    def _all(self) -> dict[str, Recipe]:
        return {
            path.stem: _without_compensation(Recipe.load(path))
            for path in sorted(self.folder.glob("*.json"), reverse=True)
        }

    def of(self, fingerprint: str) -> dict[str, Recipe]:
        """Those for the model with that fingerprint, by name, the mildest first."""
        return {name: recipe for name, recipe in self._all.items() if recipe.model.fingerprint == fingerprint}

    def get(self, name: str, fingerprint: str) -> Recipe:
        """One of them. Raises InputError: there is none of that name for the model."""
        found = self.of(fingerprint).get(name)
        if found is None:
            raise InputError("Choose one of the ready recipes of the open model from the list.")
        return found


def _without_compensation(recipe: Recipe) -> Recipe:
    """The cuts alone, with what they were measured to give."""
    cuts = recipe.with_edits(*(edit for edit in recipe.edits if not isinstance(edit, Compensate)))
    results = dict(recipe.results or {})
    plain = results.pop("perplexity_without_compensation", results.get("perplexity"))
    return cuts.model_copy(update={"results": results | {"perplexity": plain}})
