"""A depth recipe as a mergekit configuration (passthrough), so that mergekit makes the same model from the original."""

from __future__ import annotations

import json

from analysis.model.architecture import Architecture
from surgery.common.ranges import runs
from surgery.errors import RecipeError
from surgery.models.loading import DEFAULT
from surgery.recipe.recipe import Recipe
from surgery.structure.resolve import resolve

EMBEDDED_ID = "HuggingFaceTB/SmolLM2-135M-Instruct"
"""Where the embedded model comes from; mergekit does not know `default`."""
DEPTH = ("remove_blocks", "arrange_blocks")


def mergekit_yaml(recipe: Recipe, architecture: Architecture) -> str:
    """The YAML text: slices of consecutive source blocks, `layer_range` half open.

    Raises:
        RecipeError: an edit is not one that mergekit's passthrough can do, or does not fit the architecture.
    """
    other = next((edit.op for edit in recipe.edits if edit.op not in DEPTH), None)
    if other is not None:
        raise RecipeError(
            f"mergekit can only remove, repeat and reorder whole blocks, and the recipe has {other}: use `build`."
        )
    blocks = [spec.source for spec in resolve(architecture, recipe).blocks]
    model = EMBEDDED_ID if recipe.model.id == DEFAULT else recipe.model.id
    name = json.dumps(f"{model}@{recipe.model.revision}" if recipe.model.revision else model, ensure_ascii=False)
    lines = [f"# Model Surgery recipe {recipe.key}: {len(blocks)} blocks from {len(architecture.blocks)}."]
    if recipe.model.id == DEFAULT:
        lines.append("# The recipe was made on a copy rounded to 4 bits; mergekit takes the original.")
    lines.append("slices:")
    for first, last in runs(blocks):
        lines += ["  - sources:", f"      - model: {name}", f"        layer_range: [{first}, {last + 1}]"]
    return "\n".join([*lines, "merge_method: passthrough", ""])
