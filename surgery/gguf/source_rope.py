"""Rotary embeddings from a GGUF file's keys and its tensor of frequency factors."""

from __future__ import annotations

from typing import Any

import numpy as np

from surgery.errors import UnsupportedArchitecture
from surgery.gguf.families import Family
from surgery.gguf.keys import Keys
from surgery.gguf.rope import DECI_KINDS, llama3_factors

FACTORS = "rope_freqs.weight"
LOW, HIGH = 1.0, 4.0
"""`low_freq_factor` and `high_freq_factor` of every Llama 3. Only their ratios to the original context count."""
TOLERANCE = 1e-6


def read_rope(keys: Keys, family: Family, context: int, head_size: int) -> dict[str, Any]:
    """The rotary parameters as transformers 5 writes them, of the full-attention blocks where blocks differ.

    Raises:
        UnsupportedArchitecture: a scaling that transformers computes otherwise, or not for this family.
        CorruptFile: a key is absent or no number.
    """
    found: dict[str, Any] = {"rope_type": "default", "rope_theta": keys.number("rope.freq_base", 10000.0)}
    size = keys.whole("rope.dimension_count", head_size)
    if size != head_size:
        found["partial_rotary_factor"] = size / head_size
    found |= _scaling(keys, context)
    kind = found["rope_type"]
    factors = keys.file.tensors.get(FACTORS)
    if factors is not None and kind == "default" and "llama3" in (DECI_KINDS if keys.deci else family.rotary):
        return found | _from_factors(factors.values(), found["rope_theta"], context, head_size)
    if factors is not None or kind not in (DECI_KINDS if keys.deci else family.rotary):
        what = f"the tensor {FACTORS}" if factors is not None else f"rotary scaling of the type {kind[:40]!r}"
        raise UnsupportedArchitecture(
            f"{keys.file.name} has {what}, which is not understood for {keys.architecture} with these settings: give "
            "the original checkpoint."
        )
    return found


def _scaling(keys: Keys, context: int) -> dict[str, Any]:
    """The scaling that the keys say; what llama.cpp takes where one is absent is the default here."""
    kind = keys.text("rope.scaling.type", "linear")
    factor = keys.number("rope.scaling.factor", keys.number("rope.scale_linear", 0.0)) or 1.0
    original = keys.whole("rope.scaling.original_context_length", context)
    for name, neutral in (
        ("rope.scaling.attn_factor", 1.0),
        ("rope.scaling.yarn_attn_factor", 1.0),
        ("rope.scaling.yarn_ext_factor", 1.0),
        ("rope.scaling.yarn_beta_fast", 32.0),
        ("rope.scaling.yarn_beta_slow", 1.0),
    ):
        keys.only(name, neutral)
    if kind == "none" or (kind == "linear" and factor == 1.0):
        return {}
    if kind == "yarn":
        return {"rope_type": kind, "factor": factor, "original_max_position_embeddings": original}
    return {"rope_type": kind, "factor": factor}


def _from_factors(factors: np.ndarray, theta: float, context: int, head_size: int) -> dict[str, Any]:
    """Llama 3's scaling where one gives exactly these factors, else the factors themselves as transformers takes them.

    Two positions fix it: the largest factor, and the context at which the factors begin to rise.
    """
    largest = float(factors.max(initial=1.0))
    if (factors == 1.0).all():
        return {}
    per_token = theta ** (-np.arange(0, head_size, 2) / head_size) / (2 * np.pi)  # turns a token
    with np.errstate(divide="ignore", invalid="ignore"):
        smooth = (1.0 / factors - 1.0 / largest) / (1.0 - 1.0 / largest)
    rising = per_token[(smooth > TOLERANCE) & (smooth < 1 - TOLERANCE)]
    shares = smooth[(smooth > TOLERANCE) & (smooth < 1 - TOLERANCE)]
    if rising.size:
        candidates = [round(float(np.median((LOW + (HIGH - LOW) * shares) / rising)))]
    else:
        candidates = [2**power for power in range(6, 24)]
    for original in candidates:
        setting = {"factor": largest, "low_freq_factor": LOW, "high_freq_factor": HIGH}
        rope = {"rope_theta": theta, "original_max_position_embeddings": original, **setting}
        if factors.shape == per_token.shape and np.allclose(factors, llama3_factors(rope, head_size), TOLERANCE, 0):
            return {"rope_type": "llama3", "original_max_position_embeddings": original, **setting}
    if factors.shape != per_token.shape or not (np.isfinite(factors) & (factors > 0)).all():
        raise UnsupportedArchitecture(f"{FACTORS} does not hold a factor for each rotary frequency: get the file anew.")
    listed = [float(value) for value in factors]
    return {
        "rope_type": "longrope",
        "short_factor": listed,
        "long_factor": listed,
        "factor": 1.0,
        "attention_factor": 1.0,
        "original_max_position_embeddings": context,
    }
