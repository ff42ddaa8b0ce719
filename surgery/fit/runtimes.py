"""The programs that run a model, and the memory they need besides weights and KV cache.

Everything here is checked against measurement by `benchmarks.fit`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from surgery.fit.devices import Device
from surgery.formats.format import WeightType
from surgery.structure.structure import Structure

MIB = 2**20
Name = Literal["llama.cpp", "transformers", "microcontroller"]
GPUS = ("GPU", "edge GPU")
RESIDUAL_COPIES = 4
"""States as wide as the residual stream that live together inside an MLP: the stream, its norm, the sublayer's result,
and one that the planner of llama.cpp's graph leaves in a gap."""
ATTENTION_COPIES = 3
"""The same inside an attention: the stream, its norm, the result."""
DOT_BYTES = {"F32": 0.0, "F16": 2.0, "K": 292 / 256, "other": 34 / 32}
"""Bytes a value of the copy of a layer's input that llama.cpp makes for its dot products, by the weights' type: none,
F16, Q8_K, Q8_0."""


@dataclass(frozen=True)
class Runtime:
    """A program that runs models.

    `batch` tokens of a prompt go through together (None: all of them). `base_bytes` is what the program itself takes
    on a device without a GPU, and `token_bytes` what its tokenizer takes for each token of the vocabulary.
    """

    name: Name
    batch: int | None
    base_bytes: int
    token_bytes: int
    gpu_bytes: int = 0
    """What a GPU's driver takes beside that."""

    def overhead_bytes(self, structure: Structure, device: Device) -> int:
        """Estimate of the program, its tokenizer and a GPU's context."""
        vocabulary = structure.architecture.vocabulary_size
        return self.base_bytes + self.token_bytes * vocabulary + (self.gpu_bytes if device.kind in GPUS else 0)

    def together(self, context: int) -> int:
        """Tokens that go through together while a prompt fills the context."""
        return context if self.batch is None else min(context, self.batch)


LLAMA_CPP = Runtime("llama.cpp", 512, 16 * MIB, 400, 240 * MIB)
"""Measured on Linux: libraries 7 MB, graphs and scheduler 8.5 MB, 390 bytes a token of a BPE vocabulary with merges."""
TRANSFORMERS = Runtime("transformers", None, 340 * MIB, 500, 240 * MIB)
"""Measured on Linux: Python, torch and transformers 360 MB, and the tokenizer."""
MICROCONTROLLER = Runtime("microcontroller", 1, 64 * 2**10, 0)
"""A loop of one's own without an operating system, the tokenizer in the store of weights."""


def runtime_for(kind: WeightType, device: Device) -> Runtime:
    """The program that runs such a file on such a device."""
    if device.kind == "microcontroller":
        return MICROCONTROLLER
    return LLAMA_CPP if kind.format.runtime == LLAMA_CPP.name else TRANSFORMERS


def activation_bytes(structure: Structure, runtime: Runtime, kind: WeightType, context: int, gpu: bool = False) -> int:
    """Estimate of the peak while a prompt fills the context, float32.

    The larger of two phases of a block, for the tokens that go through together: the attention (queries and their
    rotated copies, keys and values and theirs, `ATTENTION_COPIES` of the residual stream) and the MLP (gate, up and
    their product, or up alone, and `RESIDUAL_COPIES`); then the attention mask (F16 over the context), a row of logits
    and its copy, and the copy of a layer's input for dot products. llama.cpp with flash attention, its default where it
    can: scores are never kept (without it they take heads x batch x context more).

    On a GPU a row of logits is held for every token of the batch. llama.cpp reserves them, beside two states as wide as
    the residual stream, in the place of the blocks' peak where that is smaller, since one follows the other, and logs
    it all as its compute and output buffers; in a process's memory it touches the rows that are asked for.

    Args:
        context: tokens, all of them in use.
        gpu: whether it runs on one.
    """
    source = structure.architecture
    tokens, hidden = runtime.together(context), source.hidden_size
    widest = inputs = 0
    for spec in structure.blocks:
        block = source.blocks[spec.source]
        if block.attention is not None and spec.attention:
            query, keys = (len(heads) * block.attention.head_size for heads in (spec.query_heads, spec.kv_heads))
            widest = max(widest, 2 * query + 2 * keys + ATTENTION_COPIES * hidden)
            inputs = max(inputs, query, hidden)
        if block.mlp is not None and spec.mlp:
            width = len(spec.neurons)
            widest = max(widest, (3 if block.mlp.gated else 1) * width + RESIDUAL_COPIES * hidden)
            inputs = max(inputs, width, hidden)
    mask = 2 * tokens * context if tokens > 1 else 0
    copies = DOT_BYTES[_dot(kind)] * inputs * tokens if runtime is LLAMA_CPP else 0
    blocks = 4 * tokens * widest + mask + copies
    row = 4 * source.vocabulary_size
    if gpu and runtime is LLAMA_CPP:
        return int(max(blocks, tokens * (row + 8 * hidden)) + row)
    return int(blocks + row * ((tokens if gpu else 1) + 1))


def _dot(kind: WeightType) -> str:
    if kind.type in DOT_BYTES:
        return kind.type
    return "K" if "K" in kind.type or kind.type.startswith(("IQ3", "IQ4_XS")) else "other"
