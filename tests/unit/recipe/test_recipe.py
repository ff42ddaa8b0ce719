"""The recipe file: identical round trip, and every kind of bad input refused by name in one sentence."""

from __future__ import annotations

import errno
import json
import os
import random
import resource
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from analysis.model.describe import describe
from surgery.common.ranges import format_ranges
from surgery.errors import RecipeError
from surgery.recipe import recipe as recipes
from surgery.recipe.edits import PruneNeurons, RemoveBlocks
from surgery.recipe.recipe import Recipe
from surgery.structure.resolve import resolve
from tests.tiny_models import build

SCHEMA = "model-surgery/recipe/1"
EVERY_OP: list[dict[str, Any]] = [
    {"op": "remove_blocks", "blocks": "2"},
    {"op": "remove_attention", "blocks": "0"},
    {"op": "remove_mlp", "blocks": "1"},
    {"op": "prune_neurons", "removed": {"0": "3-7,12", "3": "79"}},
    {"op": "prune_kv_groups", "removed": {"1": "0"}},
    {"op": "prune_heads", "removed": {"3": "0,3"}},
]


def document(*edits: Any, **changes: Any) -> dict[str, Any]:
    return {"schema": SCHEMA, "model": {"id": "tiny"}, "edits": list(edits), **changes}


def refusal(content: Any) -> str:
    """The one sentence with which a document, or a text, is refused."""
    with pytest.raises(RecipeError) as caught:
        Recipe.parse(content if isinstance(content, (str, bytes)) else json.dumps(content))
    message = str(caught.value)
    assert message.endswith(".") and "\n" not in message and len(message) < 500, message
    assert "Traceback" not in message and "pydantic" not in message
    return message


def test_every_edit_of_the_contract_comes_back_as_it_was_written() -> None:
    written = document(
        *EVERY_OP,
        model={"id": "owner/name", "revision": "main", "fingerprint": "0123456789abcdef"},
        target={"device": "raspberry-pi-5-8gb", "context": 2048},
        results={"perplexity": 17.25, "tasks": [1, None, {"deep": True}], "text": "naïve – ✓"},
    )
    recipe = Recipe.parse(json.dumps(written))
    assert json.loads(recipe.to_json()) == written
    again = Recipe.parse(recipe.to_json())
    assert again == recipe and again.key == recipe.key and again.to_json() == recipe.to_json()
    architecture = describe(build("llama"))
    assert resolve(architecture, again) == resolve(architecture, recipe)
    assert resolve(architecture, again).key == resolve(architecture, recipe).key


def test_random_recipes_survive_the_round_trip() -> None:
    source = random.Random(4)
    architecture = describe(build("llama"))
    for _ in range(100):
        neurons = {
            str(block): format_ranges(source.sample(range(80), source.randint(1, 79)))
            for block in source.sample(range(4), source.randint(1, 4))
        }
        gone = source.sample(range(4), source.randint(1, 3))
        edits: list[dict[str, Any]] = [{"op": "prune_neurons", "removed": neurons}]
        edits.append({"op": "remove_attention", "blocks": format_ranges(gone)})
        left = [block for block in range(4) if block not in gone]
        edits.append({"op": "prune_kv_groups", "removed": {str(block): source.choice("01") for block in left}})
        source.shuffle(edits)
        recipe = Recipe.parse(json.dumps(document(*edits)))
        again = Recipe.parse(recipe.to_json())
        assert again == recipe and again.key == recipe.key
        assert json.loads(again.to_json())["edits"] == [
            edit if "blocks" in edit else {**edit, "removed": dict(sorted(edit["removed"].items()))} for edit in edits
        ]
        assert resolve(architecture, again) == resolve(architecture, recipe)


def test_the_key_names_the_model_and_the_edits_and_nothing_else() -> None:
    plain = Recipe.parse(json.dumps(document(*EVERY_OP)))
    chosen = {"method": "maw", "budget": {"percent": 20}, "text": {"source": "embedded"}}
    noted = [{**edit, "chosen_by": chosen} for edit in EVERY_OP]
    assert Recipe.read(document(*noted, results={"perplexity": 3.0}, target={"device": "x"})).key == plain.key
    assert Recipe.read(document(*EVERY_OP[:-1])).key != plain.key
    assert Recipe.read(document(*EVERY_OP, model={"id": "other"})).key != plain.key
    assert Recipe.read(document(*EVERY_OP, model={"id": "tiny", "fingerprint": "a"})).key != plain.key
    other = [*EVERY_OP[:-1], {"op": "prune_heads", "removed": {"3": "0,4"}}]
    assert Recipe.read(document(*other)).key != plain.key
    orders = [{"op": "prune_neurons", "removed": order} for order in ({"0": "1", "3": "2"}, {"3": "2", "0": "1"})]
    assert Recipe.read(document(orders[0])).key == Recipe.read(document(orders[1])).key


def test_a_recipe_does_not_change() -> None:
    recipe = Recipe.read(document(*EVERY_OP))
    for holder, name in ((recipe, "edits"), (recipe, "model"), (recipe.model, "id"), (recipe.edits[0], "blocks")):
        with pytest.raises(ValidationError):
            setattr(holder, name, ())
    with pytest.raises(TypeError):
        recipe.edits[0] = recipe.edits[1]  # type: ignore[index]


def test_the_first_edit_of_a_kind_is_found() -> None:
    first, second = ({"op": "remove_blocks", "blocks": blocks} for blocks in ("1", "2"))
    recipe = Recipe.read(document({"op": "remove_mlp", "blocks": "0"}, first, second))
    assert recipe.find(RemoveBlocks) is recipe.edits[1]
    assert recipe.find(PruneNeurons) is None and Recipe.read(document()).find(RemoveBlocks) is None


def test_other_edits_make_another_recipe_without_the_old_results() -> None:
    recipe = Recipe.read(document(EVERY_OP[0], results={"perplexity": 1.0}, target={"device": "x"}))
    other = recipe.with_edits(*recipe.edits, RemoveBlocks(blocks=(3,)))
    assert [edit.op for edit in other.edits] == ["remove_blocks", "remove_blocks"]
    assert other.results is None and other.target == {"device": "x"} and len(recipe.edits) == 1
    with pytest.raises(RecipeError):
        recipe.with_edits("remove block 3")


@pytest.mark.parametrize("schema", ["model-surgery/recipe/2", "model-surgery/recipe/1 ", "", None, 1, ["x" * 9999]])
def test_other_schema_versions_are_refused_by_name(schema: Any) -> None:
    message = refusal(document(schema=schema))
    assert SCHEMA in message and "schema" in message
    assert str(schema)[:20] in message
    missing = document()
    del missing["schema"]
    assert "schema" in refusal(missing)


@pytest.mark.parametrize(
    ("content", "names"),
    [
        (document(extra=1), ["extra"]),
        (document(schema_=SCHEMA), ["schema_"]),
        (document(model={"id": "x", "sha": "1"}), ["sha"]),
        (document({"op": "remove_blocks", "blocks": "1", "why": "x"}), ["why", "remove_blocks"]),
        (document({"op": "remove_blocks", "blocks": "1", "chosen_by": {"method": "x", "seed": 1}}), ["seed"]),
        (document({"op": "prune_neurons", "removed": {"0": "1"}, "blocks": "1"}), ["blocks", "prune_neurons"]),
        (document({"op": "shuffle_blocks", "blocks": "1"}), ["shuffle_blocks", "remove_blocks"]),
        (document({"op": "x" * 10_000}), ["xxx"]),
        (document({"blocks": "1"}), ["op"]),
        (document({"op": "remove_blocks"}), ["remove_blocks", "blocks"]),
        (document({"op": "prune_neurons"}), ["prune_neurons", "removed"]),
        (document({"op": "remove_blocks", "blocks": "3,3"}), ["remove_blocks", "'3,3'"]),
        (document({"op": "remove_mlp", "blocks": "5-3"}), ["remove_mlp", "'5-3'"]),
        (document({"op": "remove_blocks", "blocks": ""}), ["remove_blocks"]),
        (document({"op": "remove_blocks", "blocks": [1, 1]}), ["remove_blocks", "twice"]),
        (document({"op": "remove_blocks", "blocks": [-1]}), ["remove_blocks"]),
        (document({"op": "prune_neurons", "removed": {"4": "7,6"}}), ["prune_neurons", "4", "'7,6'"]),
        (document({"op": "prune_heads", "removed": {"first": "1"}}), ["prune_heads", "'first'"]),
        (document({"op": "prune_heads", "removed": {"01": "1"}}), ["prune_heads", "'01'"]),
        (document({"op": "prune_heads", "removed": {"-1": "1"}}), ["prune_heads", "'-1'"]),
        (document({"op": "prune_heads", "removed": {}}), ["prune_heads", "removed"]),
        (document({"op": "prune_neurons", "removed": {"4": "0-999999999"}}), ["prune_neurons", "4", "0-999999999"]),
    ],
)
def test_what_is_wrong_is_named(content: dict[str, Any], names: list[str]) -> None:
    message = refusal(content)
    assert all(name in message for name in names), message


@pytest.mark.parametrize("value", [None, 5, 1.5, True, {}, [], [True], ["1"], [1.0], [[1]], {"0": "1"}])
def test_an_index_set_of_another_type_is_refused(value: Any) -> None:
    assert "remove_blocks" in refusal(document({"op": "remove_blocks", "blocks": value}))
    assert "prune_neurons" in refusal(document({"op": "prune_neurons", "removed": {"0": value}}))


@pytest.mark.parametrize("content", [None, 5, "text", [], [document()], True])
def test_a_document_of_another_type_is_refused(content: Any) -> None:
    refusal(json.dumps(content))


@pytest.mark.parametrize(
    "changes",
    [
        {"model": "tiny"}, {"model": {}}, {"model": {"id": ""}}, {"model": {"id": 5}}, {"model": None},
        {"edits": {}}, {"edits": "x"}, {"edits": None}, {"edits": [5]}, {"edits": [None]}, {"edits": [[]]},
        {"target": []}, {"results": "good"}, {"results": [1]}, {"model": {"id": "x" * 10_000}},
    ],
)  # fmt: skip
def test_a_part_of_another_type_is_refused_by_name(changes: dict[str, Any]) -> None:
    assert next(iter(changes)) in refusal(document(**changes))


def test_a_key_that_stands_twice_is_refused() -> None:
    text = json.dumps(document({"op": "prune_neurons", "removed": {"0": "1", "9": "2"}}))
    assert "'0'" in refusal(text.replace('"9"', '"0"'))


@pytest.mark.parametrize("text", ["", "{", "[1,", "{'schema': 1}", b"\xff\xfe\x00", "9" * 5000, "\x00"])
def test_what_is_not_json_is_refused(text: str | bytes) -> None:
    refusal(text)


@pytest.mark.parametrize("constant", ["NaN", "Infinity", "-Infinity", "1e999", "-1e999"])
def test_numbers_that_json_cannot_hold_are_refused(constant: str) -> None:
    refusal(json.dumps(document(results={"perplexity": 0})).replace(": 0}", f": {constant}}}"))


@pytest.mark.parametrize("notes", [{"a": "\ud800"}, {"\ud800": 1}])
def test_half_characters_are_refused_before_they_spoil_the_file(notes: dict[str, Any]) -> None:
    refusal(document(results=notes))
    refusal(document({**EVERY_OP[0], "chosen_by": {"method": "x", "budget": notes}}))


@pytest.mark.parametrize("depth", [300, 2000, 100_000])
def test_deep_nesting_is_refused(depth: int) -> None:
    for place in ("results", "target", "edits"):
        refusal(f'{{"schema": "{SCHEMA}", "model": {{"id": "x"}}, "{place}": {{"a": {"[" * depth + "]" * depth}}}}}')
    refusal("[" * depth + "]" * depth)


def test_huge_documents_are_refused(tmp_path: Path) -> None:
    refusal(" " * (recipes.LARGEST_RECIPE + 1))
    refusal(document(results={"log": "x" * 2**20}))
    refusal(document(*[EVERY_OP[0]] * 5000))
    path = tmp_path / "huge.json"
    with path.open("wb") as file:
        file.truncate(recipes.LARGEST_RECIPE + 1)
    with pytest.raises(RecipeError, match=r"huge\.json"):
        Recipe.load(path)


def test_a_small_file_cannot_stand_for_billions_of_indices() -> None:
    removed = {str(block): "0-1048575" for block in range(2000)}
    refusal(document({"op": "prune_neurons", "removed": removed}))
    refusal(document(*[{"op": "remove_blocks", "blocks": "0-1048575"}] * 900))


def test_saving_and_loading(tmp_path: Path) -> None:
    recipe = Recipe.read(document(*EVERY_OP, results={"note": "naïve ✓"}))
    path = tmp_path / "recipe.json"
    recipe.save(path)
    assert Recipe.load(path) == recipe and [entry.name for entry in tmp_path.iterdir()] == ["recipe.json"]
    for missing in (tmp_path / "none.json", tmp_path, tmp_path / "no" / "recipe.json"):
        with pytest.raises(RecipeError, match="cannot be read"):
            Recipe.load(missing)
    with pytest.raises(RecipeError, match="cannot be written"):
        recipe.save(tmp_path / "no" / "recipe.json")


def test_a_failed_save_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "recipe.json"
    old, new = Recipe.read(document()), Recipe.read(document(*EVERY_OP, results={"note": "x" * 5000}))
    old.save(path)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))  # the disk is full after 1000 bytes
    try:
        with pytest.raises(RecipeError, match="cannot be written"):
            new.save(path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert Recipe.load(path) == old and [entry.name for entry in tmp_path.iterdir()] == ["recipe.json"]

    def no_rename(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "replace", no_rename)
    with pytest.raises(RecipeError, match="No space left"):
        new.save(path)
    assert Recipe.load(path) == old and [entry.name for entry in tmp_path.iterdir()] == ["recipe.json"]
