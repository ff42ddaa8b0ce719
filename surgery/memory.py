"""The memory and speed model: arithmetic on a structure, a number type, a context length and a device."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from surgery.devices import Device
from surgery.errors import InputError
from surgery.structure import BlockSpec, Structure

TensorClass = Literal["embeddings", "attention", "mlp", "norms", "head"]
KV_BYTES = 2
"""Bytes of a KV-cache element (F16)."""
PREFILL_TOKENS = 512
"""Tokens that a runtime puts through together while it reads a prompt; 1 on a microcontroller."""
ACTIVATION_BYTES = 4
OVERHEAD_BYTES = {
    "microcontroller": 64 * 2**10,
    "single-board computer": 32 * 2**20,
    "phone": 64 * 2**20,
    "edge GPU": 256 * 2**20,
    "laptop": 64 * 2**20,
    "GPU": 256 * 2**20,
    "server": 64 * 2**20,
}
"""Estimates: code, tokenizer and allocator of a small runtime; a GPU's context."""


@dataclass(frozen=True)
class WeightType:
    """How weights are stored. `block` weights take `block_bytes`; vectors take `vector_bytes` each."""

    name: str
    block: int
    block_bytes: int
    vector_bytes: int

    def matrix_bytes(self, elements: int, row: int) -> int:
        """Bytes of a matrix with rows of `row` elements; rows that blocks do not divide stay in F16."""
        return elements * 2 if row % self.block else elements // self.block * self.block_bytes


TYPES = {
    kind.name: kind
    for kind in (
        WeightType("F32", 1, 4, 4),
        WeightType("F16", 1, 2, 2),
        WeightType("Q8_0", 32, 34, 4),
        WeightType("Q4_0", 32, 18, 4),
    )
}


@dataclass(frozen=True)
class Tensors:
    """Tensors of one class and one row length: matrix elements and vector elements."""

    kind: TensorClass
    row: int
    matrix: int
    vector: int


@dataclass(frozen=True)
class Fit:
    """Whether and how an edited model fits a device. Bytes and tokens per second; everything is arithmetic, the
    activations and the overhead are estimates."""

    device: str
    type: str
    context: int
    weights: dict[str, int]
    kv_cache_bytes: int
    activation_bytes: int
    overhead_bytes: int
    capacity_bytes: int
    working_bytes: int
    decode_tokens_per_second: float
    prefill_tokens_per_second: float

    @property
    def weights_bytes(self) -> int:
        """All weights."""
        return sum(self.weights.values())

    @property
    def needed_bytes(self) -> int:
        """Everything together."""
        return self.weights_bytes + self.kv_cache_bytes + self.activation_bytes + self.overhead_bytes

    @property
    def spare_bytes(self) -> int:
        """What is left, or missing when negative: of all memory, or of the working memory where that is tighter."""
        working = self.kv_cache_bytes + self.activation_bytes + self.overhead_bytes
        return min(self.capacity_bytes - self.needed_bytes, self.working_bytes - working)

    @property
    def fits(self) -> bool:
        """Whether nothing is missing."""
        return self.spare_bytes >= 0

    def document(self) -> dict[str, Any]:
        """The contract's JSON keys."""
        return {
            "device": self.device,
            "type": self.type,
            "context": self.context,
            "fits": self.fits,
            "weights_bytes": self.weights_bytes,
            "weights": self.weights,
            "kv_cache_bytes": self.kv_cache_bytes,
            "activation_bytes": self.activation_bytes,
            "overhead_bytes": self.overhead_bytes,
            "needed_bytes": self.needed_bytes,
            "capacity_bytes": self.capacity_bytes,
            "spare_bytes": self.spare_bytes,
            "decode_tokens_per_second": self.decode_tokens_per_second,
            "prefill_tokens_per_second": self.prefill_tokens_per_second,
        }


def weight_type(name: str) -> WeightType:
    """The weight type of that name.

    Raises:
        InputError: unknown; the message lists the names.
    """
    if name not in TYPES:
        raise InputError(f"There is no weight type {name!r}: use one of {', '.join(TYPES)}.")
    return TYPES[name]


def tensors(structure: Structure) -> list[Tensors]:
    """What a checkpoint of the structure holds, tied tensors once."""
    source = structure.architecture
    found = [Tensors("embeddings", source.hidden_size, source.embedding_parameters, 0)]
    if source.head_parameters:
        vector = source.head_parameters % source.hidden_size
        found.append(Tensors("head", source.hidden_size, source.head_parameters - vector, vector))
    if source.final_norm_parameters:
        found.append(Tensors("norms", source.hidden_size, 0, source.final_norm_parameters))
    for spec in structure.blocks:
        found.extend(_block_tensors(structure, spec))
    return found


def _block_tensors(structure: Structure, spec: BlockSpec) -> list[Tensors]:
    source = structure.architecture
    block, hidden = source.blocks[spec.source], source.hidden_size
    found: list[Tensors] = []
    counted = 0
    if block.attention is not None and spec.attention:
        size = block.attention.head_size
        inputs = (len(spec.query_heads) + 2 * len(spec.kv_heads)) * size * hidden
        output = len(spec.query_heads) * size
        missing = (block.attention.query_heads - len(spec.query_heads)) * block.attention.per_query_head + (
            block.attention.kv_heads - len(spec.kv_heads)
        ) * block.attention.per_kv_head
        total = block.attention.parameters - missing
        found.append(Tensors("attention", hidden, inputs, total - inputs - output * hidden))
        found.append(Tensors("attention", output, output * hidden, 0))
        counted += total
    if block.mlp is not None and spec.mlp:
        width = len(spec.neurons)
        inputs = (2 if block.mlp.gated else 1) * width * hidden
        total = block.mlp.parameters - (block.mlp.width - width) * block.mlp.per_neuron
        found.append(Tensors("mlp", hidden, inputs, total - inputs - width * hidden))
        found.append(Tensors("mlp", width, width * hidden, 0))
        counted += total
    found.append(Tensors("norms", hidden, 0, spec.parameters(block) - counted))
    return found


def weights_by_class(structure: Structure, kind: WeightType) -> dict[str, int]:
    """Bytes of the weights of each tensor class."""
    sizes: dict[str, int] = {}
    for item in tensors(structure):
        size = kind.matrix_bytes(item.matrix, item.row) + item.vector * kind.vector_bytes
        sizes[item.kind] = sizes.get(item.kind, 0) + size
    return sizes


def kv_cache_bytes(structure: Structure, context: int) -> int:
    """Keys and values in F16: nothing for a block without attention, at most its window for a sliding one."""
    total = 0
    for spec in structure.blocks:
        attention = structure.architecture.blocks[spec.source].attention
        if attention is not None and spec.attention:
            tokens = min(context, attention.window or context)
            total += 2 * len(spec.kv_heads) * attention.head_size * tokens * KV_BYTES
    return total


def activation_bytes(structure: Structure, context: int, batch: int) -> int:
    """Estimate of the peak while a prompt is read: residual stream, the widest sublayer, attention scores, logits."""
    source = structure.architecture
    widest = scores = 0
    for spec in structure.blocks:
        block = source.blocks[spec.source]
        if block.attention is not None:
            rows = (2 * len(spec.query_heads) + 2 * len(spec.kv_heads)) * block.attention.head_size
            scores = max(scores, len(spec.query_heads) * batch * context)
            widest = max(widest, rows)
        widest = max(widest, 2 * len(spec.neurons))
    elements = batch * (3 * source.hidden_size + widest) + scores + source.vocabulary_size
    return elements * ACTIVATION_BYTES


def fit(structure: Structure, device: Device, context: int, type_name: str = "F16") -> Fit:
    """The memory and speed model.

    Speeds are bounds: decoding reads every weight (of the embeddings only one row, unless they are the head too) and
    the KV cache once a token, and computes two operations a weight; reading a prompt is bound by compute.

    Raises:
        InputError: the context is not positive, or the type is unknown.
    """
    if context < 1:
        raise InputError("The context must be at least 1 token.")
    kind = weight_type(type_name)
    source = structure.architecture
    weights = weights_by_class(structure, kind)
    batch = 1 if device.kind == "microcontroller" else min(context, PREFILL_TOKENS)
    cache = kv_cache_bytes(structure, context)
    read = sum(weights.values()) + cache - (0 if source.tied else weights["embeddings"])
    used = structure.parameters - (0 if source.tied else source.embedding_parameters)
    compute = device.compute_operations_per_second.value
    return Fit(
        device=device.id,
        type=kind.name,
        context=context,
        weights=weights,
        kv_cache_bytes=cache,
        activation_bytes=activation_bytes(structure, context, batch),
        overhead_bytes=OVERHEAD_BYTES[device.kind],
        capacity_bytes=device.capacity_bytes,
        working_bytes=device.working_bytes,
        decode_tokens_per_second=min(device.bandwidth_bytes_per_second.value / read, compute / (2 * used)),
        prefill_tokens_per_second=compute / (2 * used),
    )
