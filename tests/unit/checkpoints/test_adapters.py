"""The low-rank repair as a LoRA adapter: what PEFT and llama.cpp make of it is what was measured live."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gguf
import pytest
import torch
from transformers import AutoModelForCausalLM

from analysis.model.modules import weight_of
from surgery.checkpoints.adapter import adapter_matrices, save_adapter
from surgery.checkpoints.build import Built, build_model
from surgery.checkpoints.gguf_adapter import write_gguf_adapter
from surgery.checkpoints.save import save_checkpoint
from surgery.errors import InputError
from surgery.evaluation.evaluator import Evaluator
from surgery.folders.files import CheckpointFiles
from surgery.gguf.plan import GgufPlan
from surgery.gguf.write import write_gguf
from surgery.quantization.quantizer import codecs_by_name
from surgery.recipe.recipe import Recipe
from surgery.structure.structure import Structure
from tests import llama_cpp
from tests.methods.test_calibrated import EDITS, quantisation, quantised, save_packed
from tests.methods.test_eora import coarse, repaired
from tests.reference import random_windows, runner_of, token_nll
from tests.tiny_checkpoints import tokenizer

WINDOWS = random_windows(count=2)
RECIPE = Recipe.read({"schema": "model-surgery/recipe/1", "model": {"id": "tiny"}, "edits": []})
TORCHAO = {"op": "quantize", "format": "torchao", "type": "int4", "group_size": 8}


def live(family: str, made: Structure) -> torch.Tensor:
    return Evaluator(runner_of(family)).token_losses(made, WINDOWS.ids).double()


def built(family: str, made: Structure) -> Built:
    runner = runner_of(family)
    return build_model(runner.model, runner.architecture, made)


@torch.no_grad()
def stored(family: str, made: Structure, repair: bool) -> Built:
    """The built model with its weights as they are stored, and the repair added to them or not."""
    new = built(family, made)
    matrices = adapter_matrices(made)
    for name, codec in codecs_by_name(made).items():
        weight = weight_of(new.model.get_submodule(name))
        weight.copy_(codec.apply(weight))
        if repair:
            down, up = matrices[name]
            weight += up @ down
    return new


def with_adapter(checkpoint: Path, adapter: Path, trust: bool) -> Any:
    from peft import PeftModel

    base = AutoModelForCausalLM.from_pretrained(checkpoint, trust_remote_code=trust)
    return PeftModel.from_pretrained(base, adapter)


@pytest.mark.parametrize("family", ["llama_tied", "llama_bias", "qwen3", "gemma2", "phi3", "opt", "gpt_neox"])
@pytest.mark.parametrize(
    "edit",
    [quantisation("int3", 8), quantisation("int3", 8, symmetric=False), TORCHAO],
    ids=["packed", "asymmetric", "torchao"],
)
def test_peft_loads_it_onto_the_quantised_checkpoint(family: str, edit: dict[str, Any], tmp_path: Path) -> None:
    made = repaired(family, quantised(family, *EDITS[:2], edit), 6)
    saved = save_packed(built(family, made), made, tokenizer(), RECIPE.with_edits(edit), tmp_path / "checkpoint")
    adapter = save_adapter(made, "tiny", tmp_path / "adapter")
    model = with_adapter(saved.path, adapter, trust=True)
    torch.testing.assert_close(token_nll(model, WINDOWS.ids), live(family, made), atol=1e-4, rtol=1e-4)
    with model.disable_adapter():
        alone = token_nll(model, WINDOWS.ids)
    assert (alone - live(family, made)).abs().mean() > 1e-2
    assert sorted(path.name for path in adapter.iterdir()) == ["adapter_config.json", "adapter_model.safetensors"]
    config = json.loads((adapter / "adapter_config.json").read_text())
    assert config["r"] == config["lora_alpha"] == 6 and config["base_model_name_or_path"] == "tiny"


def test_conv1d_models_are_repaired_too(tmp_path: Path) -> None:
    made = repaired("gpt2", coarse("gpt2"), 6)
    save_checkpoint(stored("gpt2", made, False), tokenizer(), RECIPE, tmp_path / "checkpoint")
    save_adapter(made, "tiny", tmp_path / "adapter", transposed=True)
    model = with_adapter(tmp_path / "checkpoint", tmp_path / "adapter", trust=False)
    torch.testing.assert_close(token_nll(model, WINDOWS.ids), live("gpt2", made), atol=1e-4, rtol=0)


def test_one_rank_for_all_and_the_largest_one_may_be_more_than_a_linear_has(tmp_path: Path) -> None:
    made = repaired("llama", coarse("llama"), 40)
    matrices = adapter_matrices(made)
    assert {(len(down), up.shape[1]) for down, up in matrices.values()} == {(40, 40)}
    repair = made.blocks[1].repair
    assert repair is not None and repair.up["self_attn.k_proj"].shape == (16, 16)
    down, up = matrices["model.layers.1.self_attn.k_proj"]
    torch.testing.assert_close(up @ down, repair.up["self_attn.k_proj"] @ repair.down["self_attn.k_proj"])
    save_checkpoint(stored("llama", made, False), tokenizer(), RECIPE, tmp_path / "checkpoint")
    save_adapter(made, "tiny", tmp_path / "adapter")
    model = with_adapter(tmp_path / "checkpoint", tmp_path / "adapter", trust=False)
    torch.testing.assert_close(token_nll(model, WINDOWS.ids), live("llama", made), atol=1e-4, rtol=0)


def test_without_a_repair_there_is_nothing_to_save_and_full_folders_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="add EoRA"):
        save_adapter(coarse("llama"), "tiny", tmp_path / "adapter")
    made = repaired("llama", coarse("llama"), 2)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").write_text("x")
    with pytest.raises(InputError, match="is there already"):
        save_adapter(made, "tiny", tmp_path / "full")
    folder = tmp_path / "checkpoint"
    save_checkpoint(stored("llama", made, False), tokenizer(), RECIPE, folder)
    with pytest.raises(InputError, match="cannot be written"):
        write_gguf_adapter(made, GgufPlan(CheckpointFiles(folder)), tmp_path / "missing" / "adapter.gguf")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint", "full"]


def test_the_gguf_adapter_says_what_it_is(tmp_path: Path) -> None:
    made = repaired("llama", coarse("llama"), 4)
    save_checkpoint(stored("llama", made, False), tokenizer(), RECIPE, tmp_path / "checkpoint")
    plan = GgufPlan(CheckpointFiles(tmp_path / "checkpoint"))
    reader = gguf.GGUFReader(write_gguf_adapter(made, plan, tmp_path / "adapter.gguf"))
    values = {name: field.contents() for name, field in reader.fields.items()}
    assert values["general.type"] == "adapter" and values["adapter.type"] == "lora"
    assert values["general.architecture"] == "llama" and values["adapter.lora.alpha"] == 4
    assert len(reader.tensors) == 2 * 28
    assert {tensor.name.rpartition(".")[2] for tensor in reader.tensors} == {"lora_a", "lora_b"}


@pytest.mark.slow
@llama_cpp.needs_llama_cpp
@torch.no_grad()
@pytest.mark.parametrize(
    ("family", "edited"),
    [("llama", False), ("llama", True), ("qwen3", False), ("gemma", False), ("phi3", False), ("gpt2", False),
     ("granite", False)],
)  # fmt: skip
def test_llama_cpp_applies_it(family: str, edited: bool, tmp_path: Path) -> None:
    start = quantised(family, *EDITS, quantisation("int4")).floating if edited else None
    made = repaired(family, coarse(family, start, step=0.2), 6)
    save_checkpoint(stored(family, made, False), tokenizer(), RECIPE, tmp_path / "checkpoint")
    write_gguf(tmp_path / "checkpoint", tmp_path / "model.gguf", "F32")
    plan = GgufPlan(CheckpointFiles(tmp_path / "checkpoint"))
    write_gguf_adapter(made, plan, tmp_path / "adapter.gguf")
    prompt = torch.randint(2, 128, (12,), generator=torch.Generator().manual_seed(1)).tolist()
    found = []
    for lora in (None, tmp_path / "adapter.gguf"):
        answer = llama_cpp.run(tmp_path / "model.gguf", [prompt], probabilities=True, lora=lora)
        found.append(torch.tensor([probability for _, probability in sorted(answer["probabilities"][0])]))
        model = stored(family, made, repair=lora is not None).model
        expected = model(input_ids=torch.tensor([prompt]), use_cache=False).logits[0, -1].softmax(-1)
        torch.testing.assert_close(found[-1], expected, atol=1e-3 if family in ("gemma", "gpt2") else 1e-5, rtol=0)
    assert (found[0] - found[1]).abs().max() > 5e-3
