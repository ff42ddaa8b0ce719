"""Resolving (architecture, recipe) into a structure: what every kept block is made of, and how large that is."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property

from analysis.architecture import Architecture, Attention, Block
from surgery import recipe as recipes
from surgery.errors import RecipeError
from surgery.ranges import format_ranges
from surgery.recipe import Recipe

NAMES = {"attention": "attention", "mlp": "MLP"}


@dataclass(frozen=True)
class BlockSpec:
    """One kept block: its source and what stays of it, in the source model's numbering.

    `query_heads` and `kv_heads` are empty where the attention is gone, `neurons` where the MLP is.
    """

    source: int
    query_heads: tuple[int, ...]
    kv_heads: tuple[int, ...]
    neurons: tuple[int, ...]

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
        text = "|".join([str(self.source), *kept])
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def __hash__(self) -> int:
        return hash(self.key)

    def is_whole(self, block: Block) -> bool:
        """Whether nothing of the source block is missing."""
        attention = block.attention.query_heads if block.attention else 0
        return len(self.query_heads) == attention and len(self.neurons) == (block.mlp.width if block.mlp else 0)

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
        return 0 if self.empty else count


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
class Structure:
    """The edited model: kept blocks in order, over one architecture."""

    architecture: Architecture = field(repr=False)
    blocks: tuple[BlockSpec, ...]

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
        """Whether all blocks have the same widths, so that a plain checkpoint can hold the model."""
        return len({(len(s.query_heads), len(s.kv_heads), len(s.neurons)) for s in self.blocks}) == 1 and not any(
            not spec.attention or not spec.mlp for spec in self.blocks
        )

    @cached_property
    def key(self) -> str:
        """Identity of the structure, for caches."""
        return hashlib.sha256("".join(spec.key for spec in self.blocks).encode()).hexdigest()[:16]


def dense(architecture: Architecture) -> Structure:
    """The structure of the untouched model."""
    return Structure(architecture, tuple(whole(block) for block in architecture.blocks))


def resolve(architecture: Architecture, recipe: Recipe) -> Structure:
    """Apply a recipe's edits to an architecture.

    Raises:
        RecipeError: an index is out of range, two edits contradict each other, or a checkpoint could not express the
            result; the message names the edit and the block.
    """
    draft = _Draft(architecture)
    for edit in recipe.edits:
        draft.apply(edit)
    return draft.finish()


class _Draft:
    """Mutable bookkeeping while the edits are applied one after the other."""

    def __init__(self, architecture: Architecture) -> None:
        self.architecture = architecture
        self.removed: set[int] = set()
        self.gone: dict[str, set[int]] = {"attention": set(), "mlp": set()}
        self.heads: dict[int, set[int]] = {}
        self.neurons: dict[int, set[int]] = {}

    def apply(self, edit: recipes.Edit) -> None:
        match edit:
            case recipes.RemoveBlocks():
                self._remove_blocks(edit.op, edit.blocks)
            case recipes.RemoveAttention():
                self._remove_part(edit.op, "attention", edit.blocks)
            case recipes.RemoveMlp():
                self._remove_part(edit.op, "mlp", edit.blocks)
            case recipes.PruneNeurons():
                self._prune_neurons(edit.op, edit.removed)
            case recipes.PruneKvGroups():
                self._prune_groups(edit.op, edit.removed)
            case recipes.PruneHeads():
                self._prune_heads(edit.op, edit.removed)

    def finish(self) -> Structure:
        kept = [block for block in self.architecture.blocks if block.index not in self.removed]
        if not kept:
            raise RecipeError("The recipe removes every block: at least one must stay.")
        return Structure(self.architecture, tuple(self._spec(block) for block in kept))

    def _spec(self, block: Block) -> BlockSpec:
        new = whole(block)
        query, kv, neurons = new.query_heads, new.kv_heads, new.neurons
        if block.index in self.gone["attention"]:
            query, kv = (), ()
        elif block.index in self.heads and block.attention is not None:
            query, kv = self._kept_heads(block.index, block.attention)
        if block.index in self.gone["mlp"]:
            neurons = ()
        elif block.index in self.neurons:
            neurons = tuple(neuron for neuron in neurons if neuron not in self.neurons[block.index])
        return BlockSpec(block.index, query, kv, neurons)

    def _kept_heads(self, index: int, attention: Attention) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Kept query heads and KV heads; every KV head that stays must serve the same number of query heads."""
        kept = [head for head in range(attention.query_heads) if head not in self.heads[index]]
        size = attention.heads_per_group
        counts = {group: sum(head // size == group for head in kept) for group in range(attention.kv_heads)}
        groups = tuple(group for group, count in counts.items() if count)
        if not groups:
            raise RecipeError(f"Every head of block {index} is removed: use remove_attention to take the sublayer out.")
        if len({counts[group] for group in groups}) > 1:
            shown = ", ".join(f"group {group} keeps {count}" for group, count in counts.items())
            raise RecipeError(
                f"prune_heads: no checkpoint can express block {index}, because each KV group must keep the same "
                f"number of query heads or go as a whole ({shown})."
            )
        return tuple(kept), groups

    def _block(self, op: str, index: int) -> Block:
        blocks = self.architecture.blocks
        if index >= len(blocks):
            raise RecipeError(f"{op}: block {index} is out of range, the model has blocks 0 to {len(blocks) - 1}.")
        if index in self.removed:
            raise RecipeError(f"{op}: block {index} is already removed by another edit.")
        return blocks[index]

    def _remove_blocks(self, op: str, indices: Iterable[int]) -> None:
        for index in indices:
            self._block(op, index)
            touched = [name for name in ("attention", "mlp") if index in self.gone[name]]
            if touched or index in self.heads or index in self.neurons:
                raise RecipeError(f"{op}: block {index} is also edited in part by another edit: keep one of the two.")
            self.removed.add(index)

    def _sublayer(self, op: str, index: int, part: str) -> Block:
        """The block, if that sublayer is still there."""
        block = self._block(op, index)
        if getattr(block, part) is None:
            raise RecipeError(f"{op}: block {index} has no {NAMES[part]} in this model.")
        if index in self.gone[part]:
            raise RecipeError(f"{op}: the {NAMES[part]} of block {index} is already removed by another edit.")
        return block

    def _remove_part(self, op: str, part: str, indices: Iterable[int]) -> None:
        pruned = self.heads if part == "attention" else self.neurons
        for index in indices:
            self._sublayer(op, index, part)
            if index in pruned:
                raise RecipeError(f"{op}: the {NAMES[part]} of block {index} is also pruned by another edit: keep one.")
            self.gone[part].add(index)

    def _prune_neurons(self, op: str, removed: dict[int, tuple[int, ...]]) -> None:
        for index, neurons in removed.items():
            mlp = self._sublayer(op, index, "mlp").mlp
            assert mlp is not None  # _sublayer has checked
            self._add(op, index, "neuron", neurons, mlp.width, self.neurons)
            if len(self.neurons[index]) == mlp.width:
                raise RecipeError(
                    f"{op}: every neuron of block {index} is removed: use remove_mlp to take the MLP out."
                )

    def _prune_groups(self, op: str, removed: dict[int, tuple[int, ...]]) -> None:
        for index, groups in removed.items():
            attention = self._sublayer(op, index, "attention").attention
            assert attention is not None  # _sublayer has checked
            self._in_range(op, index, "KV group", groups, attention.kv_heads)
            size = attention.heads_per_group
            heads = [group * size + offset for group in groups for offset in range(size)]
            self._add(op, index, "head", heads, attention.query_heads, self.heads)

    def _prune_heads(self, op: str, removed: dict[int, tuple[int, ...]]) -> None:
        for index, heads in removed.items():
            attention = self._sublayer(op, index, "attention").attention
            assert attention is not None  # _sublayer has checked
            self._add(op, index, "head", heads, attention.query_heads, self.heads)

    def _add(
        self, op: str, index: int, what: str, indices: Iterable[int], count: int, into: dict[int, set[int]]
    ) -> None:
        wanted = set(indices)
        self._in_range(op, index, what, wanted, count)
        twice = wanted & into.get(index, set())
        if twice:
            raise RecipeError(f"{op}: {what} {min(twice)} of block {index} is already removed by another edit.")
        into.setdefault(index, set()).update(wanted)

    def _in_range(self, op: str, index: int, what: str, indices: Iterable[int], count: int) -> None:
        largest = max(indices)
        if largest >= count:
            raise RecipeError(f"{op}: {what} {largest} of block {index} is out of range, it has 0 to {count - 1}.")
