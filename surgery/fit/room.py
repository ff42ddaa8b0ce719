"""How much of a model a device has room for, and what size of model would fit it: arithmetic, told honestly."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from functools import cache
from typing import Any

from surgery.fit.devices import Device
from surgery.fit.fit import Fit, fit
from surgery.formats.format import WeightType
from surgery.structure.structure import Structure, dense

TYPES_TOLD = ("F16", "Q8_0", "Q6_K", "Q5_K_M", "Q4_K_M", "Q4_0", "Q3_K_M", "Q2_K")
"""Types for which it is told how much fits."""
FOUR_BITS = "Q4_0"
WIDTHS = (32, 64, 96, 128, 192, 256, 320, 384, 448, 512, 576, 640, 768, 896, 1024, 1280, 1536, 2048, 2560, 3072, 4096)
"""Hidden sizes of the shapes that are tried."""
HEAD_SIZE = 32
"""Of the shapes that are tried; 64 from a hidden size of 512 on."""
VOCABULARY_PER_CHANNEL = 64
"""A small model has a small vocabulary, or its embeddings are all that it has."""


@dataclass(frozen=True)
class Share:
    """What fits in one type: the share of the model's weights (1 or more: all), and how many parameters would have to
    go (0 if all fits)."""

    type: str
    weights_bytes: int
    share: float
    parameters_to_go: int


@dataclass(frozen=True)
class Shape:
    """A model that fits: a Llama with tied embeddings and 3 query heads a key/value head where they divide so."""

    parameters: int
    hidden_size: int
    blocks: int
    heads: int
    kv_heads: int
    width: int
    vocabulary: int
    type: str
    needed_bytes: int


@dataclass(frozen=True)
class Room:
    """What a device has room for."""

    device: str
    context: int
    kv_type: str
    room_bytes: int
    """For weights, beside the KV cache, the activations and the program; negative when these alone do not fit."""
    missing_bytes: int
    """Of the wanted type; 0 when it fits."""
    shares: tuple[Share, ...]
    store_share: float
    """Share of the weights at 4 bits that all memory would hold if nothing else were in it."""
    shape: Shape | None
    """The largest of the tried shapes that fits at 4 bits; None where not even the smallest does, or the model does."""

    def document(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self) | {"words": self.words()}

    def words(self) -> str:
        """One paragraph for a person."""
        best = max(self.shares, key=lambda share: share.share)
        if not self.missing_bytes:
            return "It fits."
        if self.room_bytes <= 0:
            words = (
                f"With {self.context:,} tokens of context, the KV cache, the activations and the program need "
                f"{-self.room_bytes:,} bytes more than the device has for them. If it kept nothing but weights, "
                f"{_percent(self.store_share)} of them would fit at 4 bits ({FOUR_BITS})."
            )
        elif best.share >= 1:
            fitting = next(share for share in self.shares if share.share >= 1)
            words = f"{self.missing_bytes:,} bytes are missing; all of it fits from {fitting.type} on."
        else:
            four = next(share for share in self.shares if share.type == FOUR_BITS)
            words = (
                f"{self.missing_bytes:,} bytes are missing. At 4 bits ({FOUR_BITS}) {_percent(four.share)} of the "
                f"weights fit, and {four.parameters_to_go:,} parameters would have to go; in {best.type}, the smallest "
                f"type here, {_percent(best.share)}."
            )
        if best.share >= 1:
            return words
        if self.shape is None:
            return f"{words} Not even a model of {WIDTHS[0]} channels would fit."
        shape = self.shape
        return (
            f"{words} What would fit at 4 bits is a model of about {shape.parameters:,} parameters, for example "
            f"{shape.blocks} blocks with a hidden size of {shape.hidden_size}, {shape.heads} heads, MLPs of "
            f"{shape.width} and a vocabulary of {shape.vocabulary:,}, trained for that."
        )


def _percent(share: float) -> str:
    return f"{100 * share:.0f}%" if share >= 0.1 else f"{100 * share:.2g}%"


def room_on(
    structure: Structure, device: Device, context: int, wanted: str | WeightType = "F16", kv_type: str = "F16"
) -> Room:
    """What the device has room for, where a weight type is asked about.

    Raises InputError: an unknown type, or no context.
    """
    asked = fit(structure, device, context, wanted, kv_type)
    found = {name: fit(structure, device, context, name, kv_type) for name in TYPES_TOLD}
    shares = tuple(_share(structure, each) for each in found.values())
    some = any(share.share >= 1 for share in shares)
    return Room(
        device=device.id,
        context=context,
        kv_type=asked.kv_type,
        room_bytes=asked.room_bytes,
        missing_bytes=max(0, -asked.spare_bytes),
        shares=shares,
        store_share=device.capacity_bytes / found[FOUR_BITS].weights_bytes,
        shape=None if some else largest_shape(device, context, kv_type, structure.architecture.vocabulary_size),
    )


def _share(structure: Structure, found: Fit) -> Share:
    share = max(0, found.room_bytes) / found.weights_bytes
    to_go = 0 if found.fits else round(structure.parameters * (1 - min(share, 1.0)))
    return Share(found.type, found.weights_bytes, share, to_go)


def largest_shape(device: Device, context: int, kv_type: str, most_vocabulary: int) -> Shape | None:
    """The largest of the tried shapes that fits the device at 4 bits."""
    best = None
    for hidden in WIDTHS:
        vocabulary = min(most_vocabulary, VOCABULARY_PER_CHANNEL * hidden)
        structure = plausible(hidden, vocabulary)
        found = fit(structure, device, context, FOUR_BITS, kv_type)
        if not found.fits:
            break
        block = structure.blocks[0]
        best = Shape(
            parameters=structure.parameters,
            hidden_size=hidden,
            blocks=len(structure.blocks),
            heads=len(block.query_heads),
            kv_heads=len(block.kv_heads),
            width=len(block.neurons),
            vocabulary=vocabulary,
            type=FOUR_BITS,
            needed_bytes=found.needed_bytes,
        )
    return best


@cache
def plausible(hidden: int, vocabulary: int) -> Structure:
    """A Llama of that hidden size, without values: small models of today have an MLP of 8/3 the hidden size and many
    thin blocks."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from analysis.model.describe import describe

    size = min(hidden, 2 * HEAD_SIZE if hidden >= 512 else HEAD_SIZE)
    heads = hidden // size
    config = LlamaConfig(
        hidden_size=hidden,
        vocab_size=vocabulary,
        intermediate_size=max(32, hidden * 8 // 3 // 32 * 32),
        num_hidden_layers=max(4, min(32, hidden // 20)),
        num_attention_heads=heads,
        num_key_value_heads=heads // 3 if heads % 3 == 0 else heads,
        tie_word_embeddings=True,
        pad_token_id=None,
        bos_token_id=None,
        eos_token_id=None,
    )
    with torch.device("meta"):
        model = LlamaForCausalLM(config)
    return dense(describe(model))
