"""Quantised checkpoints: what reloads is what was measured, byte for byte as large as predicted, and never a pickle."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from transformers import AutoConfig, AutoModelForCausalLM

from surgery.checkpoints.build import build_model
from surgery.checkpoints.save import Saved
from surgery.errors import InputError
from surgery.evaluation.evaluator import Evaluator
from surgery.quantization.grid import Packed
from surgery.quantization.quantizer import codecs_by_name
from surgery.recipe.recipe import Recipe
from surgery.structure.structure import Structure
from tests.methods.test_calibrated import EDITS, LINEAR, computed, quantisation, quantised, save_packed
from tests.reference import random_windows, runner_of, token_nll
from tests.tiny_checkpoints import tokenizer

WINDOWS = random_windows(count=2)
NARROWER = [{"op": "prune_neurons", "removed": dict.fromkeys("0123", "0-15")}]
"""Uniform: a plain checkpoint of the family."""


def torchao(type_name: str, group_size: int | None = None, **more: Any) -> dict[str, Any]:
    return {"op": "quantize", "format": "torchao", "type": type_name, "group_size": group_size, **more}


def saved(family: str, folder: Path, *edits: dict[str, Any]) -> tuple[Structure, Saved]:
    runner = runner_of(family)
    made = quantised(family, *edits)
    recipe = Recipe.read({"schema": "model-surgery/recipe/1", "model": {"id": "tiny"}, "edits": list(edits)})
    built = build_model(runner.model, runner.architecture, made)
    return made, save_packed(built, made, tokenizer(), recipe, folder)


def check(family: str, folder: Path, *edits: dict[str, Any]) -> Any:
    """Live = reloaded; the reloaded model."""
    made, checkpoint = saved(family, folder / "out", *edits)
    live = Evaluator(runner_of(family)).token_losses(made, WINDOWS.ids).double()
    model = AutoModelForCausalLM.from_pretrained(checkpoint.path, trust_remote_code=not checkpoint.plain)
    torch.testing.assert_close(token_nll(model, WINDOWS.ids), live, atol=1e-4, rtol=1e-4)
    plain = token_nll(runner_of(family).model, WINDOWS.ids)
    assert (live - plain).abs().mean() > 1e-3
    return model


@pytest.mark.parametrize("family", LINEAR)
@pytest.mark.parametrize("edit", [quantisation("int3"), torchao("int4", 8)], ids=["packed", "torchao"])
def test_every_family_reloads_as_it_was_measured(family: str, edit: dict[str, Any], tmp_path: Path) -> None:
    check(family, tmp_path, *NARROWER, edit)


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("type_name", ["int8", "int4", "int3", "int2"])
@pytest.mark.parametrize("group_size", [None, 16])
def test_every_width_in_bits_reloads(type_name: str, group_size: int | None, symmetric: bool, tmp_path: Path) -> None:
    check("llama_tied", tmp_path, quantisation(type_name, group_size, symmetric=symmetric, method="gptq"))


@pytest.mark.parametrize("edit", [torchao("int8"), torchao("int4"), torchao("int4", 16, symmetric=False)])
def test_every_torchao_type_reloads_and_leaves_the_head_tied(edit: dict[str, Any], tmp_path: Path) -> None:
    from torchao.utils import TorchAOBaseTensor

    model = check("llama_tied", tmp_path, edit)
    head, embeddings = model.get_output_embeddings().weight, model.get_input_embeddings().weight
    assert head.data_ptr() == embeddings.data_ptr() and not isinstance(head, TorchAOBaseTensor)
    assert isinstance(model.model.layers[3].mlp.up_proj.weight, TorchAOBaseTensor)


@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma2", "phi3", "opt", "gpt_neox", "phi", "olmo2"])
@pytest.mark.parametrize(
    "edit",
    [quantisation("int4", method="gptq", act_order=True), quantisation("int3", symmetric=False), torchao("int8")],
    ids=["gptq", "asymmetric", "torchao"],
)
def test_models_whose_blocks_differ_reload_with_their_own_code(
    family: str, edit: dict[str, Any], tmp_path: Path
) -> None:
    check(family, tmp_path, *EDITS, {"op": "remove_mlp", "blocks": "2"}, edit)


def test_half_precision_models_reload_exactly(tmp_path: Path) -> None:
    from analysis.model.describe import describe
    from analysis.model.runner import Runner
    from surgery.structure.resolve import resolve
    from tests.tiny_models import build

    for dtype in (torch.bfloat16, torch.float16):
        model = build("llama").to(dtype)
        runner = Runner(model, describe(model))
        for edit in (quantisation("int4"), quantisation("int4", symmetric=False), torchao("int8")):
            document = {"schema": "model-surgery/recipe/1", "model": {"id": "tiny"}, "edits": [edit]}
            recipe = Recipe.read(document)
            made = computed(runner, resolve(runner.architecture, recipe))
            built = build_model(model, runner.architecture, made)
            folder = tmp_path / f"{dtype}{edit['format']}{edit.get('symmetric')}"
            save_packed(built, made, tokenizer(), recipe, folder)
            again = AutoModelForCausalLM.from_pretrained(folder)
            assert again.dtype == dtype
            again(input_ids=WINDOWS.ids[:1])  # unpacks
            codecs = codecs_by_name(made)
            assert len(codecs) == 28
            for name, codec in codecs.items():
                weight = again.get_submodule(name).weight
                stored = weight.dequantize() if edit["format"] == "torchao" else weight
                assert torch.equal(stored, codec.apply(model.get_submodule(name).weight)), name


def test_bytes_are_those_of_the_arithmetic_and_nothing_is_pickled(tmp_path: Path) -> None:
    for number, edit in enumerate((quantisation("int3", 16), quantisation("int4", None, symmetric=False))):
        made, checkpoint = saved("llama", tmp_path / str(number), *NARROWER, edit)
        with safe_open(checkpoint.path / "model.safetensors", "pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        for name, codec in codecs_by_name(made).items():
            assert isinstance(codec, Packed)
            parts = [tensor for stored, tensor in tensors.items() if stored.startswith(f"{name}.weight")]
            assert sum(part.numel() * part.element_size() for part in parts) == codec.bytes
        weights = [path.name for path in checkpoint.path.iterdir() if path.suffix in (".bin", ".pt", ".pkl")]
        assert not weights and "recipe.json" in checkpoint.files
        assert json.loads((checkpoint.path / "config.json").read_text())["model_surgery_recipe"]


def test_the_configuration_says_how_it_was_quantised(tmp_path: Path) -> None:
    _, checkpoint = saved("llama", tmp_path / "out", quantisation("int4", 16, method="gptq", act_order=True))
    group = AutoConfig.from_pretrained(checkpoint.path).quantization_config["config_groups"]["group_0"]
    assert group["weights"]["actorder"] == "weight" and group["weights"]["group_size"] == 16


def test_a_fresh_process_needs_nothing_of_this_project(tmp_path: Path) -> None:
    _, checkpoint = saved("llama", tmp_path / "out", *EDITS, quantisation("int4"))
    code = (
        "import sys, torch; from transformers import AutoModelForCausalLM;"
        f"model = AutoModelForCausalLM.from_pretrained({str(checkpoint.path)!r}, trust_remote_code=True);"
        "print(float(model(input_ids=torch.arange(20)[None]).logits.abs().sum()));"
        "assert not [name for name in sys.modules if name.split('.')[0] in ('surgery', 'analysis')]"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) > 0


def test_the_model_in_memory_is_left_alone_and_full_folders_are_refused(tmp_path: Path) -> None:
    runner = runner_of("llama")
    for edit in (quantisation("int4"), torchao("int8")):
        made = quantised("llama", edit)
        built = build_model(runner.model, runner.architecture, made)
        before = {name: tensor.clone() for name, tensor in built.model.state_dict().items()}
        recipe = Recipe.read({"schema": "model-surgery/recipe/1", "model": {"id": "tiny"}, "edits": [edit]})
        folder = tmp_path / edit["format"]
        save_packed(built, made, tokenizer(), recipe, folder)
        assert all(torch.equal(tensor, before[name]) for name, tensor in built.model.state_dict().items())
        assert "quantization_config" not in built.model.config.to_dict() and not hasattr(built.model, "hf_quantizer")
        with pytest.raises(InputError, match="is there already"):
            save_packed(built, made, tokenizer(), recipe, folder)
        with pytest.raises(ValueError, match="not quantised"):
            save_packed(built, made.floating, tokenizer(), recipe, tmp_path / "none")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["compressed-tensors", "torchao"]
