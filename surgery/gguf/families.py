"""What llama.cpp needs to know of each model family: its architecture there, and how far its graph goes.

Every entry was checked by running llama.cpp against transformers (tests/unit/gguf/test_llama_cpp.py). What a graph
fixes in code (the order of sliding blocks, scales, activations) is compared with the configuration and refused where it
differs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from surgery.errors import CorruptFile, UnsupportedArchitecture

Config = dict[str, Any]
SLIDING = "sliding_attention"
STANDARD_NAMES = {
    "hidden_size": "hidden_size",
    "blocks": "num_hidden_layers",
    "heads": "num_attention_heads",
    "width": "intermediate_size",
    "context": "max_position_embeddings",
    "epsilon": "rms_norm_eps",
    "activation": "hidden_act",
}
GPT2_NAMES = {
    "hidden_size": "n_embd",
    "blocks": "n_layer",
    "heads": "n_head",
    "width": "n_inner",
    "context": "n_positions",
    "epsilon": "layer_norm_epsilon",
    "activation": "activation_function",
}
ATTENTION_IN = frozenset({"attn_q", "attn_k", "attn_v"})
EVERY_BIAS = ATTENTION_IN | {"attn_output", "ffn_gate", "ffn_up", "ffn_down"}
BIAS_MODULES = {
    "q_proj": "attn_q",
    "k_proj": "attn_k",
    "v_proj": "attn_v",
    "qkv_proj": "attn_qkv",
    "c_attn": "attn_qkv",
    "o_proj": "attn_output",
    "gate_proj": "ffn_gate",
    "up_proj": "ffn_up",
    "gate_up_proj": "ffn_up",
    "down_proj": "ffn_down",
}


def needed(config: Config, key: str) -> Any:
    """A field that must be there. Raises CorruptFile where it is not."""
    value = config.get(key)
    if value is None:
        raise CorruptFile(f"config.json does not say {key}: take the configuration of the original checkpoint.")
    return value


@dataclass(frozen=True)
class Family:
    """One model type of transformers, as llama.cpp sees it."""

    architecture: str
    """Name of the llama.cpp architecture, which is also the one of its `gguf` tensor names."""
    norms: tuple[str, ...] = ("attn_norm", "ffn_norm")
    """Norms of each block, by GGUF role."""
    biases: frozenset[str] = frozenset()
    """Roles whose bias llama.cpp loads."""
    activation: str = "silu"
    interleaved: bool = False
    """Whether llama.cpp rotates neighbouring rows, so that the rows of Q and K have to be permuted."""
    gain_offset: float = 0.0
    """What the stored norm gains lack (Gemma stores gain - 1)."""
    head_size: int | None = None
    """The class's own default where the configuration does not say `head_dim`; None is hidden size over heads."""
    square: bool = False
    """Whether llama.cpp wants heads x head size = hidden size."""
    wide_norms: bool = False
    """Whether the norms on queries and keys run over all heads together."""
    fused: bool = False
    """Whether Q, K and V are one tensor (and, in Phi-3, gate and up)."""
    gated: bool = True
    own_head: bool = False
    """Whether llama.cpp wants the head's tensor even when it is tied."""
    tied: bool = False
    """The class's default of `tie_word_embeddings`."""
    transposed: bool = False
    """Whether linears are stored input first (Conv1D)."""
    slides: bool = False
    """Whether llama.cpp computes, and keeps, a sliding window of this family."""
    rotary: frozenset[str] = frozenset({"default", "linear", "yarn"})
    """Kinds of rotary scaling that llama.cpp computes as transformers does; empty without rotary embeddings."""
    mixed: Literal["deci", "openelm"] = "deci"
    """The architecture that reads widths and head counts block by block and computes the same; see `no_mixed`."""
    no_mixed: str = ""
    """Why blocks that differ cannot be expressed; empty where `mixed` computes the same."""
    names: Mapping[str, str] = field(default_factory=lambda: STANDARD_NAMES)
    details: Callable[[Config, Any], None] = lambda config, writer: None
    """Writes the keys of this family alone."""
    conditions: Callable[[Config, int, int, int, int], None] = lambda *sizes: None
    """Refuses what the graph fixes otherwise; gets configuration, head size, blocks, hidden size, query heads."""

    def check(self, config: Config, head_size: int, blocks: int, hidden: int, heads: int) -> None:
        """Raise UnsupportedArchitecture where llama.cpp's graph computes something else than the configuration says."""
        activation = config.get(self.names["activation"]) or self.activation
        legacy = self.architecture == "gemma" and activation == "gelu"  # transformers reads it as the tanh form too
        if activation != self.activation and not legacy:
            raise UnsupportedArchitecture(
                f"llama.cpp computes {self.architecture} with the activation {self.activation!r} and the checkpoint "
                f"has {activation!r}: use it with transformers."
            )
        self.conditions(config, head_size, blocks, hidden, heads)

    def context(self, config: Config) -> tuple[int, tuple[str, ...]]:
        """Tokens of context for which llama.cpp computes what transformers does, and a note where that is less."""
        context, window = int(needed(config, self.names["context"])), _window(config)
        if self.slides or window is None or window >= context:
            return context, ()
        return window, (
            f"llama.cpp has no sliding window here, so the context length is the window's {window} tokens.",
        )

    def rotary_size(self, config: Config, head_size: int) -> int:
        """Positions of a head that are rotated."""
        rope = config.get("rope_parameters") or {}
        share = config.get("partial_rotary_factor") or rope.get("partial_rotary_factor") or 1.0
        return int(head_size * float(share))

    def bias_role(self, name: str) -> str | None:
        """GGUF role of a bias that belongs to a linear of a block, by the checkpoint's tensor name; else None."""
        module, _, kind = name.rpartition(".")
        return BIAS_MODULES.get(module.rpartition(".")[2]) if kind == "bias" else None


def _window(config: Config) -> int | None:
    """The sliding window, if any block has one."""
    window, types = config.get("sliding_window"), config.get("layer_types")
    if not window or config.get("use_sliding_window") is False or (types and SLIDING not in types):
        return None
    return int(window)


def sliding_period(types: list[str]) -> int | None:
    """llama.cpp's period p (every p-th block is full, the others slide), or None if no period says that."""
    for period in range(1, len(types) + 2):
        if all((kind == SLIDING) == (index % period < period - 1) for index, kind in enumerate(types)):
            return period
    return None


def _gemma_types(config: Config, period: int) -> list[str]:
    """Whether each block slides, as transformers says it."""
    blocks = range(int(needed(config, "num_hidden_layers")))
    return list(config.get("layer_types") or [SLIDING if (i + 1) % period else "full_attention" for i in blocks])


def _add_sliding(writer: Any, window: int, types: list[str]) -> None:
    """The window and which blocks have it: by a period where one says it, else block by block."""
    writer.add_sliding_window(window)
    period = sliding_period(types)
    writer.add_sliding_window_pattern([kind == SLIDING for kind in types] if period is None else period)


def _gemma_scale(config: Config, head_size: int, blocks: int, hidden: int, heads: int, large: int) -> None:
    """llama.cpp scales by 1 / sqrt(head size), but by hidden size / heads at the block count of the 27B model."""
    scaled = float(needed(config, "query_pre_attn_scalar"))
    if scaled != (hidden // heads if blocks == large else head_size):
        raise UnsupportedArchitecture(
            f"llama.cpp scales the attention of a Gemma with {blocks} blocks otherwise than query_pre_attn_scalar = "
            f"{scaled:g}: keep the original number of blocks, or use the checkpoint with transformers."
        )


def _gemma2_conditions(config: Config, head_size: int, blocks: int, hidden: int, heads: int) -> None:
    _gemma_scale(config, head_size, blocks, hidden, heads, 46)


def _gemma2_details(config: Config, writer: Any) -> None:
    writer.add_attn_logit_softcapping(float(needed(config, "attn_logit_softcapping")))
    writer.add_final_logit_softcapping(float(needed(config, "final_logit_softcapping")))
    types, window = _gemma_types(config, 2), int(needed(config, "sliding_window"))
    if SLIDING not in types:  # llama.cpp runs no Gemma 2 without a sliding block; one as wide as the context is full
        types, window = [SLIDING] * len(types), int(needed(config, STANDARD_NAMES["context"]))
    _add_sliding(writer, window, types)


def _gemma3_conditions(config: Config, head_size: int, blocks: int, hidden: int, heads: int) -> None:
    if config.get("attn_logit_softcapping") or config.get("use_bidirectional_attention"):
        raise UnsupportedArchitecture(
            "llama.cpp has no soft cap on Gemma 3's attention and no bidirectional one: use the checkpoint with "
            "transformers."
        )
    _gemma_scale(config, head_size, blocks, hidden, heads, 62)


def _gemma3_details(config: Config, writer: Any) -> None:
    if config.get("final_logit_softcapping"):
        writer.add_final_logit_softcapping(float(config["final_logit_softcapping"]))
    types = _gemma_types(config, int(config.get("sliding_window_pattern") or 6))
    if SLIDING not in types:  # without the key llama.cpp knows no window, and with it wants one that has it
        return
    _add_sliding(writer, int(needed(config, "sliding_window")), types)
    local = (config.get("rope_parameters") or {}).get(SLIDING) or {"rope_theta": config.get("rope_local_base_freq")}
    writer.add_rope_freq_base_swa(float(needed(local, "rope_theta")))


def _granite_details(config: Config, writer: Any) -> None:
    writer.add_embedding_scale(float(needed(config, "embedding_multiplier")))
    writer.add_residual_scale(float(needed(config, "residual_multiplier")))
    writer.add_attention_scale(float(needed(config, "attention_multiplier")))
    writer.add_logit_scale(float(needed(config, "logits_scaling")))


def _smollm3_conditions(config: Config, head_size: int, blocks: int, hidden: int, heads: int) -> None:
    """llama.cpp rotates no Q and K in every fourth block, whatever the file says."""
    rotated = config.get("no_rope_layers") or [int((index + 1) % 4 != 0) for index in range(blocks)]
    if [bool(value) for value in rotated] != [(index + 1) % 4 != 0 for index in range(blocks)]:
        raise UnsupportedArchitecture(
            "llama.cpp expects SmolLM3 to have no rotary embeddings in every fourth block, which no longer holds: "
            "remove blocks in whole groups of four, or use the checkpoint with transformers."
        )


POST_NORMS = "its post norms have no place in the `deci` graph"
_GEMMA: dict[str, Any] = {
    "activation": "gelu_pytorch_tanh",
    "gain_offset": 1.0,
    "head_size": 256,
    "tied": True,
    "rotary": frozenset({"default", "linear"}),
}
_SANDWICH = ("attn_norm", "post_attention_norm", "ffn_norm", "post_ffw_norm")

FAMILIES: dict[str, Family] = {
    "llama": Family(
        "llama", biases=EVERY_BIAS, interleaved=True, rotary=frozenset({"default", "linear", "yarn", "llama3"})
    ),
    "mistral": Family("llama", biases=EVERY_BIAS, interleaved=True),
    "qwen2": Family("qwen2", biases=ATTENTION_IN, square=True),
    "qwen3": Family("qwen3", norms=("attn_norm", "attn_q_norm", "attn_k_norm", "ffn_norm"), head_size=128,
                    mixed="openelm"),
    "gemma": Family("gemma", no_mixed="its scaled embeddings and GeGLU are not those of the `deci` graph", **_GEMMA),
    "gemma2": Family("gemma2", norms=_SANDWICH, no_mixed=POST_NORMS, conditions=_gemma2_conditions,
                     slides=True, details=_gemma2_details, **_GEMMA),
    "gemma3_text": Family("gemma3", norms=(*_SANDWICH, "attn_q_norm", "attn_k_norm"), no_mixed=POST_NORMS,
                          conditions=_gemma3_conditions, details=_gemma3_details, slides=True, **_GEMMA),
    "phi3": Family("phi3", square=True, fused=True, rotary=frozenset({"default"}),
                   no_mixed="its fused projections are not those of the `deci` graph"),
    "olmo2": Family("olmo2", norms=("attn_q_norm", "attn_k_norm", "post_attention_norm", "post_ffw_norm"), square=True,
                    wide_norms=True, own_head=True, no_mixed=POST_NORMS),
    "granite": Family("granite", biases=EVERY_BIAS, interleaved=True, details=_granite_details,
                      no_mixed="its multipliers have no place in the `deci` graph"),
    "smollm3": Family("smollm3", biases=ATTENTION_IN, interleaved=True, tied=True, conditions=_smollm3_conditions,
                      no_mixed="its blocks without rotary embeddings have no place in the `deci` graph"),
    "gpt2": Family("gpt2", biases=frozenset({"attn_qkv", "attn_output", "ffn_up", "ffn_down"}), activation="gelu_new",
                   square=True, fused=True, gated=False, tied=True, transposed=True, rotary=frozenset(),
                   names=GPT2_NAMES, no_mixed="its LayerNorms and plain MLPs are not those of the `deci` graph"),
}  # fmt: skip

REFUSED = {
    "opt": "llama.cpp has no architecture for this family",
    "gpt_neox": "GGUF export does not express parallel blocks",
    "phi": "GGUF export does not express parallel blocks",
}
"""Families that analysis and surgery know and the export does not, each with its reason."""
