"""The public endpoints give the documents of the core, and refuse in one sentence what is not for them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gradio as gr
import pytest

from surgery.recipe.texts import TextChoice
from surgery.workbench.limits import Limits
from surgery.workbench.workbench import Workbench
from tests.tiny_workbench import open_model
from ui.api.endpoints import ENDPOINTS, Api, endpoint


@pytest.fixture
def api(monkeypatch: pytest.MonkeyPatch) -> Any:
    bench = Workbench(limits=Limits(tokens=8192))
    opened = open_model("llama", "default")
    monkeypatch.setattr(bench, "open", lambda source, revision, report: opened)
    made = Api(bench)
    return SimpleNamespace(**{name: endpoint(made, name, None) for name in ENDPOINTS})


RECIPE: dict[str, Any] = {
    "schema": "model-surgery/recipe/1",
    "model": {"id": "default"},
    "edits": [{"op": "remove_blocks", "blocks": "1"}],
}


def test_numbers_are_those_of_the_core(api: Any) -> None:
    opened = open_model("llama", "default")
    document = api.evaluate(recipe=RECIPE, window=16, windows=3)
    structure = opened.resolve(opened.recipe().with_edits(*RECIPE["edits"]))
    expected = opened.evaluator.measure(structure, opened.windows(TextChoice(window=16, windows=3)))
    assert document["perplexity"] == expected.perplexity and document["parameters"] == structure.parameters
    assert api.inspect()["blocks"] == len(opened.architecture.blocks)
    assert api.fit(recipe=RECIPE, device="raspberry-pi-4-4gb")["fits"] is True
    assert len(api.analyze(window=16, windows=2)["similarity"]["block_influence"]) == len(opened.architecture.blocks)
    suggested = api.suggest(method="block_influence", blocks=1, window=16, windows=2)
    assert suggested["edits"][0]["op"] == "remove_blocks"
    assert api.evaluate(recipe=suggested, window=16, windows=3)["parameters"] == structure.parameters


def test_a_given_text_is_measured_itself(api: Any) -> None:
    text = "Some words of one's own, again and again. " * 20
    assert (
        api.evaluate(text=text, window=16, windows=2)["perplexity"] != api.evaluate(window=16, windows=2)["perplexity"]
    )


def hostile(api: Any, secret: str) -> list[tuple[Callable[[], Any], str]]:
    return [
        (lambda: api.inspect(model="/etc/passwd"), "no files of its own"),
        (lambda: api.inspect(model="../x"), "no files of its own"),
        (lambda: api.evaluate(window=10**6, windows=10**6), "at most 8,192 tokens"),
        (lambda: api.evaluate(window=1), "`window` .* from 2 to"),
        (lambda: api.evaluate(text="x" * 10**7), "longer than"),
        (lambda: api.evaluate(recipe={"schema": "x"}), "schema"),
        (lambda: api.evaluate(recipe=RECIPE | {"edits": [{"op": "remove_blocks", "blocks": "99"}]}), "out of range"),
        (lambda: api.fit(device=secret), "There is no device"),
        (lambda: api.suggest(method="nothing", blocks=1), "no method"),
        (lambda: api.suggest(method="block_influence"), "budget|Give|one of"),
        (lambda: api.suggest(method="block_influence", blocks=1, allocation="x"), "allocation must be"),
    ]


@pytest.mark.parametrize("place", range(11))
def test_what_is_not_allowed_is_one_sentence(api: Any, tmp_path: Path, place: int) -> None:
    secret = tmp_path / "secret.json"
    secret.write_text('{"schema": "model-surgery/device/1"}')
    ask, words = hostile(api, str(secret))[place]
    with pytest.raises(gr.Error, match=words) as raised:
        ask()
    assert "Traceback" not in str(raised.value)


def test_a_path_as_text_is_taken_as_words(api: Any, tmp_path: Path) -> None:
    secret = tmp_path / "secret.txt"
    secret.write_text("secret " * 5000)
    with pytest.raises(gr.Error, match=r"longer text|too short|tokens"):
        api.evaluate(text=str(secret), window=256, windows=4)
