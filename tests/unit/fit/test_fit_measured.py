"""The memory model against what llama.cpp itself says of its buffers, and what its process keeps resident."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from transformers import Gemma2Config, Gemma2ForCausalLM, LlamaConfig, LlamaForCausalLM

from analysis.model.describe import describe
from benchmarks.fit import run_llama_cpp
from surgery.fit.fit import fit
from surgery.fit.kv_cache import kv_cache_bytes
from surgery.fit.runtimes import LLAMA_CPP
from surgery.gguf.write import write_gguf
from surgery.structure.structure import dense
from tests import tiny_checkpoints
from tests.llama_cpp import needs_llama_cpp
from tests.tiny_models import _make
from tests.unit.fit.test_memory import device

pytestmark = needs_llama_cpp
ROUNDED = 0.01 * 2**20
"""llama.cpp prints two decimals of a MiB."""
AMX_BLOCK = 38
"""Bytes of 32 weights of Q8_0 where llama.cpp lays them out for a processor with AMX: a sum goes with each 34."""
SIZES: dict[str, Any] = {
    "vocab_size": 512,
    "num_hidden_layers": 3,
    "max_position_embeddings": 8192,
    "pad_token_id": None,
    "bos_token_id": None,
    "eos_token_id": None,
}
SHAPES = {"wide MLP": (512, 4096, 4, 1), "usual": (576, 1536, 9, 3), "wide attention": (128, 64, 16, 2)}
"""Hidden size, MLP width, query heads, key/value heads."""


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("context", "kv_type"), [(512, "F16"), (2048, "Q8_0"), (4096, "Q4_0")])
def test_buffers_are_those_of_llama_cpp(shape: str, context: int, kv_type: str, tmp_path: Path) -> None:
    names = ("hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads")
    sizes = dict(zip(names, SHAPES[shape], strict=True))
    model = _make(LlamaForCausalLM, LlamaConfig, SIZES, **sizes, head_dim=64)
    folder = tiny_checkpoints.save(model, tmp_path / "model", tiny_checkpoints.tokenizer(size=512))
    made = write_gguf(folder, tmp_path / "model.gguf", "Q8_0")
    found = fit(dense(describe(model)), device(), context, "Q8_0", kv_type)
    buffers = run_llama_cpp(made.path, context=context, kv=kv_type)["buffers"]
    laid_out_anew = buffers.get("amx", 0) * (1 - 34 / AMX_BLOCK)
    printed = 2 if "amx" in buffers else 1
    assert buffers["model"] - laid_out_anew == pytest.approx(found.weights_bytes, abs=printed * ROUNDED)
    assert buffers["KV"] == pytest.approx(found.kv_cache_bytes, abs=ROUNDED)
    assert buffers["compute"] + buffers["output"] == pytest.approx(found.activation_bytes, rel=0.25)


def test_a_sliding_cache_is_llama_cpps(tmp_path: Path) -> None:
    sizes = {"hidden_size": 256, "intermediate_size": 256, "num_attention_heads": 4, "num_key_value_heads": 2}
    types = ["sliding_attention", "full_attention"] * 2
    model = _make(
        Gemma2ForCausalLM, Gemma2Config, SIZES | {"num_hidden_layers": 4}, **sizes, head_dim=64, sliding_window=256,
        query_pre_attn_scalar=64, layer_types=types,
    )  # fmt: skip
    words = tiny_checkpoints.sentencepiece("never", 512)
    folder = tiny_checkpoints.save(model, tmp_path / "model", words)
    made = write_gguf(folder, tmp_path / "model.gguf", "F16")
    buffers = run_llama_cpp(made.path, context=4096, kv="F16")["buffers"]
    predicted = kv_cache_bytes(dense(describe(model)), 4096, "F16", LLAMA_CPP.together(4096))
    assert buffers["KV"] == pytest.approx(predicted, abs=ROUNDED)
