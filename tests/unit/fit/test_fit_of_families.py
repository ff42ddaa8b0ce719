"""The memory model of every family that is exported, against what llama.cpp logs: weights and KV cache to the byte."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GemmaConfig,
    GemmaForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    GraniteConfig,
    GraniteForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Olmo2Config,
    Olmo2ForCausalLM,
    Phi3Config,
    Phi3ForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
    SmolLM3Config,
    SmolLM3ForCausalLM,
)

from analysis.model.describe import describe
from surgery.checkpoints.build import build_model
from surgery.checkpoints.save import save_checkpoint
from surgery.fit.fit import fit
from surgery.fit.kv_cache import KV_TYPES
from surgery.fit.runtimes import LLAMA_CPP, activation_bytes
from surgery.fit.weight_types import TYPES
from surgery.gguf.families import FAMILIES
from surgery.gguf.write import write_gguf
from surgery.recipe.base import ModelReference
from surgery.recipe.recipe import Recipe
from surgery.structure.structure import BlockSpec, Structure, dense
from tests import llama_cpp, tiny_checkpoints
from tests.tiny_models import FULL, SLIDING, _make
from tests.unit.fit.test_memory import device

pytestmark = llama_cpp.needs_llama_cpp
PRINTED = 0.0051
"""llama.cpp prints two decimals of a MiB."""
SIZES: dict[str, Any] = {
    "vocab_size": 512, "num_hidden_layers": 4, "max_position_embeddings": 8192, "hidden_size": 256,
    "intermediate_size": 512, "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 32,
    "pad_token_id": None, "bos_token_id": None, "eos_token_id": None,
}  # fmt: skip
GPT2 = {"vocab_size": 512, "n_layer": 4, "n_positions": 8192, "n_embd": 256, "n_head": 8}
GEMMA = {"query_pre_attn_scalar": 32, "sliding_window": 512}
MODELS: dict[str, tuple[Any, Any, dict[str, Any]]] = {
    "llama": (LlamaForCausalLM, LlamaConfig, {}),
    "mistral": (MistralForCausalLM, MistralConfig, {"sliding_window": 300}),
    "qwen2": (Qwen2ForCausalLM, Qwen2Config, {"use_sliding_window": True, "sliding_window": 300, "max_window_layers": 2,
                                              "layer_types": [FULL, FULL, SLIDING, SLIDING]}),
    "qwen3": (Qwen3ForCausalLM, Qwen3Config, {"tie_word_embeddings": True}),
    "gemma": (GemmaForCausalLM, GemmaConfig, {}),
    "gemma2": (Gemma2ForCausalLM, Gemma2Config, GEMMA | {"layer_types": [SLIDING, FULL] * 2}),
    "gemma2, full": (Gemma2ForCausalLM, Gemma2Config, GEMMA | {"layer_types": [FULL] * 4}),
    "gemma3_text": (Gemma3ForCausalLM, Gemma3TextConfig, GEMMA | {"layer_types": [FULL, SLIDING, SLIDING, FULL]}),
    "phi3": (Phi3ForCausalLM, Phi3Config, {"sliding_window": 300}),
    "olmo2": (Olmo2ForCausalLM, Olmo2Config, {"tie_word_embeddings": True}),
    "granite": (GraniteForCausalLM, GraniteConfig, {}),
    "smollm3": (SmolLM3ForCausalLM, SmolLM3Config, {"no_rope_layer_interval": 4}),
    "gpt2": (GPT2LMHeadModel, GPT2Config, {}),
}  # fmt: skip
CONTEXTS = (100, 900, 3000)


def compared(structure: Structure, file: Path) -> None:
    """Every context and type of a KV cache, and the weights."""
    asked = [{"size": size, "kv": kv} for size in CONTEXTS for kv in KV_TYPES]
    answer = llama_cpp.run(file, contexts=asked)
    for request, found in zip(asked, answer["contexts"], strict=True):
        made = fit(structure, device(), request["size"], "F16", request["kv"])
        assert made.kv_cache_bytes / 2**20 == pytest.approx(found["KV"], abs=2 * PRINTED), request
    weights = made.weights_bytes / 2**20
    assert weights == pytest.approx(answer["buffers"]["model"], abs=PRINTED)


@pytest.mark.parametrize("name", MODELS)
def test_weights_and_cache_of_every_family(name: str, tmp_path: Path) -> None:
    model_class, config_class, more = MODELS[name]
    model = _make(model_class, config_class, GPT2 if name == "gpt2" else SIZES, **more)
    folder = tiny_checkpoints.save(model, tmp_path / "model", tiny_checkpoints.tokenizer(size=512))
    compared(dense(describe(model)), write_gguf(folder, tmp_path / "model.gguf", "F16").path)


def test_every_exported_family_is_weighed() -> None:
    assert {name.partition(",")[0] for name in MODELS} == set(FAMILIES)


def test_what_llama_cpp_reserves_where_logits_need_most(tmp_path: Path) -> None:
    model = _make(LlamaForCausalLM, LlamaConfig, SIZES, vocab_size=32768)
    folder = tiny_checkpoints.save(model, tmp_path / "model", tiny_checkpoints.tokenizer(size=512))
    file = write_gguf(folder, tmp_path / "model.gguf", "F16").path
    answer = llama_cpp.run(file, contexts=[{"size": size, "kv": "F16"} for size in CONTEXTS])
    for size, found in zip(CONTEXTS, answer["contexts"], strict=True):
        made = activation_bytes(dense(describe(model)), LLAMA_CPP, TYPES["F16"], size, gpu=True)
        assert made / 2**20 == pytest.approx(found["compute"] + found["output"], rel=0.1)


@pytest.mark.parametrize("name", ["llama", "qwen3"])
def test_blocks_that_differ(name: str, tmp_path: Path) -> None:
    """The attentions of zeros that llama.cpp's graphs need are cached too."""
    model_class, config_class, more = MODELS[name]
    model = _make(model_class, config_class, SIZES, **more)
    architecture = describe(model)
    query, kv, neurons = tuple(range(8)), tuple(range(4)), tuple(range(512))
    specs = (BlockSpec(0, (), (), neurons), BlockSpec(1, query, kv, ()), BlockSpec(2, query[:4], kv[:2], neurons[:96]),
             BlockSpec(3, (), (), neurons))  # fmt: skip
    structure = Structure(architecture, specs)
    save_checkpoint(build_model(model, architecture, structure), tiny_checkpoints.tokenizer(size=512),
                    Recipe(model=ModelReference(id="tiny")), tmp_path / "model")  # fmt: skip
    compared(structure, write_gguf(tmp_path / "model", tmp_path / "model.gguf", "F16").path)
