"""A built checkpoint has the number type of its source, unless its weights were computed anew."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from surgery.models.loading import load
from tests import tiny_checkpoints
from tests.tiny_models import build
from tests.unit.cli.test_commands import run

SINGLE = "model.safetensors"
CUT = {"op": "remove_blocks", "blocks": "2"}


def source(folder: Path, dtype: torch.dtype) -> Path:
    return tiny_checkpoints.save(build("llama").to(dtype), folder)


def made(source: Path, *options: Any, edits: Any = (CUT,)) -> tuple[Path, dict[str, Any]]:
    """The folder that `build` makes, and what it prints."""
    recipe, out = source.parent / "recipe.json", source.parent / "built"
    document = {"schema": "model-surgery/recipe/1", "model": {"id": str(source)}, "edits": list(edits)}
    recipe.write_text(json.dumps(document))
    return out, json.loads(run("build", recipe, "--out", out, "--json", *options))


def types(folder: Path) -> set[torch.dtype]:
    return {tensor.dtype for tensor in load_file(folder / SINGLE).values()}


def config(folder: Path) -> Any:
    return json.loads((folder / "config.json").read_text())["dtype"]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_what_is_only_cut_keeps_the_type_and_its_values(dtype: torch.dtype, tmp_path: Path) -> None:
    folder = source(tmp_path / "source", dtype)
    out, printed = made(folder)
    name = str(dtype).removeprefix("torch.")
    assert types(out) == {dtype} and config(out) == printed["dtype"] == name
    assert (out / SINGLE).stat().st_size < (folder / SINGLE).stat().st_size
    before, after = load_file(folder / SINGLE), load_file(out / SINGLE)
    assert torch.equal(after["model.layers.2.mlp.up_proj.weight"], before["model.layers.3.mlp.up_proj.weight"])
    inspected = json.loads(run("inspect", folder, "--json"))
    assert inspected["bytes"] == {name: dtype.itemsize * inspected["parameters"]}


def test_a_tensor_of_a_wider_type_keeps_its_values(tmp_path: Path) -> None:
    folder = source(tmp_path / "source", torch.bfloat16)
    held = load_file(folder / SINGLE)
    held["model.norm.weight"] = held["model.norm.weight"].float() + 1e-3
    save_file(held, folder / SINGLE, {"format": "pt"})
    after = load_file(made(folder)[0] / SINGLE)
    assert torch.equal(after["model.norm.weight"], held["model.norm.weight"])
    assert after["model.embed_tokens.weight"].dtype == torch.bfloat16


def test_merged_heads_are_computed_anew(tmp_path: Path) -> None:
    merge = {"op": "merge_kv_heads", "blocks": "0-3", "kv_heads": 1, "how": "mean"}
    out, printed = made(source(tmp_path / "source", torch.bfloat16), edits=[merge])
    assert types(out) == {torch.float32} and printed["dtype"] == "float32"


def test_another_type_is_written_if_asked_for(tmp_path: Path) -> None:
    folder = source(tmp_path / "source", torch.float32)
    out, printed = made(folder, "--dtype", "float16")
    assert types(out) == {torch.float16} and config(out) == printed["dtype"] == "float16"
    assert load(str(out)).dtype == torch.float16
    assert "--dtype" in run("build", tmp_path / "recipe.json", "--out", tmp_path / "x", "--dtype", "int4", code=2)


def test_the_card_says_the_type(tmp_path: Path) -> None:
    made(source(tmp_path / "source", torch.bfloat16))
    shipped = tmp_path / "shipped"
    run("ship", tmp_path / "recipe.json", "--out", shipped, "--window", 16, "--windows", 2)
    card = (shipped / "README.md").read_text()
    assert "checkpoint, bfloat16" in card and types(shipped) == {torch.bfloat16}
    run("verify", shipped)


def test_tied_tensors_are_written_once(tmp_path: Path) -> None:
    folder = tiny_checkpoints.save(build("llama_tied").to(torch.bfloat16), tmp_path / "source")
    out, _ = made(folder)
    assert "lm_head.weight" not in load_file(out / SINGLE) and types(out) == {torch.bfloat16}
    assert load(str(out)).architecture.tied
