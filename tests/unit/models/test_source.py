"""The accounting of a folder: every setting and tensor is used, known not to matter, or refused by name."""

from __future__ import annotations

import json
import math
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
from huggingface_hub import errors as hub
from safetensors.torch import load_file, save_file

from surgery.errors import (
    CorruptFile,
    InputError,
    NotACausalLanguageModel,
    QuantisedCheckpoint,
    UnsupportedArchitecture,
)
from surgery.gguf.write import write_gguf
from surgery.models.from_checkpoint import understood_files
from surgery.models.loading import load
from tests import tiny_checkpoints
from tests.tiny_models import FAMILIES, build

SINGLE = "model.safetensors"
IDS = torch.arange(2, 22)[None]


def saved(family: str, folder: Path) -> Path:
    return tiny_checkpoints.save(build(family), folder)


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved("llama", tmp_path_factory.mktemp("llama"))


@pytest.fixture
def folder(llama: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(llama, tmp_path / "m"))


def configure(folder: Path, **changes: Any) -> Path:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    return folder


def tensors(folder: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> Path:
    held = load_file(folder / SINGLE)
    change(held)
    save_file(held, folder / SINGLE, {"format": "pt"})
    return folder


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(IDS).logits


def refused(folder: Path, kind: type[InputError], *words: str) -> None:
    """By loading and by the export, within a second each, in the same words."""
    said = []
    for door in (lambda: load(str(folder)), lambda: understood_files(folder)):
        begun = time.process_time()
        with pytest.raises(InputError) as caught:
            door()
        assert time.process_time() - begun < 2
        said.append(str(caught.value).replace(str(folder), folder.name))
        assert type(caught.value) is kind and all(word in said[-1] for word in words), said
    assert said[0] == said[1]


@pytest.mark.parametrize("family", [*FAMILIES])
def test_what_transformers_writes_is_understood(family: str, tmp_path: Path) -> None:
    source = saved(family, tmp_path)
    configure(source, torch_dtype="float32", head_dim=build(family).config.to_dict().get("head_dim") or 8)
    assert torch.allclose(logits(load(str(source)).model), logits(build(family)), atol=1e-5)


@pytest.mark.parametrize(
    ("family", "setting", "value"),
    [("llama", "attn_logit_softcapping", 3.0), ("qwen2", "query_scale", 0.5), ("gpt2", "alibi", True),
     ("llama", "rope_scaling", {"rope_type": "linear", "factor": 2.0, "warp": 3}),
     ("llama", "rope_scaling", {"rope_type": "spiral", "factor": 2.0})],
)  # fmt: skip
def test_a_setting_that_is_not_understood_is_named(family: str, setting: str, value: Any, tmp_path: Path) -> None:
    named = setting if not isinstance(value, dict) else ("warp" if "warp" in value else "spiral")
    refused(configure(saved(family, tmp_path), **{setting: value}), UnsupportedArchitecture, named)


def test_settings_without_an_effect_open(folder: Path) -> None:
    configure(folder, is_llama_config=True, rope_interleaved=False, pretraining_tp=1, temperature=0.7, soft_cap=None)
    assert torch.equal(logits(load(str(folder)).model), logits(build("llama")))


@pytest.mark.parametrize(
    ("setting", "value"),
    [("rope_scaling", "linear"), ("max_position_embeddings", -128), ("rms_norm_eps", "small"), ("num_hidden_layers", 0),
     ("rms_norm_eps", math.nan), ("vocab_size", 10**30), ("dtype", 5), ("eos_token_id", "</s>"), ("head_dim", 0)],
)  # fmt: skip
def test_a_value_of_a_wrong_kind_is_named(setting: str, value: Any, folder: Path) -> None:
    refused(configure(folder, **{setting: value}), CorruptFile, setting)


def test_sizes_are_compared_with_the_headers(folder: Path) -> None:
    refused(configure(folder, num_hidden_layers=1999), CorruptFile, "1,999 blocks", "model.layers.4")
    refused(configure(folder, num_hidden_layers=3), CorruptFile, "model.layers.3")
    refused(configure(folder, num_hidden_layers=4, intermediate_size=64), CorruptFile, "mlp", "[48, 64]", "[48, 80]")


def test_a_tensor_without_a_place_is_named_and_old_masks_are_not(folder: Path, tmp_path: Path) -> None:
    tensors(folder, lambda held: held.update({"model.layers.1.mlp.scale.weight": torch.ones(48)}))
    refused(folder, CorruptFile, "model.layers.1.mlp.scale.weight")
    old = saved("gpt2", tmp_path / "gpt2")
    mask = {f"transformer.h.{block}.attn.bias": torch.ones(1, 1, 128, 128, dtype=torch.bool) for block in range(4)}
    tensors(old, lambda held: held.update(mask))
    assert torch.equal(logits(load(str(old)).model), logits(build("gpt2")))


@pytest.mark.parametrize("flag", [True, False])
def test_the_tensors_say_whether_the_head_is_tied(flag: bool, tmp_path: Path) -> None:
    model = build("llama")
    source = configure(tiny_checkpoints.save(model, tmp_path / "m"), tie_word_embeddings=flag)
    loaded = load(str(source))
    assert torch.equal(logits(loaded.model), logits(model)) and not loaded.architecture.tied
    assert not loaded.model.config.tie_word_embeddings and ("tie_word_embeddings" in loaded.note) is flag
    assert not understood_files(source).config["tie_word_embeddings"]
    exported = load(str(write_gguf(understood_files(source), tmp_path / "m.gguf", "F32").path))
    assert torch.allclose(logits(exported.model), logits(model), atol=1e-4)


def test_equal_copies_are_tied_where_the_flag_says_so(tmp_path: Path) -> None:
    source = saved("llama_tied", tmp_path)
    tensors(source, lambda held: held.update({"lm_head.weight": held["model.embed_tokens.weight"].clone()}))
    loaded = load(str(source))
    assert loaded.architecture.tied and torch.equal(logits(loaded.model), logits(build("llama_tied")))
    assert understood_files(source).config["tie_word_embeddings"]


def test_the_tensors_say_whether_there_are_biases(tmp_path: Path) -> None:
    source = configure(saved("llama_bias", tmp_path / "with"), attention_bias=False, mlp_bias=False)
    loaded = load(str(source))
    assert torch.equal(logits(loaded.model), logits(build("llama_bias"))) and "attention_bias" in loaded.note
    config = understood_files(source).config
    assert config["attention_bias"] and config["mlp_bias"]
    other = configure(saved("llama", tmp_path / "without"), attention_bias=True)
    assert torch.equal(logits(load(str(other)).model), logits(build("llama")))


def test_a_stale_index_beside_a_single_file_is_passed_over_by_all(folder: Path) -> None:
    other = build("llama", seed=1)
    kept = (folder / SINGLE).read_bytes()
    other.save_pretrained(folder, max_shard_size="50KB")
    assert (folder / f"{SINGLE}.index.json").is_file()
    (folder / SINGLE).write_bytes(kept)
    expected = build("llama").model.embed_tokens.weight.detach()
    assert torch.equal(load(str(folder)).model.model.embed_tokens.weight, expected)
    assert torch.equal(torch.from_numpy(understood_files(folder).read("model.embed_tokens.weight")), expected)


DENSE = {"quant_method": "compressed-tensors", "format": "dense"}


@pytest.mark.parametrize("name", ["quantization_config", "compression_config"])
def test_plain_weights_open_whatever_they_are_called(name: str, folder: Path) -> None:
    sparse = {"format": "dense", "sparsity_structure": "2:4", "global_sparsity": 0.5}
    configure(folder, **{name: {**DENSE, "sparsity_config": sparse}})
    loaded = load(str(folder))
    assert torch.equal(logits(loaded.model), logits(build("llama"))) and understood_files(folder).names
    assert getattr(loaded.model.config, "quantization_config", None) is None


@pytest.mark.parametrize(
    "changes",
    [{"quantization_config": {**DENSE, "format": "pack-quantized"}}, {"quantization": {"bits": 4, "group_size": 64}},
     {"quantization_config": {**DENSE, "sparsity_config": {"format": "sparse-24-bitmask"}}}],
)  # fmt: skip
def test_packed_weights_are_refused(changes: dict[str, Any], folder: Path) -> None:
    refused(configure(folder, **changes), QuantisedCheckpoint, "quantised")


def test_integers_are_refused_where_nothing_says_quantised(folder: Path) -> None:
    tensors(folder, lambda held: held.update({"model.norm.weight": torch.ones(48, dtype=torch.int8)}))
    refused(folder, QuantisedCheckpoint, "model.norm.weight", "I8")


def test_the_reason_for_a_model_in_a_wrapper_is_true(folder: Path) -> None:
    wrapped = {"architectures": ["Gemma3ForConditionalGeneration"], "model_type": "gemma3", "text_config": {"x": 1}}
    refused(configure(folder, **wrapped), UnsupportedArchitecture, "images", "Gemma3ForConditionalGeneration")


def test_an_adapter_is_called_so(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "owner/base"}))
    with pytest.raises(NotACausalLanguageModel, match=r"adapter of 'owner/base'.*merge"):
        load(str(tmp_path))


def test_a_hub_model_is_accounted_for_like_a_folder(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fetched: list[str] = []
    (folder / SINGLE).unlink()
    build("llama").save_pretrained(folder, max_shard_size="50KB")
    cache = folder.parent / "snapshot"
    cache.mkdir()

    def one(source: str, name: str, revision: str | None = None) -> str:
        if not (folder / name).is_file():
            raise hub.EntryNotFoundError(name)
        fetched.append(name)
        return str(shutil.copy(folder / name, cache / name))

    def several(source: str, revision: str | None, allow_patterns: list[str]) -> str:
        assert not any(pattern.endswith((".py", ".safetensors", ".bin")) for pattern in allow_patterns)
        for path in folder.glob("*.json"):
            shutil.copy(path, cache / path.name)
        return str(cache)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", one)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", several)
    loaded = load("owner/name", revision="main")
    assert torch.equal(logits(loaded.model), logits(build("llama"))) and loaded.id == "owner/name"
    assert fetched[0] == "config.json" and len(fetched) == 1 + len(list(folder.glob("model-*.safetensors")))
    configure(folder, strange_scale=2.0)
    with pytest.raises(UnsupportedArchitecture, match=r"strange_scale.*owner/name"):
        load("owner/name")
