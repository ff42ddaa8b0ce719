"""The verb `quantize` on a tiny checkpoint whose rows are whole blocks."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import gguf
import pytest

from tests import tiny_checkpoints
from tests.unit.cli.test_commands import ROOT
from tests.unit.cli.test_commands import run as command
from tests.wide_models import MODELS

WORDS = ["--window", "24", "--windows", "2", "--calibration-window", "24", "--calibration-windows", "3"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_checkpoints.save(MODELS["llama_tied"](), tmp_path_factory.mktemp("quantize") / "checkpoint")


def run(*arguments: Any, code: int = 0) -> Any:
    said = command("quantize", *arguments, *WORDS, code=code)
    if code == 0:
        return json.loads(said)
    assert len(said.splitlines()) == 1
    return said


def test_gguf_with_an_importance_matrix(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "model.gguf"
    found = run(folder, "--type", "Q3_K_M", "--imatrix", "--out", out, "--json")
    assert found["bytes"] == found["predicted_bytes"] == out.stat().st_size and found["type"] == "Q3_K_M"
    assert 3 < found["bits_per_weight"] < 9 and found["perplexity"] != found["dense_perplexity"] > 1
    assert found["importance_matrix"]["windows"] == 3 and found["text"]["windows"] == 2
    types = {tensor.tensor_type.name for tensor in gguf.GGUFReader(out).tensors}
    assert types == {"F32", "Q3_K", "Q4_K", "Q5_K", "Q6_K"}


def test_packed_with_gptq_and_a_repair(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "packed"
    options = ("--format", "compressed-tensors", "--type", "int3", "--group-size", "64", "--method", "gptq")
    found = run(folder, *options, "--act-order", "--eora", "4", "--out", out, "--json")
    assert found["method"] == "gptq" and Path(found["adapter"]).is_dir() and found["calibration"]["windows"] == 3
    config = json.loads((out / "config.json").read_text())
    assert config["quantization_config"]["quant_method"] == "compressed-tensors"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--type", "Q9_K"), "no type 'Q9_K'"),
        (("--format", "zip"), "no format 'zip'"),
        (("--format", "torchao", "--type", "Q4_0"), "torchao has no type"),
        (("--format", "compressed-tensors", "--type", "int4", "--group-size", "100"), "100"),
        (("--eora", "8"), "made by `ship`"),
    ],
)
def test_what_cannot_be_is_one_sentence(folder: Path, tmp_path: Path, options: tuple[str, ...], words: str) -> None:
    assert words in run(folder, *options, "--out", tmp_path / "out", code=2)
    assert not list(tmp_path.iterdir())


def test_as_a_program_and_a_model_that_is_no_folder(tmp_path: Path) -> None:
    program = [sys.executable, "-m", "surgery", "quantize", tmp_path / "missing", "--out", tmp_path / "out.gguf"]
    done = subprocess.run(program, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2 and done.stdout == "" and len(done.stderr.splitlines()) == 1
    assert "missing" in done.stderr
