"""Rotary embeddings in GGUF: base, size and scaling, and the frequency factors that some scalings keep as a tensor."""

from __future__ import annotations

import math
from typing import Any

import gguf
import numpy as np

from surgery.errors import UnsupportedArchitecture
from surgery.gguf.families import needed
from surgery.gguf.layout import Layout

DECI_KINDS = frozenset({"default", "linear", "yarn", "llama3"})


def rope_parameters(config: dict[str, Any]) -> dict[str, Any]:
    """The rotary parameters of the full-attention blocks, in the one form of transformers 5.

    Older checkpoints keep the base in `rope_theta` and the scaling in `rope_scaling`, with its kind under `type`.
    """
    given = config.get("rope_parameters") or config.get("rope_scaling") or {}
    given = dict(given.get("full_attention") or given)
    given.setdefault("rope_theta", config.get("rope_theta") or 10000.0)
    given["rope_type"] = given.get("rope_type") or given.get("type") or "default"
    return given


def add_rope(writer: gguf.GGUFWriter, layout: Layout, config: dict[str, Any]) -> None:
    """Write the rotary keys.

    Raises:
        UnsupportedArchitecture: llama.cpp does not compute this scaling, or computes it otherwise.
    """
    if not layout.family.rotary:
        return
    rope = rope_parameters(config)
    kind = rope["rope_type"]
    if kind not in (DECI_KINDS if layout.mixed == "deci" else layout.family.rotary):
        raise UnsupportedArchitecture(
            f"GGUF export does not express rotary scaling of the type {str(kind)[:40]!r} for "
            f"{layout.architecture}: use the checkpoint with transformers."
        )
    writer.add_rope_dimension_count(layout.family.rotary_size(config, layout.head_size))
    writer.add_rope_freq_base(float(rope["rope_theta"]))
    if kind in ("linear", "yarn"):
        writer.add_rope_scaling_type(gguf.RopeScalingType(kind))
        writer.add_rope_scaling_factor(float(needed(rope, "factor")))
    if kind == "yarn":
        _add_yarn(writer, rope)


def _add_yarn(writer: gguf.GGUFWriter, rope: dict[str, Any]) -> None:
    """llama.cpp derives the attention factor 0.1 ln(factor) + 1 itself, and takes the usual bounds whatever the file
    says; others are refused."""
    factor = float(rope["factor"])
    attention = rope.get("attention_factor")
    usual = 0.1 * math.log(factor) + 1 if factor > 1 else 1.0
    if (
        rope.get("mscale")
        or rope.get("truncate") is False
        or float(rope.get("beta_fast") or 32.0) != 32.0
        or float(rope.get("beta_slow") or 1.0) != 1.0
        or (attention is not None and not math.isclose(attention, usual, rel_tol=1e-4))
    ):
        raise UnsupportedArchitecture(
            "GGUF export does not express YaRN with an attention factor, mscale, bounds or truncation of its own: use "
            "the checkpoint with transformers."
        )
    writer.add_rope_scaling_orig_ctx_len(int(needed(rope, "original_max_position_embeddings")))
    writer.add_rope_scaling_yarn_beta_fast(float(rope.get("beta_fast") or 32.0))
    writer.add_rope_scaling_yarn_beta_slow(float(rope.get("beta_slow") or 1.0))


def frequency_factors(layout: Layout, config: dict[str, Any]) -> np.ndarray | None:
    """What llama.cpp divides each rotary frequency by, float32 of shape (head size / 2,); None for no such tensor.

    Only Llama 3's scaling needs it: wavelengths above original context / low_freq_factor are stretched by `factor`,
    those below original context / high_freq_factor stay, and the ones between are interpolated (Llama 3.1).
    """
    rope = rope_parameters(config)
    if rope["rope_type"] != "llama3" or not layout.family.rotary:
        return None
    return llama3_factors(rope, layout.head_size)


def llama3_factors(rope: dict[str, Any], head_size: int) -> np.ndarray:
    """The factors of Llama 3's scaling, float32 of shape (head size / 2,); see `frequency_factors`."""
    factor, low, high = (float(needed(rope, key)) for key in ("factor", "low_freq_factor", "high_freq_factor"))
    original = float(needed(rope, "original_max_position_embeddings"))
    half = np.arange(0, head_size, 2, dtype=np.float64) / head_size
    wavelength = 2 * np.pi * float(rope["rope_theta"]) ** half
    smooth = np.clip((original / wavelength - low) / (high - low), 0.0, 1.0)
    return (1.0 / ((1.0 - smooth) / factor + smooth)).astype(np.float32)
