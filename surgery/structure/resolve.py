"""Resolving (architecture, recipe) into a structure; contradictions and impossible edits are refused by name."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Literal

from analysis.model.architecture import Architecture, Attention, Block
from surgery.errors import RecipeError
from surgery.recipe import recipe as recipes
from surgery.recipe.recipe import Recipe
from surgery.structure.structure import BlockSpec, Healing, Part, Structure, narrowed, whole

NAMES = {"attention": "attention", "mlp": "MLP"}


def resolve(architecture: Architecture, recipe: Recipe) -> Structure:
    """Apply a recipe's edits to an architecture.

    Raises:
        RecipeError: an index is out of range, two edits contradict each other, or a checkpoint could not express the
            result; the message names the edit and the block.
    """
    draft = _Draft(architecture)
    for edit in recipe.edits:
        draft.apply(edit)
    structure = draft.finish()
    if draft.heal is not None:
        return replace(structure, healing=Healing(draft.heal, healing_key(recipe)))
    return structure


def healing_key(recipe: Recipe) -> str:
    """Address of a recipe's healing: the key of the recipe up to and including its heal edit, or all of it without."""
    last = next((place for place, edit in enumerate(recipe.edits, 1) if isinstance(edit, recipes.Heal)), None)
    return recipe.model_copy(update={"edits": recipe.edits[:last]}).key


class _Draft:
    """Mutable bookkeeping while the edits are applied one after the other."""

    def __init__(self, architecture: Architecture) -> None:
        self.architecture = architecture
        self.removed: set[int] = set()
        self.gone: dict[str, set[int]] = {"attention": set(), "mlp": set()}
        self.heads: dict[int, set[int]] = {}
        self.neurons: dict[int, set[int]] = {}
        self.merged: dict[int, tuple[int, Literal["mean", "first"]]] = {}
        self.order: tuple[int, ...] | None = None
        self.hidden: set[int] = set()
        self.compensations: list[recipes.Compensate] = []
        self.heal: recipes.Heal | None = None
        self.quantize: recipes.Quantize | None = None
        self.eora: recipes.Eora | None = None
        self.stage = 0

    def apply(self, edit: recipes.Edit) -> None:
        stage = recipes.stage_of(edit)
        if stage < self.stage:
            raise RecipeError(
                f"{edit.op}: edits come in the order structure, compensation, heal, quantize, eora: move this one "
                "forward."
            )
        self.stage = stage
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
            case recipes.MergeKvHeads():
                self._merge(edit)
            case recipes.ArrangeBlocks():
                self._arrange(edit.op, edit.order)
            case recipes.PruneHidden():
                self._prune_hidden(edit.op, edit.removed)
            case recipes.Compensate():
                self._compensate(edit)
            case recipes.Heal():
                self._once(edit.op, self.heal)
                if edit.blocks is not None:
                    self._in_range(edit.op, None, "block", edit.blocks, len(self.architecture.blocks))
                self.heal = edit
            case recipes.Quantize():
                self._once(edit.op, self.quantize)
                self.quantize = edit
            case recipes.Eora():
                self._once(edit.op, self.eora)
                if self.quantize is None or self.quantize.type == "F32":
                    raise RecipeError(
                        f"{edit.op}: nothing is quantised, so there is nothing to repair: quantise the model before, "
                        "or take this edit out."
                    )
                self.eora = edit
            case recipes.Iterate():
                raise RecipeError(
                    "iterate: a schedule chooses its cuts while it runs: give it to the command iterate, which leaves "
                    "a recipe for each round."
                )

    def finish(self) -> Structure:
        source = self.architecture
        order = range(len(source.blocks)) if self.order is None else self.order
        kept = [source.blocks[index] for index in order if index not in self.removed]
        if not kept:
            raise RecipeError("The recipe removes every block: at least one must stay.")
        hidden = None
        if self.hidden:
            hidden = tuple(channel for channel in range(source.hidden_size) if channel not in self.hidden)
            source = source.with_hidden(len(hidden))
        blocks = tuple(self._spec(block) for block in kept)
        return Structure(source, blocks, hidden, tuple(self.compensations), quantize=self.quantize, eora=self.eora)

    def _once(self, op: str, there: object | None) -> None:
        if there is not None:
            raise RecipeError(f"{op}: there are two such edits: keep one.")

    def _spec(self, block: Block) -> BlockSpec:
        new = whole(block)
        query, kv, neurons = new.query_heads, new.kv_heads, new.neurons
        merged: Literal["", "mean", "first"] = ""
        if block.index in self.gone["attention"]:
            query, kv = (), ()
        elif block.index in self.merged:
            count, how = self.merged[block.index]
            merged = how if count < len(kv) else ""
            kv = kv[:: len(kv) // count]
        elif block.index in self.heads and block.attention is not None:
            query, kv = self._kept_heads(block.index, block.attention)
        if block.index in self.gone["mlp"]:
            neurons = ()
        elif block.index in self.neurons:
            neurons = tuple(neuron for neuron in neurons if neuron not in self.neurons[block.index])
        spec = BlockSpec(block.index, query, kv, neurons, merged)
        return replace(spec, biases=self._biased(block, spec))

    def _biased(self, block: Block, spec: BlockSpec) -> tuple[Part, ...]:
        """Narrowed sublayers to which a bias compensation gives a bias."""
        if not any(edit.how == "bias" and _covers(edit, block.index) for edit in self.compensations):
            return ()
        parts: tuple[Part, ...] = ("attention", "mlp")
        return tuple(part for part in parts if narrowed(block, spec, part))

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
            if touched or any(index in part for part in (self.heads, self.neurons, self.merged)):
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
        pruned = {**self.heads, **self.merged} if part == "attention" else self.neurons
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

    def _merge(self, edit: recipes.MergeKvHeads) -> None:
        for index in edit.blocks:
            attention = self._sublayer(edit.op, index, "attention").attention
            assert attention is not None  # _sublayer has checked
            if not attention.groupable:
                raise RecipeError(
                    f"{edit.op}: {self.architecture.blocks[index].module}.{attention.module} has no code for query "
                    "heads that share a key/value head, so its heads cannot be merged."
                )
            if index in self.heads or index in self.merged:
                raise RecipeError(f"{edit.op}: heads of block {index} are also changed by another edit: keep one.")
            if edit.kv_heads > attention.kv_heads or attention.kv_heads % edit.kv_heads:
                raise RecipeError(
                    f"{edit.op}: the {attention.kv_heads} key/value heads of block {index} cannot be merged evenly "
                    f"into {edit.kv_heads}: choose a divisor."
                )
            self.merged[index] = edit.kv_heads, edit.how

    def _arrange(self, op: str, order: tuple[int, ...]) -> None:
        if self.order is not None:
            raise RecipeError(f"{op}: the blocks are already arranged by another edit: keep one of the two.")
        for index in order:
            self._block(op, index)
        if order == tuple(index for index in range(len(self.architecture.blocks)) if index not in self.removed):
            raise RecipeError(f"{op}: the blocks stand in this order as it is: change it, or take the edit out.")
        self.order = order

    def _prune_hidden(self, op: str, removed: tuple[int, ...]) -> None:
        source = self.architecture
        self._in_range(op, None, "channel", removed, source.hidden_size)
        for block in source.blocks:
            if block.attention is not None and not block.attention.free_head_size:
                raise RecipeError(
                    f"{op}: {block.module}.{block.attention.module} takes its head size from the hidden size, so "
                    "channels cannot be removed from this model."
                )
        twice = self.hidden & set(removed)
        if twice:
            raise RecipeError(f"{op}: channel {min(twice)} is already removed by another edit.")
        self.hidden |= set(removed)
        if len(self.hidden) == source.hidden_size:
            raise RecipeError(f"{op}: every channel is removed: at least one must stay.")

    def _compensate(self, edit: recipes.Compensate) -> None:
        blocks = self.architecture.blocks
        if edit.blocks is not None:
            self._in_range(edit.op, None, "block", edit.blocks, len(blocks))
        same = [other for other in self.compensations if other.how == edit.how]
        if same:
            raise RecipeError(f"{edit.op}: there are two compensations by {edit.how}: keep one.")
        if {edit.how, *(other.how for other in self.compensations)} >= {"bias", "least_squares"}:
            raise RecipeError(f"{edit.op}: bias and least_squares make up for the same loss: keep one.")
        if any(other.text != edit.text for other in self.compensations):
            raise RecipeError(f"{edit.op}: the compensations name different texts: compute them from the same one.")
        if self.hidden:
            raise RecipeError(f"{edit.op}: a model with fewer channels cannot be compensated: remove prune_hidden.")
        if edit.how == "linear_patch":
            self._check_patch(edit)
        self.compensations.append(edit)

    def _check_patch(self, edit: recipes.Compensate) -> None:
        if self.order is not None:
            raise RecipeError(f"{edit.op}: linear_patch needs the blocks in their own order: remove arrange_blocks.")
        normed = next((block for block in self.architecture.blocks if block.norm("post_mlp")), None)
        if normed is not None:
            raise RecipeError(
                f"{edit.op}: {normed.module} normalises what its MLP adds, so linear_patch has nothing to fold into."
            )

    def _prune_groups(self, op: str, removed: dict[int, tuple[int, ...]]) -> None:
        for index, groups in removed.items():
            attention = self._sublayer(op, index, "attention").attention
            assert attention is not None  # _sublayer has checked
            self._not_merged(op, index)
            self._in_range(op, index, "KV group", groups, attention.kv_heads)
            size = attention.heads_per_group
            heads = [group * size + offset for group in groups for offset in range(size)]
            self._add(op, index, "head", heads, attention.query_heads, self.heads)

    def _prune_heads(self, op: str, removed: dict[int, tuple[int, ...]]) -> None:
        for index, heads in removed.items():
            attention = self._sublayer(op, index, "attention").attention
            assert attention is not None  # _sublayer has checked
            self._not_merged(op, index)
            self._add(op, index, "head", heads, attention.query_heads, self.heads)

    def _not_merged(self, op: str, index: int) -> None:
        if index in self.merged:
            raise RecipeError(f"{op}: heads of block {index} are also merged by another edit: keep one.")

    def _add(
        self, op: str, index: int, what: str, indices: Iterable[int], count: int, into: dict[int, set[int]]
    ) -> None:
        wanted = set(indices)
        self._in_range(op, index, what, wanted, count)
        twice = wanted & into.get(index, set())
        if twice:
            raise RecipeError(f"{op}: {what} {min(twice)} of block {index} is already removed by another edit.")
        into.setdefault(index, set()).update(wanted)

    def _in_range(self, op: str, index: int | None, what: str, indices: Iterable[int], count: int) -> None:
        largest = max(indices)
        if largest >= count:
            where, owner = ("", "the model") if index is None else (f" of block {index}", "it")
            raise RecipeError(f"{op}: {what} {largest}{where} is out of range, {owner} has 0 to {count - 1}.")


def _covers(edit: recipes.Compensate, block: int) -> bool:
    return edit.blocks is None or block in edit.blocks
