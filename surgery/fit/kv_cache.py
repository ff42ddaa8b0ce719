"""The keys and values that attention keeps of the tokens seen so far: how large they are."""

from __future__ import annotations

import gguf

from surgery.errors import InputError
from surgery.fit.weights import mixed_in_gguf
from surgery.gguf.families import FAMILIES
from surgery.gguf.layout import needs_attention
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
        context: tokens.
        kv_type: of the elements, one whose blocks divide the heads' size.
        batch: tokens that llama.cpp puts through together. It rounds tokens up to a multiple of 256, keeps the windows
            of some families only and a batch beside them, and caches the attentions of zeros that some of its graphs
            need. 0 for a program that keeps the window alone.

    Raises:
        InputError: unknown type.
    """
    check_kv_type(kv_type)
    block, size = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[kv_type]]
    source = structure.architecture
    family = FAMILIES.get(source.family)
    mixed = mixed_in_gguf(structure) if batch else ""
    whole = _padded(context) if batch else context
    total = 0
    for position, spec in enumerate(structure.kept):
        attention = source.blocks[spec.source].attention
        if attention is None:
            continue
        zeros = 1 if mixed and needs_attention(mixed, position) else 0
        heads = len(spec.kv_heads) if spec.attention else zeros
        window = attention.window if not batch or (family is not None and family.slides) else None
        tokens = whole if window is None else min(whole, _padded(window + batch) if batch else window)
        total += 2 * heads * attention.head_size * tokens * size // block
    return total


def _padded(tokens: int) -> int:
    """Tokens that llama.cpp's caches hold for so many."""
    return -(-tokens // CELLS) * CELLS
