"""The keys and values that attention keeps of the tokens seen so far: how large they are."""

from __future__ import annotations

import gguf

from surgery.errors import InputError
from surgery.structure.structure import Structure

KV_TYPES = ("F16", "Q8_0", "Q4_0", "F32")
"""Types of a KV cache's elements."""
CELLS = 256
"""llama.cpp's caches hold a multiple of this many tokens."""


def check_kv_type(name: str) -> None:
    """Refuse what is not a type of a KV cache. Raises InputError, which lists the types."""
    if name not in KV_TYPES:
        raise InputError(f"There is no KV-cache type {name!r}: use one of {', '.join(KV_TYPES)}.")


def usable_kv_type(structure: Structure, kv_type: str) -> str:
    """The type, or F16 where a head is not whole blocks of it: llama.cpp refuses such a cache."""
    block, _ = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[kv_type]]
    sizes = {
        attention.head_size
        for spec in structure.blocks
        if (attention := structure.architecture.blocks[spec.source].attention) is not None and spec.attention
    }
    return kv_type if all(size % block == 0 for size in sizes) else "F16"


def kv_cache_bytes(structure: Structure, context: int, kv_type: str = "F16", batch: int = 0) -> int:
    """Bytes of the keys and values of a full context: none for a block without attention, at most its window's for a
    sliding one.

    Args:
        context: tokens. llama.cpp rounds them up to a multiple of 256.
        kv_type: of the elements, one whose blocks divide the heads' size.
        batch: tokens that llama.cpp puts through together: they stand beside those of a window, and one more, rounded
            up to a multiple of 256. 0 for a program that keeps the window alone.

    Raises:
        InputError: unknown type.
    """
    check_kv_type(kv_type)
    block, size = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[kv_type]]
    total = 0
    for spec in structure.blocks:
        attention = structure.architecture.blocks[spec.source].attention
        if attention is not None and spec.attention:
            tokens = min(context, _cells(attention.window, batch)) if attention.window else context
            total += 2 * len(spec.kv_heads) * attention.head_size * tokens * size // block
    return total


def _cells(window: int, batch: int) -> int:
    """Tokens that a sliding attention keeps."""
    return -(-(window + batch + 1) // CELLS) * CELLS if batch else window
