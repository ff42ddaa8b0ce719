"""The packed formats from an open checkpoint to files: the numbers that are printed are those of the files."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM

from surgery.cli.quantize_packed import PackedChoice, quantize_checkpoint
from surgery.common.jobs import Context, Job
from surgery.errors import Cancelled, InputError
from surgery.recipe.recipe import Recipe
from surgery.recipe.texts import TextChoice
from tests.reference import token_nll
from tests.tiny_workbench import open_model

OPENED = open_model("smollm")
CALIBRATION = TextChoice(
    content="How vexingly quick daft zebras jump; " * 40, window=24, windows=8, purpose="calibration"
)
MEASURED = TextChoice(content="The five boxing wizards jump quickly. " * 9, window=24, windows=3)


def job() -> Context:
    return Context(Job("id", "Quantising", "heavy"))


@pytest.mark.parametrize(
    "choice",
    [
        PackedChoice("torchao", "int8"),
        PackedChoice("compressed-tensors", "int4", group_size=8),
        PackedChoice("compressed-tensors", "int3", "gptq", 8, act_order=True, rank=4),
        PackedChoice("torchao", "int4", group_size=8, rank=4),
    ],
)
def test_what_is_printed_is_what_reloads(choice: PackedChoice, tmp_path: Path) -> None:
    from peft import PeftModel

    found = quantize_checkpoint(OPENED, choice, CALIBRATION, MEASURED, tmp_path / "out", job())
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    if choice.rank is not None:
        model = PeftModel.from_pretrained(model, found["adapter"])
    nll = token_nll(model, OPENED.windows(MEASURED).ids).mean()
    assert math.exp(float(nll)) == pytest.approx(found["perplexity"], rel=1e-5)
    assert found["perplexity"] != pytest.approx(found["dense_perplexity"], rel=1e-4)
    assert found["bytes"] == (tmp_path / "out" / "model.safetensors").stat().st_size
    assert found["bits_per_weight"] == 8 * found["bytes"] / OPENED.architecture.parameters
    recipe = Recipe.load(tmp_path / "out" / "recipe.json")
    assert [edit.op for edit in recipe.edits] == ["quantize", "eora"][: 1 + (choice.rank is not None)]
    assert OPENED.known_complete(OPENED.resolve(recipe)) is not None


def test_what_makes_no_sense_is_refused_and_leaves_nothing_behind(tmp_path: Path) -> None:
    good = PackedChoice("compressed-tensors", "int4", group_size=8, rank=2)
    for choice, words in (
        (replace(good, type="Q4_K"), "no type 'Q4_K'"),
        (replace(good, format="torchao", method="gptq"), "choose that format"),
        (replace(good, group_size=40), "do not divide"),
        (replace(good, rank=0), "rank"),
    ):
        with pytest.raises(InputError, match=words):
            quantize_checkpoint(OPENED, choice, CALIBRATION, MEASURED, tmp_path / "out", job())
    (tmp_path / "out-adapter").mkdir()
    (tmp_path / "out-adapter" / "file").write_text("x")
    with pytest.raises(InputError, match="is there already"):
        quantize_checkpoint(OPENED, good, CALIBRATION, MEASURED, tmp_path / "out", job())
    stopped = job()
    stopped.stop.set()
    with pytest.raises(Cancelled):
        quantize_checkpoint(OPENED, good, CALIBRATION, MEASURED, tmp_path / "other", stopped)
    assert [path.name for path in tmp_path.iterdir()] == ["out-adapter"]
