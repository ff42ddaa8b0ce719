"""Where a recipe's compensation gets its text from: what the caller offers, never what the recipe names."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from analysis import text
from analysis.text import Text
from surgery.errors import RecipeError
from surgery.recipe.base import TextReference
from surgery.recipe.edits import Compensate, PruneNeurons
from surgery.recipe.texts import TextChoice, text_reference
from surgery.workbench.open_model import OpenModel
from tests.tiny_workbench import open_model

WORDS = " ".join(f"word {index} of a text" for index in range(60))


def reference(source: str, content: str) -> TextReference:
    return TextReference(source=source, fingerprint=Text(source, content).fingerprint, window=16, windows=4)


def structure(model: OpenModel, wanted: TextReference) -> Any:
    return model.resolve(
        model.recipe(PruneNeurons(removed={1: (0, 1, 2)}), Compensate(how="least_squares", text=wanted))
    )


def embedded() -> TextReference:
    return reference("embedded", text.load_text("embedded", "calibration").content)


def test_the_embedded_text_is_always_there() -> None:
    model = open_model()
    windows = model.calibration(embedded())
    assert (windows.count, windows.length, windows.source) == (4, 16, "embedded")
    made = model.complete(structure(model, embedded()))
    assert len(made.entries) == 1 and not made.structure.compensations
    known = model.known_complete(structure(model, embedded()))
    assert known is not None and known.entries is made.entries and known.structure == made.structure
    assert model.complete(structure(model, embedded())).entries is made.entries


def test_windows_that_are_spread_over_the_text_are_found_again() -> None:
    model = open_model()
    spread = model.calibration(embedded().model_copy(update={"spread": True}))
    assert spread.spread and spread.fingerprint != model.calibration(embedded()).fingerprint
    assert text_reference(spread) == embedded().model_copy(update={"spread": True})


def test_a_text_is_known_by_its_content_wherever_it_lies(tmp_path: Path) -> None:
    model = open_model()
    (tmp_path / "mine.txt").write_text(WORDS)
    wanted = reference("somewhere/else.txt", WORDS)
    offered = [TextChoice(content="another text, long enough for one window at the least"), TextChoice(content=WORDS)]
    assert model.calibration(wanted, offered).count == 4
    assert open_model().calibration(wanted, [TextChoice(str(tmp_path / "mine.txt"))]).source.endswith("mine.txt")


@pytest.mark.parametrize("source", ["SECRET", "wikitext-2", "hub:owner/name", "/etc/passwd"])
def test_a_recipe_never_makes_the_tool_read(source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = open_model()
    secret = tmp_path / "secret.txt"
    secret.write_text(WORDS)
    asked: list[str] = []
    original = text.load_text

    def watched(name: str, *arguments: Any) -> Text:
        asked.append(name)
        return original(name, *arguments)

    monkeypatch.setattr("surgery.workbench.open_model.load_text", watched)
    wanted = reference(str(secret) if source == "SECRET" else source, WORDS)
    with pytest.raises(RecipeError, match="name that text as the calibration text"):
        model.complete(structure(model, wanted))
    assert set(asked) == {"embedded"}


def test_a_structure_without_compensations_is_complete_as_it_is() -> None:
    model = open_model()
    plain = model.resolve(model.recipe(PruneNeurons(removed={1: (0, 1, 2)})))
    assert model.complete(plain).structure is plain and model.complete(plain).entries == ()
