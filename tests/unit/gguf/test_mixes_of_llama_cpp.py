"""Types that a file's tensors get, against the real llama-quantize on the same file in F32."""

from __future__ import annotations

from functools import partial

import gguf
import pytest
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    Phi3Config,
    Phi3ForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from analysis.model.describe import describe
from surgery.fit.weight_types import TYPES, stored
from surgery.gguf.write import write_gguf
from surgery.structure.structure import BlockSpec, Structure, dense
from tests import llama_cpp, tiny_checkpoints
from tests.llama_quantize import types_by_llama_cpp
from tests.tiny_models import FULL, SLIDING, _make

pytestmark = llama_cpp.needs_llama_cpp
SIZES = {
    "vocab_size": 128, "hidden_size": 256, "intermediate_size": 32, "num_attention_heads": 4, "num_key_value_heads": 1,
    "head_dim": 16, "max_position_embeddings": 64, "pad_token_id": None, "bos_token_id": None, "eos_token_id": None,
}  # fmt: skip
MIXES = ("Q2_K", "Q3_K_M", "Q3_K_L", "Q4_K_S", "Q4_K_M", "IQ4_XS", "IQ3_S", "IQ3_M")
llama = partial(_make, LlamaForCausalLM, LlamaConfig, SIZES)
UNIFORM = {
    "llama": (partial(llama, num_hidden_layers=16), MIXES),
    "phi3": (partial(_make, Phi3ForCausalLM, Phi3Config, SIZES, num_hidden_layers=9, head_dim=64), ("Q4_K_M",)),
    "gemma2": (partial(_make, Gemma2ForCausalLM, Gemma2Config, SIZES, num_hidden_layers=10, query_pre_attn_scalar=16,
                       layer_types=[SLIDING, FULL] * 5), ("Q4_K_M", "Q3_K_M")),
    "80 blocks": (partial(llama, num_hidden_layers=80), ("Q4_K_M", "Q3_K_M")),
    "80 blocks, a head each": (partial(llama, num_hidden_layers=80, num_key_value_heads=4), ("Q3_K_M",)),
    "80 blocks, qwen2": (partial(_make, Qwen2ForCausalLM, Qwen2Config, SIZES, num_hidden_layers=80, head_dim=64),
                         ("Q3_K_M",)),
}  # fmt: skip


def types_of(path):
    return {tensor.name: tensor.tensor_type.name for tensor in gguf.GGUFReader(path).tensors}


def compared(folder, structure, kinds, out):
    """Ours, and what the memory model counts, against llama.cpp's."""
    floating = write_gguf(folder, out / "F32.gguf", "F32").path
    for kind in kinds:
        expected = types_by_llama_cpp(floating, out / "real.gguf", kind)
        assert types_of(write_gguf(folder, out / "ours.gguf", kind).path) == expected, kind
        counted = stored(structure, TYPES[kind]).types
        matrices = {name: found for name, found in expected.items() if name in counted and "norm" not in name}
        assert {name: counted[name] for name in matrices} == matrices and len(matrices) > 2, kind


@pytest.mark.parametrize("name", UNIFORM)
def test_uniform_files(name, tmp_path):
    build, kinds = UNIFORM[name]
    model = build()
    folder = tiny_checkpoints.save(model, tmp_path / "model")
    compared(folder, dense(describe(model)), kinds, tmp_path)


@pytest.mark.parametrize("blocks", [24, 80])
@pytest.mark.parametrize(("family", "gone"), [("llama", range(6, 12)), ("llama", (0, 5)), ("qwen3", range(6, 12))])
def test_files_whose_blocks_differ(family, gone, blocks, tmp_path):
    """The values that are there are counted, and not the blocks."""
    if family == "llama":
        model = llama(num_hidden_layers=blocks, tie_word_embeddings=True)
    else:
        model = _make(Qwen3ForCausalLM, Qwen3Config, SIZES, num_hidden_layers=blocks, tie_word_embeddings=True)
    specs = [BlockSpec(i, () if i in gone else (0, 1, 2, 3), () if i in gone else (0,), tuple(range(32)))
             for i in range(blocks)]  # fmt: skip
    tiny_checkpoints.save_edited(model, specs, tmp_path / "model")
    kinds = ("Q4_K_M", "Q5_K_M", "Q3_K_M") if blocks == 24 else ("Q3_K_M",)
    compared(tmp_path / "model", Structure(describe(model), tuple(specs)), kinds, tmp_path)
