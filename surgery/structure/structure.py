"""What every kept block of an edited model is made of, and how large that is."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Literal, Protocol

import torch

from analysis.model.architecture import Architecture, Attention, Block, Projection
from surgery.common.ranges import format_ranges
from surgery.recipe.edits import Compensate, Eora
from surgery.recipe.healing import Heal
from surgery.recipe.storage import Quantize

Part = Literal["attention", "mlp"]


@dataclass(frozen=True)
class Refit:
    """Weights that a compensation gives to modules of one kept block, by path; `key` identifies what they are."""

    key: str
    weights: Mapping[str, torch.Tensor] = field(compare=False, repr=False)
    """(outputs, inputs) each, of the narrowed module."""
    biases: Mapping[str, torch.Tensor] = field(compare=False, repr=False)
    """(outputs,) each; the module may have had none."""


class Codec(Protocol):
    """How a quantised weight is stored, seen through what it reads back as."""

    @property
    def key(self) -> str:
        """Identity of the stored form, for caches."""

    def apply(self, weight: torch.Tensor) -> torch.Tensor:
        """The weight (outputs, inputs) as it reads back, of the same shape, type and device."""


Codecs = tuple[tuple[str, Codec], ...]
"""Codecs by module path, in ascending order of the paths."""


@dataclass(frozen=True)
class LowRank:
    """Low-rank matrices beside the linears of one kept block, by path: the weight that counts is W + up down."""

    key: str
    down: Mapping[str, torch.Tensor] = field(compare=False, repr=False)
    """(rank, inputs) each."""
    up: Mapping[str, torch.Tensor] = field(compare=False, repr=False)
    """(outputs, rank) each."""


@dataclass(frozen=True)
class BlockSpec:
    """One kept block: its source and what stays of it, in the source model's numbering.

    `query_heads` and `kv_heads` are empty where the attention is gone, `neurons` where the MLP is. Where heads were
    merged, each of `kv_heads` stands for itself and the heads up to the next one.
    """

    source: int
    query_heads: tuple[int, ...]
    kv_heads: tuple[int, ...]
    neurons: tuple[int, ...]
    merged: Literal["", "mean", "first"] = ""
    """How key/value heads were merged, if they were."""
    biases: tuple[Part, ...] = ()
    """Sublayers whose output gets a bias from a compensation."""
    refit: Refit | None = None
    codecs: Codecs = ()
    """How linears are quantised, after everything above."""
    repair: LowRank | None = None
    """What stands beside the quantised linears."""

    @property
    def attention(self) -> bool:
        """Whether the block has its attention sublayer."""
        return bool(self.query_heads)

    @property
    def mlp(self) -> bool:
        """Whether the block has its MLP sublayer."""
        return bool(self.neurons)

    @property
    def empty(self) -> bool:
        """Whether neither sublayer is left: the block passes its state on unchanged."""
        return not self.attention and not self.mlp

    @cached_property
    def key(self) -> str:
        """Identity of the block's content, for caches."""
        kept = (format_ranges(units) for units in (self.query_heads, self.kv_heads, self.neurons))
        text = "|".join([str(self.source), *kept, self.merged, *self.biases, self.refit.key if self.refit else ""])
        if self.codecs or self.repair:
            text += f"|{_key_of(self.codecs)}|{self.repair.key if self.repair else ''}"
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def __hash__(self) -> int:
        return hash(self.key)

    def is_whole(self, block: Block) -> bool:
        """Whether nothing of the source block is missing, refitted or quantised."""
        heads = (block.attention.query_heads, block.attention.kv_heads) if block.attention else (0, 0)
        return (
            (len(self.query_heads), len(self.kv_heads)) == heads
            and len(self.neurons) == (block.mlp.width if block.mlp else 0)
            and self.refit is None
            and not self.biases
            and not self.codecs
            and self.repair is None
        )

    def parameters(self, block: Block) -> int:
        """Parameters of what stays, from the source block's arithmetic."""
        count = block.parameters
        if block.attention is not None:
            count -= (
                (block.attention.query_heads - len(self.query_heads)) * block.attention.per_query_head
                + (block.attention.kv_heads - len(self.kv_heads)) * block.attention.per_kv_head
                if self.attention
                else block.sublayer_parameters("attention")
            )
        if block.mlp is not None:
            count -= (
                (block.mlp.width - len(self.neurons)) * block.mlp.per_neuron
                if self.mlp
                else block.sublayer_parameters("mlp")
            )
        for part in self.biases:
            sublayer = getattr(block, part)
            count += 0 if output_of(block, part).bias else sublayer.hidden_size
        return 0 if self.empty else count


def output_of(block: Block, part: Part) -> Projection:
    """The projection through which a sublayer adds to the residual stream."""
    sublayer = block.attention if part == "attention" else block.mlp
    assert sublayer is not None  # asked only of sublayers that are there
    return sublayer.output if isinstance(sublayer, Attention) else sublayer.down


def whole(block: Block) -> BlockSpec:
    """The spec of an untouched block."""
    attention = block.attention
    return BlockSpec(
        block.index,
        tuple(range(attention.query_heads)) if attention else (),
        tuple(range(attention.kv_heads)) if attention else (),
        tuple(range(block.mlp.width)) if block.mlp else (),
    )


@dataclass(frozen=True)
class Healing:
    """A training whose result is still to be merged; `key` is the address of that result."""

    edit: Heal
    key: str


@dataclass(frozen=True)
class Structure:
    """The edited model: kept blocks in order, over one architecture."""

    architecture: Architecture = field(repr=False)
    """The source model's, with a narrower residual stream where channels were removed."""
    blocks: tuple[BlockSpec, ...]
    hidden: tuple[int, ...] | None = None
    """Channels of the residual stream that stay; None when all do."""
    compensations: tuple[Compensate, ...] = ()
    """Compensations that are still to be computed (see `surgery.compensation.compensator`)."""
    healing: Healing | None = None
    """The training whose result is still to be merged (see `surgery.healing`)."""
    quantize: Quantize | None = None
    """How it is still to be quantised (see `surgery.formats`)."""
    eora: Eora | None = None
    """The low-rank repair that is still to be computed."""
    outer: Codecs = ()
    """How the embeddings and the head are quantised, by path in the model; a tied head follows the embeddings."""

    @cached_property
    def kept(self) -> tuple[BlockSpec, ...]:
        """The blocks that the built model has, in its order: those with a sublayer left."""
        return tuple(spec for spec in self.blocks if not spec.empty)

    @property
    def pending(self) -> bool:
        """Whether something is still to be computed before the model can be measured."""
        return bool(self.compensations or self.healing or self.quantize or self.eora)

    @property
    def computed(self) -> bool:
        """Whether floating weights have values that the source's files do not hold, or will have."""
        pending = bool(self.compensations or self.healing)
        return pending or any(spec.refit or spec.biases or spec.merged == "mean" for spec in self.kept)

    @property
    def floating(self) -> Structure:
        """The same without quantisation and what comes after it: what a checkpoint is built from."""
        blocks = tuple(replace(spec, codecs=(), repair=None) for spec in self.blocks)
        return replace(self, blocks=blocks, quantize=None, eora=None, outer=())

    @property
    def floating_shape(self) -> Structure:
        """The same as `floating`, with what is still to be computed left out: it changes values, but no shape."""
        return replace(self.floating, compensations=(), healing=None)

    @cached_property
    def parameters(self) -> int:
        """Parameters of the edited model, tied tensors once."""
        source = self.architecture
        fixed = source.embedding_parameters + source.head_parameters + source.final_norm_parameters
        return fixed + sum(spec.parameters(source.blocks[spec.source]) for spec in self.blocks)

    @property
    def expansion_ratios(self) -> list[float]:
        """MLP width over hidden size of each kept block; 0 without an MLP."""
        return [len(spec.neurons) / self.architecture.hidden_size for spec in self.blocks]

    @property
    def kv_heads(self) -> list[int]:
        """Key/value heads of each kept block; 0 without attention."""
        return [len(spec.kv_heads) for spec in self.blocks]

    @property
    def uniform(self) -> bool:
        """Whether all blocks have the same parts in the same sizes."""
        shapes = {(len(s.query_heads), len(s.kv_heads), len(s.neurons), s.biases) for s in self.blocks}
        return len(shapes) == 1 and all(spec.attention and spec.mlp for spec in self.blocks)

    @cached_property
    def hidden_key(self) -> str:
        """Identity of the channels that stay, empty when all do."""
        return "" if self.hidden is None else hashlib.sha256(format_ranges(self.hidden).encode()).hexdigest()[:16]

    @cached_property
    def base_key(self) -> str:
        """Identity of what stands around the blocks: the channels that stay and the stored embeddings and head."""
        return self.hidden_key + (f"|{_key_of(self.outer)}" if self.outer else "")

    @cached_property
    def key(self) -> str:
        """Identity of the structure, for caches."""
        edits = (*self.compensations, self.quantize, self.eora)
        pending = [edit.model_dump_json(exclude={"chosen_by"}) for edit in edits if edit is not None]
        if self.healing is not None:
            result = self.healing.edit.result
            pending.append(f"heal {self.healing.key} {result.adapter if result else ''}")
        parts = [self.base_key, *(spec.key for spec in self.blocks), *pending]
        return hashlib.sha256("|".join(parts).encode()).hexdigest()[:16]


def _key_of(codecs: Codecs) -> str:
    return ",".join(f"{path}={codec.key}" for path, codec in codecs)


def dense(architecture: Architecture) -> Structure:
    """The structure of the untouched model."""
    return Structure(architecture, tuple(whole(block) for block in architecture.blocks))


def narrowed(block: Block, spec: BlockSpec, part: Part) -> bool:
    """Whether a sublayer is there and smaller than its source."""
    if part == "mlp":
        return block.mlp is not None and spec.mlp and len(spec.neurons) < block.mlp.width
    heads = (block.attention.query_heads, block.attention.kv_heads) if block.attention else (0, 0)
    return spec.attention and (len(spec.query_heads), len(spec.kv_heads)) != heads
