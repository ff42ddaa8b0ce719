"""A recipe as a set of choices that can be switched on and off, in one canonical order of edits."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from surgery.recipe.base import ChosenBy
from surgery.recipe.edits import (
    ArrangeBlocks,
    MergeKvHeads,
    PruneHeads,
    PruneKvGroups,
    PruneNeurons,
    RemoveAttention,
    RemoveBlocks,
    RemoveMlp,
)
from surgery.recipe.recipe import Edit, Recipe, stage_of

Indices = tuple[int, ...]
FIELDS = {
    "remove_blocks": "blocks",
    "remove_attention": "attention",
    "remove_mlp": "mlp",
    "prune_neurons": "neurons",
    "prune_kv_groups": "kv_groups",
    "prune_heads": "heads",
}
"""Which field of the choices an edit's indices are in, by its op."""
AFTER_CUTS = {"heal", "quantize", "eora"}
"""Ops that leave what a healing was made for as it was."""
SWITCHES = (RemoveBlocks, RemoveAttention, RemoveMlp, PruneNeurons, PruneKvGroups, PruneHeads)


@dataclass(frozen=True)
class Choices:
    """What is switched off. Pruned neurons, groups and heads of a part that is off are parked, not forgotten."""

    blocks: frozenset[int] = frozenset()
    attention: frozenset[int] = frozenset()
    mlp: frozenset[int] = frozenset()
    neurons: Mapping[int, Indices] = field(default_factory=dict)
    kv_groups: Mapping[int, Indices] = field(default_factory=dict)
    heads: Mapping[int, Indices] = field(default_factory=dict)
    others: tuple[Edit, ...] = ()
    """Edits that are not switches: merged heads, removed channels, an arrangement, what comes after the structure."""
    origins: Mapping[str, ChosenBy] = field(default_factory=dict)
    """Where the indices of an edit came from, by its op."""

    @classmethod
    def of(cls, recipe: Recipe) -> Choices:
        """The choices that a valid recipe stands for; edits of one kind are joined."""
        return cls.of_edits(recipe.edits)

    @classmethod
    def of_edits(cls, edits: Iterable[Edit]) -> Choices:
        """The choices that some edits stand for."""
        gone: dict[str, set[int]] = {"blocks": set(), "attention": set(), "mlp": set()}
        pruned: dict[str, dict[int, Indices]] = {"neurons": {}, "kv_groups": {}, "heads": {}}
        origins: dict[str, ChosenBy] = {}
        others: list[Edit] = []
        for edit in edits:
            if not isinstance(edit, SWITCHES):
                others.append(edit)
                continue
            if edit.chosen_by is not None:
                origins[edit.op] = edit.chosen_by
            if isinstance(edit, RemoveBlocks | RemoveAttention | RemoveMlp):
                gone[FIELDS[edit.op]].update(edit.blocks)
            else:
                removed = pruned[FIELDS[edit.op]]
                for block, indices in edit.removed.items():
                    before = removed.get(block)
                    removed[block] = tuple(sorted({*before, *indices})) if before else indices
        fields: dict[str, Any] = {name: frozenset(blocks) for name, blocks in gone.items()} | pruned
        return cls(**fields, others=tuple(others), origins=origins)

    def switched(self, blocks: Iterable[int], attention: Iterable[int], mlp: Iterable[int]) -> Choices:
        """Other blocks and sublayers off; a set that changes was chosen by hand from then on."""
        return self._by_hand(blocks=frozenset(blocks), attention=frozenset(attention), mlp=frozenset(mlp))

    def without_heads(self, block: int, kv_groups: Iterable[int], heads: Iterable[int]) -> Choices:
        """Other KV groups and query heads of one block off; a set that changes was chosen by hand from then on."""
        fields: dict[str, Any] = {
            name: {index: gone for index, gone in before.items() if index != block} | ({block: off} if off else {})
            for name, before, off in (
                ("kv_groups", self.kv_groups, tuple(sorted(set(kv_groups)))),
                ("heads", self.heads, tuple(sorted(set(heads)))),
            )
        }
        return self._by_hand(**fields)

    def _by_hand(self, **fields: Any) -> Choices:
        """Other sets: one that changes loses its origin, and with it goes the healing of what there was."""
        changed = [op for op, name in FIELDS.items() if name in fields and fields[name] != getattr(self, name)]
        origins = {op: origin for op, origin in self.origins.items() if op not in changed}
        return replace(self, **fields, origins=origins, others=self._unhealed() if changed else self.others)

    def narrowed(self, edit: PruneNeurons | None, blocks: Iterable[int] | None = None) -> Choices:
        """Other neurons off, in some blocks or in all. Beside neurons that were chosen in the same way no budget is
        recorded, beside others nothing."""
        origins = {op: origin for op, origin in self.origins.items() if op != "prune_neurons"}
        changed = self.neurons.keys() if blocks is None else set(blocks)
        left = {block: gone for block, gone in self.neurons.items() if block not in changed}
        origin, before = edit.chosen_by if edit else None, self.origins.get("prune_neurons")
        if left and edit is None:
            origin = before
        elif left and origin is not None:
            alike = before is not None and (before.method, before.text) == (origin.method, origin.text)
            origin = origin.model_copy(update={"budget": {}}) if alike else None
        if origin is not None:
            origins["prune_neurons"] = origin
        neurons = left | (dict(edit.removed) if edit else {})
        others = self.others if neurons == dict(self.neurons) else self._unhealed()
        return replace(self, neurons=neurons, origins=origins, others=others)

    def _unhealed(self) -> tuple[Edit, ...]:
        """The other edits without a healing: it was made for the cuts as they were."""
        return tuple(edit for edit in self.others if edit.op != "heal")

    def replaced(self, ops: Iterable[str], edits: Iterable[Edit]) -> Choices:
        """Everything of some ops, also what is parked, gives way to these edits of theirs."""
        names, new = set(ops), Choices.of_edits(edits)
        origins = {op: origin for op, origin in self.origins.items() if op not in names} | dict(new.origins)
        kept = self.others if names <= AFTER_CUTS else self._unhealed()
        others = (*(edit for edit in kept if edit.op not in names), *new.others)
        fields: dict[str, Any] = {FIELDS[op]: getattr(new, FIELDS[op]) for op in names & FIELDS.keys()}
        return replace(self, others=others, origins=origins, **fields)

    def edits(self) -> tuple[Edit, ...]:
        """The edits in canonical order, without parked ones."""
        gone_attention, gone_mlp = self.blocks | self.attention, self.blocks | self.mlp
        made: list[Edit] = []
        for kind, indices in ((RemoveBlocks, self.blocks), (RemoveAttention, self.attention - self.blocks),
                              (RemoveMlp, self.mlp - self.blocks)):  # fmt: skip
            if indices:
                made.append(
                    kind(blocks=tuple(sorted(indices)), chosen_by=self.origins.get(kind.model_fields["op"].default))
                )
        for pruning, removed, gone in (
            (PruneKvGroups, self.kv_groups, gone_attention),
            (PruneHeads, self.heads, gone_attention),
            (PruneNeurons, self.neurons, gone_mlp),
        ):
            kept = {block: indices for block, indices in removed.items() if block not in gone}
            if kept:
                made.append(pruning(removed=kept, chosen_by=self.origins.get(pruning.model_fields["op"].default)))
        return (*made, *self._others(gone_attention))

    def _others(self, gone_attention: frozenset[int]) -> list[Edit]:
        """What is left of the other edits beside the parts that are off, in the order that a recipe has."""
        kept: list[Edit] = []
        for edit in sorted(self.others, key=stage_of):
            if isinstance(edit, MergeKvHeads):
                blocks = tuple(block for block in edit.blocks if block not in gone_attention)
                kept += [edit.model_copy(update={"blocks": blocks})] if blocks else []
            elif isinstance(edit, ArrangeBlocks):
                order = tuple(block for block in edit.order if block not in self.blocks)
                kept += [edit.model_copy(update={"order": order})] if order else []
            else:
                kept.append(edit)
        return kept
