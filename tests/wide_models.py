"""Tiny random models whose rows are whole blocks of every quantised type, open with a tokenizer that can be saved."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    Olmo2Config,
    Olmo2ForCausalLM,
    Phi3Config,
    Phi3ForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from analysis.model.describe import describe
from surgery.models.loading import Loaded, fingerprint
from surgery.workbench.open_model import OpenModel
from tests import tiny_checkpoints
from tests.tiny_models import _TOKENS, _make

SIZES: dict[str, Any] = {
    **_TOKENS, "hidden_size": 256, "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2,
    "intermediate_size": 512, "max_position_embeddings": 128,
}  # fmt: skip
GPT2: dict[str, Any] = {**_TOKENS, "n_embd": 256, "n_layer": 2, "n_head": 4, "n_inner": 512, "n_positions": 128}
MODELS = {
    "llama": partial(_make, LlamaForCausalLM, LlamaConfig, SIZES),
    "llama_tied": partial(_make, LlamaForCausalLM, LlamaConfig, {**SIZES, "tie_word_embeddings": True}),
    "qwen2": partial(_make, Qwen2ForCausalLM, Qwen2Config, SIZES),
    "gemma2": partial(
        _make,
        Gemma2ForCausalLM,
        Gemma2Config,
        {**SIZES, "head_dim": 64, "query_pre_attn_scalar": 64, "sliding_window": 8},
    ),
    "phi3": partial(_make, Phi3ForCausalLM, Phi3Config, SIZES),
    "olmo2": partial(_make, Olmo2ForCausalLM, Olmo2Config, {**SIZES, "tie_word_embeddings": True}),
    "gpt2": partial(_make, GPT2LMHeadModel, GPT2Config, GPT2),
}


def open_wide(family: str) -> OpenModel:
    """One of them, always with the same weights."""
    torch.manual_seed(0)
    model = MODELS[family]().requires_grad_(False)
    words = tiny_checkpoints.tokenizer()
    return OpenModel(Loaded(family, None, model, words, describe(model), fingerprint(model)))
