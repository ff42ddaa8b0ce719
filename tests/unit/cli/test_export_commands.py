"""The verb `export`."""

from __future__ import annotations

import json
import subprocess
import sys

import gguf
import pytest
import yaml

from surgery.recipe.base import ModelReference
from surgery.recipe.edits import PruneNeurons, RemoveBlocks
from surgery.recipe.recipe import Recipe
from surgery.structure.structure import BlockSpec
from tests import tiny_checkpoints
from tests.tiny_models import build
from tests.unit.cli.test_commands import ROOT
from tests.unit.cli.test_commands import run as command


def run(*arguments, code=0):
    said = command("export", *arguments, code=code)
    if code == 0:
        return json.loads(said)
    assert len(said.splitlines()) == 1
    return said


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A checkpoint that `build` wrote, with an MLP gone."""
    where = tmp_path_factory.mktemp("export") / "checkpoint"
    heads, neurons = tuple(range(6)), tuple(range(80))
    specs = [BlockSpec(index, heads, (0, 1), () if index == 2 else neurons) for index in range(4)]
    tiny_checkpoints.save_edited(build("llama"), specs, where)
    return where


def test_as_a_program(folder, tmp_path):
    arguments = ["export", str(folder), "--format", "gguf", "--out", str(tmp_path / "model.gguf"), "--json"]
    done = subprocess.run([sys.executable, "-m", "surgery", *arguments], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and json.loads(done.stdout)["path"] == arguments[-2], done.stderr


def test_gguf(folder, tmp_path):
    out = tmp_path / "model.gguf"
    found = run(folder, "--format", "gguf", "--type", "F32", "--out", out, "--json")
    assert found["path"] == str(out) and found["bytes"] == out.stat().st_size
    assert found["architecture"] == "deci" and found["type"] == "F32" and len(found["notes"]) == 1
    assert found["tensors"] == len(gguf.GGUFReader(out).tensors)


def test_mergekit_from_a_recipe_and_from_a_checkpoint(folder, tmp_path):
    source = tiny_checkpoints.save(build("llama"), tmp_path / "source")
    recipe = tmp_path / "recipe.json"
    Recipe(model=ModelReference(id=str(source)), edits=(RemoveBlocks(blocks="1"),)).save(recipe)
    found = run(recipe, "--format", "mergekit", "--out", tmp_path / "merge.yaml", "--json")
    document = yaml.safe_load((tmp_path / "merge.yaml").read_text())
    assert [piece["sources"][0]["layer_range"] for piece in document["slices"]] == [[0, 1], [2, 4]]
    assert found["bytes"] == (tmp_path / "merge.yaml").stat().st_size
    Recipe(model=ModelReference(id=str(source)), edits=(PruneNeurons(removed={0: "3"}),)).save(recipe)
    assert "prune_neurons" in run(recipe, "--format", "mergekit", "--out", tmp_path / "other.yaml", code=2)
    run(folder, "--format", "mergekit", "--model", source, "--out", tmp_path / "whole.yaml", "--json")
    assert len(yaml.safe_load((tmp_path / "whole.yaml").read_text())["slices"]) == 1


def test_bad_input_is_one_sentence(folder, tmp_path):
    out = ("--out", tmp_path / "model.gguf")
    assert "Q9" in run(folder, "--type", "Q9", *out, code=2)
    assert "onnx" in run(folder, "--format", "onnx", *out, code=2)
    assert "build" in run(folder / "recipe.json", *out, code=2)
    assert "config.json" in run(tmp_path / "none", *out, code=2)
