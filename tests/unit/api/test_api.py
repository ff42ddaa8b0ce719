"""The public endpoints give the documents of the core, and refuse in one sentence what is not for them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gradio as gr
import pytest

from surgery.recipe.texts import TextChoice
from surgery.workbench import documents
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


SECRET = "a prompt that nobody else reads"
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


@pytest.mark.parametrize("value", [10**30, 2**31 + 1, float("inf"), float("nan"), 2.5, "many", None, True, [1]])
@pytest.mark.parametrize(("name", "argument"), [("fit", "context"), ("evaluate", "window"), ("suggest", "blocks")])
def test_numbers_are_refused_at_the_door(api: Any, name: str, argument: str, value: Any) -> None:
    with pytest.raises(gr.Error, match=f"`{argument}`"):
        getattr(api, name)(**{argument: value})


@pytest.mark.parametrize(
    ("name", "argument", "value"),
    [("inspect", "model", 5), ("inspect", "model", ["default"]), ("evaluate", "recipe", "x"), ("fit", "recipe", [1]),
     ("evaluate", "text", None), ("suggest", "params", 0.5)],
)  # fmt: skip
def test_other_types_are_refused_at_the_door(api: Any, name: str, argument: str, value: Any) -> None:
    with pytest.raises(gr.Error, match=f"`{argument}` must be a"):
        getattr(api, name)(**{argument: value})


def test_notes_beyond_64_bits_are_refused(api: Any) -> None:
    for number in (2**63, -(2**63) - 1):
        for notes in ({"results": {"x": number}}, {"target": {"x": [{"y": number}]}}):
            with pytest.raises(gr.Error, match="JSON cannot express"):
                api.evaluate(recipe=RECIPE | notes)
    api.fit(recipe=RECIPE | {"results": {"x": 2**63 - 1}})


def test_an_unforeseen_error_is_one_sentence_with_a_log(
    api: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MODEL_SURGERY_CACHE", str(tmp_path))
    for place in ("inspection", "plain"):  # in the job, and behind it

        def broken(*_: Any) -> None:
            raise ZeroDivisionError(SECRET)

        with monkeypatch.context() as patch:
            patch.setattr(documents, place, broken)
            with pytest.raises(
                gr.Error, match=r"Something unforeseen went wrong \(code \w+, ZeroDivisionError\)"
            ) as caught:
                api.inspect()
        assert not caught.value.print_exception and str(caught.value).count("went wrong") == 1
    logs = list((tmp_path / "logs").iterdir())
    assert len(logs) == 2 and not any(SECRET in log.read_text() for log in logs)


def test_a_path_as_text_is_taken_as_words(api: Any, tmp_path: Path) -> None:
    secret = tmp_path / "secret.txt"
    secret.write_text("secret " * 5000)
    with pytest.raises(gr.Error, match=r"longer text|too short|tokens"):
        api.evaluate(text=str(secret), window=256, windows=4)
