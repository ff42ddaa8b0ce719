"""Tiny random causal language models, one per supported family.

Every model is built from its own configuration class, so nothing is downloaded.
All have four blocks, a vocabulary of 128 and 128 positions.  Weights are drawn with a
standard deviation of 0.2, and biases and norm gains are perturbed, so that forgetting
any one of them visibly changes the logits.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GemmaConfig,
    GemmaForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    GraniteConfig,
    GraniteForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Olmo2Config,
    Olmo2ForCausalLM,
    OPTConfig,
    OPTForCausalLM,
    Phi3Config,
    Phi3ForCausalLM,
    PhiConfig,
    PhiForCausalLM,
    PreTrainedConfig,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
    SmolLM3Config,
    SmolLM3ForCausalLM,
)

Builder = Callable[[], PreTrainedModel]

VOCAB = 128
SEQ_LEN = 24  # length the tests use; longer than every sliding window below
WINDOW = 8
STD = 0.2
SLIDING, FULL = "sliding_attention", "full_attention"

# No special tokens: no zeroed padding row, and generation never ends early.
_TOKENS: dict[str, Any] = {
    "vocab_size": VOCAB,
    "pad_token_id": None,
    "bos_token_id": None,
    "eos_token_id": None,
}
_MHA: dict[str, Any] = {  # head_dim 8 unless a family sets it
    **_TOKENS,
    "hidden_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 6,
    "max_position_embeddings": 128,
}
_GQA: dict[str, Any] = {**_MHA, "num_key_value_heads": 2, "intermediate_size": 80}


def _randomise(model: PreTrainedModel) -> PreTrainedModel:
    """Redraw matrices with std 0.2, perturb vectors, and return the model in eval."""
    with torch.no_grad():
        for parameter in model.parameters():  # yields tied weights once
            if parameter.dim() > 1:
                parameter.normal_(std=STD)
            else:
                parameter.add_(torch.randn_like(parameter) * STD)
    return model.to(torch.float32).eval()


def _make(
    model_class: type[PreTrainedModel],
    config_class: type[PreTrainedConfig],
    base: dict[str, Any],
    **overrides: Any,
) -> PreTrainedModel:
    """Build and randomise one model from `base` updated with `overrides`."""
    return _randomise(model_class(config_class(**{**base, **overrides})))


_llama = partial(_make, LlamaForCausalLM, LlamaConfig, _GQA)
_neox = partial(_make, GPTNeoXForCausalLM, GPTNeoXConfig, _MHA, intermediate_size=80)

# Each builder draws from torch's global generator; `build` seeds it first.
FAMILIES: dict[str, Builder] = {
    "llama": _llama,
    "llama_tied": partial(_llama, tie_word_embeddings=True),
    "llama_bias": partial(_llama, attention_bias=True, mlp_bias=True),
    "mistral": partial(_make, MistralForCausalLM, MistralConfig, _GQA, sliding_window=WINDOW),
    "qwen2": partial(_make, Qwen2ForCausalLM, Qwen2Config, _GQA),
    "qwen3": partial(_make, Qwen3ForCausalLM, Qwen3Config, _GQA, head_dim=16),
    "qwen2_mha": partial(_make, Qwen2ForCausalLM, Qwen2Config, _GQA, num_key_value_heads=6),
    "gemma": partial(_make, GemmaForCausalLM, GemmaConfig, _GQA, head_dim=16),
    "gemma2": partial(
        _make,
        Gemma2ForCausalLM,
        Gemma2Config,
        _GQA,
        head_dim=16,
        query_pre_attn_scalar=12,
        sliding_window=WINDOW,
        layer_types=[SLIDING, FULL, SLIDING, FULL],
        attn_logit_softcapping=3.0,
        final_logit_softcapping=4.0,
    ),
    "gemma3": partial(
        _make,
        Gemma3ForCausalLM,
        Gemma3TextConfig,
        _GQA,
        head_dim=16,
        query_pre_attn_scalar=12,
        sliding_window=WINDOW,
        layer_types=[SLIDING, SLIDING, FULL, SLIDING],
        rope_parameters={
            SLIDING: {"rope_type": "default", "rope_theta": 100.0},
            FULL: {"rope_type": "default", "rope_theta": 10000.0},
        },
    ),
    "phi3": partial(_make, Phi3ForCausalLM, Phi3Config, _GQA),
    "olmo2": partial(_make, Olmo2ForCausalLM, Olmo2Config, _GQA),
    "granite": partial(
        _make,
        GraniteForCausalLM,
        GraniteConfig,
        _GQA,
        embedding_multiplier=3.0,
        attention_multiplier=0.25,
        residual_multiplier=0.6,
        logits_scaling=2.0,
    ),
    "smollm": partial(
        _llama,
        hidden_size=72,
        num_attention_heads=9,
        num_key_value_heads=3,
        tie_word_embeddings=True,
    ),
    "smollm3": partial(
        _make,
        SmolLM3ForCausalLM,
        SmolLM3Config,
        _GQA,
        no_rope_layer_interval=2,  # rotary embeddings in blocks 0 and 2 only
    ),
    "gpt2": partial(
        _make,
        GPT2LMHeadModel,
        GPT2Config,
        _MHA,
        n_inner=80,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
    ),
    "opt": partial(_make, OPTForCausalLM, OPTConfig, _MHA, ffn_dim=80, dropout=0.0),
    "gpt_neox": partial(_neox, use_parallel_residual=True),
    "gpt_neox_sequential": partial(_neox, use_parallel_residual=False),
    "phi": partial(_make, PhiForCausalLM, PhiConfig, _MHA, intermediate_size=80),
}

PLAIN: tuple[str, ...] = ("gpt2", "opt", "gpt_neox", "gpt_neox_sequential", "phi")
GATED: tuple[str, ...] = tuple(name for name in FAMILIES if name not in PLAIN)
GROUPED: tuple[str, ...] = tuple(name for name in GATED if name != "qwen2_mha")


def build(family: str, seed: int = 0) -> PreTrainedModel:
    """Return the tiny model of `family` in float32 and eval mode, fixed by `seed`."""
    torch.manual_seed(seed)
    return FAMILIES[family]()


def activations() -> dict[str, Builder]:
    """Return one Llama builder per MLP activation; `linear` is the identity."""
    names = ("sigmoid", "silu", "gelu", "relu", "linear")
    return {name: partial(_llama, hidden_act=name) for name in names}
