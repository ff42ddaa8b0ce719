"""Ready recipes: measured, for one model only, and nothing in them that cannot be computed here."""

from __future__ import annotations

import pytest

from surgery.errors import InputError
from surgery.recipe.presets import ReadyRecipes
from ui.presenters.keep import ready_choices

EMBEDDED = "87a013095a4d339f"


def test_ready_recipes_are_of_one_model_and_need_no_text() -> None:
    ready = ReadyRecipes()
    found = ready.of(EMBEDDED)
    assert list(found) == ["smollm2-135m-95", "smollm2-135m-88", "smollm2-135m-80"]
    assert all(edit.op != "compensate" for recipe in found.values() for edit in recipe.edits)
    assert ready.of("another") == {}
    with pytest.raises(InputError, match="from the list"):
        ready.get("smollm2-135m-95", "another")


def test_they_say_what_they_cost_without_compensation() -> None:
    (first, *_), names = zip(*ready_choices(ReadyRecipes().of(EMBEDDED)), strict=True)
    assert first.startswith("95% of the parameters: perplexity 36.63 \N{RIGHTWARDS ARROW} 41.44")
    assert "wikitext-2-raw-test.jsonl, 16 x 512 tokens" in first and names[0] == "smollm2-135m-95"
