"""A recipe in a link: there and back, and everything hostile is one sentence."""

from __future__ import annotations

import base64
import json
import zlib

import pytest

from surgery.errors import RecipeError
from surgery.recipe.link import LONGEST_LINK, decode, encode
from surgery.recipe.recipe import LARGEST_RECIPE, Recipe


def recipe(*edits: dict[str, object]) -> Recipe:
    document = {
        "schema": "model-surgery/recipe/1",
        "model": {"id": "default", "fingerprint": "f"},
        "edits": list(edits),
    }
    return Recipe.read(document)


def packed(text: bytes) -> str:
    return base64.urlsafe_b64encode(zlib.compress(text)).decode().rstrip("=")


@pytest.mark.parametrize(
    "edits",
    [(), ({"op": "remove_blocks", "blocks": "3-7,12"},),
     ({"op": "prune_neurons", "removed": {str(block): f"{block}-{block + 700}" for block in range(200)}},)],
)  # fmt: skip
def test_there_and_back(edits: tuple[dict[str, object], ...]) -> None:
    made = recipe(*edits)
    code = encode(made)
    assert decode(code) == made and code.replace("-", "").replace("_", "").isalnum()


def test_results_stay_at_home() -> None:
    made = recipe().model_copy(update={"results": {"perplexity": 1.0}})
    assert decode(encode(made)).results is None


HOSTILE = {
    "nothing": ("", "damaged|cut off"),
    "no base64": ("<script>alert(1)</script>", "damaged"),
    "not compressed": (base64.urlsafe_b64encode(b"{}").decode(), "damaged"),
    "cut off": (packed(json.dumps(recipe().document()).encode())[:-8], "cut off|damaged"),
    "no JSON": (packed(b"{"), "not valid JSON"),
    "another document": (packed(b"[1]"), "not valid"),
    "another schema": (packed(b'{"schema": "x"}'), "schema"),
    "deep": (packed(b"[" * 100_000), "not valid JSON|nested"),
    "a bomb": (packed(b" " * (LARGEST_RECIPE * 20)), "larger than"),
    "too long": ("A" * (LONGEST_LINK + 1), "longer than"),
    "letters of other alphabets": ("ĀĀĀĀ", "damaged"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_what_is_no_recipe_is_one_sentence(name: str) -> None:
    text, words = HOSTILE[name]
    with pytest.raises(RecipeError, match=words) as raised:
        decode(text)
    assert "\n" not in str(raised.value)
