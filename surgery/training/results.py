"""Where the results of healings are: a folder each, found by the address that the recipe's edits give it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from surgery.checkpoints.save import RECIPE_FILE
from surgery.common.files import cache_directory, new_folder
from surgery.errors import InputError, RecipeError
from surgery.recipe.recipe import Recipe
from surgery.structure.resolve import healing_key
from surgery.structure.structure import Healing
from surgery.training import adapters
from surgery.training.adapters import Adapter
from surgery.training.student import Student

REPORT = "report.json"
MOST_RESULTS = 64
"""Results that the cache folder keeps; the oldest leave."""


def results_directory() -> Path:
    """The cache folder's place for results."""
    return cache_directory() / "healing"


def save(recipe: Recipe, adapter: Adapter, student: Student, report: dict[str, Any], out: Path) -> None:
    """Write recipe, adapter and report into a new folder. Raises InputError: it is in use, or cannot be written."""
    failure = f"The result cannot be written to {str(out)!r}"
    with new_folder(out, failure, "free some space or choose another folder") as made:
        adapters.write(adapter, student, recipe.model.id, made)
        (made / RECIPE_FILE).write_text(recipe.to_json(), "utf-8")
        (made / REPORT).write_text(json.dumps(report, indent=2, ensure_ascii=False, allow_nan=False) + "\n", "utf-8")


def remember(recipe: Recipe, adapter: Adapter, student: Student, report: dict[str, Any]) -> Path:
    """Keep a result in the cache folder, in the place of an earlier one of the same recipe."""
    folder = results_directory() / healing_key(recipe)
    shutil.rmtree(folder, ignore_errors=True)
    save(recipe, adapter, student, report, folder)
    others = [path for path in results_directory().iterdir() if path.is_dir() and not path.name.startswith(".")]
    for path in sorted(others, key=lambda path: path.stat().st_mtime)[:-MOST_RESULTS]:
        shutil.rmtree(path, ignore_errors=True)
    return folder


def find(healing: Healing, offered: Sequence[Path] = ()) -> Adapter:
    """The adapter of a recipe; arguments and errors as `locate`."""
    return locate(healing, offered)[1]


def locate(healing: Healing, offered: Sequence[Path] = ()) -> tuple[Path, Adapter]:
    """The folder and the adapter of a recipe, from the folders that the caller offers or from the cache folder.

    A recipe cannot make this read anything else.

    Args:
        healing: the edit and its address.
        offered: folders that `save` wrote.

    Raises:
        RecipeError: there is none, or only one of another training.
        CorruptFile: it is damaged.
    """
    wanted = healing.edit.result
    for folder in (*offered, results_directory() / healing.key):
        if not _holds(folder, healing.key):
            continue
        adapter = adapters.read(folder)
        if wanted is None or adapter.fingerprint == wanted.adapter:
            return folder, adapter
    raise RecipeError(
        f"The recipe is healed, and its result {healing.key} is not here: run `heal` on the recipe, or give the folder "
        "that `heal` wrote."
    )


def _holds(folder: Path, key: str) -> bool:
    """Whether a folder has the result of a recipe with that address."""
    try:
        if not (folder / RECIPE_FILE).is_file():
            return False
        return healing_key(Recipe.load(folder / RECIPE_FILE)) == key
    except (OSError, InputError):
        return False
