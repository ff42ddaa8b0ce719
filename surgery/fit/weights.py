"""The weights of a structure, tensor by tensor, without building it: names, shapes, and bytes in every stored form.

Names are llama.cpp's, since its mixes of types go by them; what is fused in the model is one tensor here too. Vectors
of one sublayer (norm gains, biases) are counted together, since every form keeps them in floating point.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from analysis.model.architecture import Attention, Block, Mlp
from surgery.gguf.families import FAMILIES
from surgery.gguf.layout import FILLER_WIDTH, needs_attention
from surgery.gguf.mixes import Shared
from surgery.structure.structure import BlockSpec, Structure

TensorClass = Literal["embeddings", "attention", "mlp", "norms", "head"]
Shape = tuple[int, ...]
Shapes = dict[str, Shape]
CLASSES: dict[str, TensorClass] = {
    "token_embd": "embeddings",
    "position_embd": "embeddings",
    "output": "head",
    "output_bias": "head",
    "output_norm": "norms",
    "norms": "norms",
}


def weight_shapes(structure: Structure, gguf: bool = True) -> Shapes:
    """Shapes of the tensors, (outputs, inputs) or (values,), by llama.cpp's name.

    Args:
        gguf: whether as a GGUF file holds it (a head of its own where llama.cpp wants one, and what a graph with sizes
            of each block needs), or as a checkpoint does. Rotary factors (some hundred bytes) are left out.
    """
    source = structure.architecture
    found = dict(_outer(structure, gguf))
    kept = structure.kept
    mixed = mixed_in_gguf(structure) if gguf else ""
    for position, spec in enumerate(kept):
        block = source.blocks[spec.source]
        parts = dict(_block(block, spec))
        if mixed:
            parts = {**_zeros(block, spec, mixed, position), **parts}
        if mixed == "openelm":
            parts = _fused(parts)
        found.update({f"blk.{position}.{role}": shape for role, shape in parts.items()})
    return found


def shared(structure: Structure) -> Shared:
    """What some of llama.cpp's mixes go by."""
    first = next(iter(structure.kept), None)
    group = len(first.query_heads) // len(first.kv_heads) if first is not None and first.kv_heads else 1
    return Shared(group, architecture_in_gguf(structure))


def class_of(name: str) -> TensorClass:
    """The class under which a tensor is shown."""
    role = name.split(".")[2] if name.startswith("blk.") else name.split(".")[0]
    if role in CLASSES:
        return CLASSES[role]
    return "attention" if role.startswith("attn") else "mlp"


def _outer(structure: Structure, gguf: bool) -> Iterator[tuple[str, Shape]]:
    source = structure.architecture
    hidden, vocabulary = source.hidden_size, source.vocabulary_size
    yield "token_embd.weight", (vocabulary, hidden)
    beside = source.embedding_parameters - vocabulary * hidden
    if beside:
        yield "position_embd.weight", (beside // hidden, hidden) if beside % hidden == 0 else (beside,)
    family = FAMILIES.get(source.family)
    if not source.tied or (gguf and family is not None and family.own_head):
        yield "output.weight", (vocabulary, hidden)
    bias = source.head_parameters - (0 if source.tied else vocabulary * hidden)
    if bias:
        yield "output_bias.bias", (bias,)
    if source.final_norm_parameters:
        yield "output_norm.weight", (source.final_norm_parameters,)


def _block(block: Block, spec: BlockSpec) -> Iterator[tuple[str, Shape]]:
    """What a kept block holds, by role; matrices first."""
    counted = 0
    for part, made in (
        ("attn", _attention(block.attention, spec) if block.attention and spec.attention else {}),
        ("ffn", _mlp(block.mlp, spec) if block.mlp and spec.mlp else {}),
    ):
        total = made.pop("total", (0,))[0]
        matrices = sum(rows * columns for rows, columns in made.values())
        yield from ((f"{role}.weight", shape) for role, shape in made.items())
        if total > matrices:
            yield f"{part}_vectors.bias", (total - matrices,)
        counted += total
    if spec.parameters(block) > counted:
        yield "norms.weight", (spec.parameters(block) - counted,)


def _attention(attention: Attention, spec: BlockSpec) -> dict[str, Shape]:
    """Matrices of an attention, and all its parameters as `total`."""
    size, hidden = attention.head_size, attention.hidden_size
    query, kv = len(spec.query_heads) * size, len(spec.kv_heads) * size
    gone = (attention.query_heads - len(spec.query_heads)) * attention.per_query_head
    gone += (attention.kv_heads - len(spec.kv_heads)) * attention.per_kv_head
    if attention.query.module == attention.key.module:
        inputs: dict[str, Shape] = {"attn_qkv": (query + 2 * kv, hidden)}
    else:
        inputs = {"attn_q": (query, hidden), "attn_k": (kv, hidden), "attn_v": (kv, hidden)}
    return {**inputs, "attn_output": (hidden, query), "total": (attention.parameters - gone,)}


def _mlp(mlp: Mlp, spec: BlockSpec) -> dict[str, Shape]:
    """Matrices of an MLP, and all its parameters as `total`."""
    width, hidden = len(spec.neurons), mlp.hidden_size
    fused = mlp.gate is not None and mlp.gate.module == mlp.up.module
    inputs: dict[str, Shape] = {"ffn_gate": (width, hidden)} if mlp.gate is not None and not fused else {}
    inputs["ffn_up"] = (2 * width if fused else width, hidden)
    total = mlp.parameters - (mlp.width - width) * mlp.per_neuron
    return {**inputs, "ffn_down": (hidden, width), "total": (total,)}


def mixed_in_gguf(structure: Structure) -> str:
    """llama.cpp's architecture with sizes of each block, where the file is one of these; else empty."""
    family = FAMILIES.get(structure.architecture.family)
    return "" if family is None or family.no_mixed or structure.uniform else family.mixed


def architecture_in_gguf(structure: Structure) -> str:
    """llama.cpp's architecture of the file; empty where there is none."""
    family = FAMILIES.get(structure.architecture.family)
    return "" if family is None else mixed_in_gguf(structure) or family.architecture


def _fused(parts: dict[str, Shape]) -> dict[str, Shape]:
    """With queries, keys and values as one matrix."""
    inputs = [parts.pop(f"attn_{role}.weight") for role in ("q", "k", "v")]
    return {"attn_qkv.weight": (sum(rows for rows, _ in inputs), inputs[0][1]), **parts}


def _zeros(block: Block, spec: BlockSpec, mixed: str, position: int) -> dict[str, Shape]:
    """The zeros that stand for what is gone (see `gguf.layout.BlockSizes`), with their norms."""
    attention, hidden = block.attention, block.attention.hidden_size if block.attention else 0
    found: dict[str, Shape] = {}
    if needs_attention(mixed, position) and not spec.attention and block.mlp is not None and attention is not None:
        size = attention.head_size
        found |= {f"attn_{role}.weight": (size, hidden) for role in ("q", "k", "v")}
        found |= {"attn_output.weight": (hidden, size), "attn_norm.weight": (hidden,)}
        found |= {f"attn_{role}_norm.weight": (size,) for role in ("q", "k")} if mixed == "openelm" else {}
    if not spec.mlp and attention is not None:
        found |= {f"ffn_{role}.weight": (FILLER_WIDTH, hidden) for role in ("gate", "up")}
        found |= {"ffn_down.weight": (hidden, FILLER_WIDTH), "ffn_norm.weight": (hidden,)}
    return found
