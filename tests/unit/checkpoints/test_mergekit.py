"""mergekit's YAML: the slices of a recipe of whole blocks, and the edits that it cannot say."""

from __future__ import annotations

import pytest
import yaml

from analysis.model.describe import describe
from surgery.checkpoints.mergekit import EMBEDDED_ID, mergekit_yaml
from surgery.errors import RecipeError
from surgery.recipe.base import ModelReference
from surgery.recipe.edits import ArrangeBlocks, MergeKvHeads, PruneHidden, PruneNeurons, RemoveAttention, RemoveBlocks
from surgery.recipe.recipe import Recipe
from surgery.structure.resolve import resolve
from tests.tiny_models import build


def read(*edits, model="owner/name", revision=None):
    recipe = Recipe(model=ModelReference(id=model, revision=revision), edits=edits)
    return yaml.safe_load(mergekit_yaml(recipe, describe(build("llama")))), recipe


@pytest.mark.parametrize(
    ("edits", "ranges"),
    [
        ((), [[0, 4]]),
        ((RemoveBlocks(blocks="1"),), [[0, 1], [2, 4]]),
        ((RemoveBlocks(blocks="0,3"),), [[1, 3]]),
        ((RemoveBlocks(blocks="1"), RemoveBlocks(blocks="2")), [[0, 1], [3, 4]]),
        ((ArrangeBlocks(order=(0, 1, 1, 2, 3)),), [[0, 2], [1, 4]]),
        ((ArrangeBlocks(order=(3, 0, 2)),), [[3, 4], [0, 1], [2, 3]]),
    ],
)
def test_slices(edits, ranges):
    document, recipe = read(*edits)
    assert document["merge_method"] == "passthrough"
    assert [piece["sources"][0]["layer_range"] for piece in document["slices"]] == ranges
    assert {piece["sources"][0]["model"] for piece in document["slices"]} == {"owner/name"}
    # mergekit's own reading: the blocks of each half-open range, one slice after the other.
    blocks = [block for first, end in ranges for block in range(first, end)]
    assert blocks == [spec.source for spec in resolve(describe(build("llama")), recipe).blocks]


def test_names_of_models():
    document, _ = read(revision="v1.0")
    assert document["slices"][0]["sources"][0]["model"] == "owner/name@v1.0"
    document, _ = read(model='C:\\models\\"odd": name')
    assert document["slices"][0]["sources"][0]["model"] == 'C:\\models\\"odd": name'
    document, _ = read(model="default")
    assert document["slices"][0]["sources"][0]["model"] == EMBEDDED_ID


@pytest.mark.parametrize(
    "edit",
    [
        RemoveAttention(blocks="1"),
        PruneNeurons(removed={0: "0-7"}),
        MergeKvHeads(blocks="0-3", kv_heads=1),
        PruneHidden(removed="0-7"),
    ],
)
def test_other_edits_are_named(edit):
    with pytest.raises(RecipeError, match=edit.op):
        read(RemoveBlocks(blocks="2"), edit)
