"""Random starting recipes and single edits, as a person clicking on the page would make them; seeded."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeVar

from analysis.model.architecture import Architecture
from surgery.recipe.base import ModelReference
from surgery.recipe.edits import PruneKvGroups, PruneNeurons, RemoveAttention, RemoveBlocks, RemoveMlp
from surgery.recipe.recipe import Recipe

KINDS = ("block", "attention", "mlp", "width", "kv group")
V = TypeVar("V")
NarrowingChoice = Callable[[int, int], tuple[int, ...]]
"""The neurons to remove from a block, given the block and a percentage."""


@dataclass(frozen=True)
class Draft:
    """What is switched off, in the source model's numbering; `widths` holds the percentage of neurons removed."""

    blocks: frozenset[int] = frozenset()
    attention: frozenset[int] = frozenset()
    mlp: frozenset[int] = frozenset()
    widths: dict[int, int] = field(default_factory=dict)
    groups: dict[int, frozenset[int]] = field(default_factory=dict)

    def without_block(self, index: int) -> Draft:
        """The block gone, and with it every edit of its parts."""
        return Draft(
            self.blocks | {index},
            self.attention - {index},
            self.mlp - {index},
            _less(self.widths, index),
            _less(self.groups, index),
        )

    def without_attention(self, index: int) -> Draft:
        """The attention gone, and with it the edits of its groups."""
        return replace(self, attention=self.attention | {index}, groups=_less(self.groups, index))

    def without_mlp(self, index: int) -> Draft:
        """The MLP gone, and with it the edit of its width."""
        return replace(self, mlp=self.mlp | {index}, widths=_less(self.widths, index))

    def narrowed(self, index: int, percentage: int) -> Draft:
        """That share of one MLP's neurons gone."""
        return replace(self, widths={**self.widths, index: percentage})

    def without_group(self, index: int, group: int) -> Draft:
        """One more KV group of a block gone."""
        return replace(self, groups={**self.groups, index: self.groups.get(index, frozenset()) | {group}})

    def recipe(self, choose: NarrowingChoice) -> Recipe:
        """The recipe that says the same."""
        model = ModelReference(id="default")
        edits: list[RemoveBlocks | RemoveAttention | RemoveMlp | PruneNeurons | PruneKvGroups] = []
        if self.blocks:
            edits.append(RemoveBlocks(blocks=tuple(sorted(self.blocks))))
        if self.attention:
            edits.append(RemoveAttention(blocks=tuple(sorted(self.attention))))
        if self.mlp:
            edits.append(RemoveMlp(blocks=tuple(sorted(self.mlp))))
        if self.widths:
            edits.append(PruneNeurons(removed={index: choose(index, share) for index, share in self.widths.items()}))
        if self.groups:
            edits.append(PruneKvGroups(removed={index: tuple(sorted(gone)) for index, gone in self.groups.items()}))
        return Recipe(model=model).with_edits(*edits)


@dataclass(frozen=True)
class Case:
    """One edit: what was there, what it is after, and what kind of edit it was."""

    kind: str
    before: Draft
    after: Draft


def cases(architecture: Architecture, count: int, seed: int, kinds: Sequence[str] = KINDS) -> list[Case]:
    """Random single edits from random starting recipes that hold edits of the same kinds only."""
    source = random.Random(seed)
    return [_case(architecture, source, kinds) for _ in range(count)]


def random_choice(architecture: Architecture, seed: int) -> NarrowingChoice:
    """Random neurons, the same ones whenever the same block is narrowed by the same percentage."""

    def choose(index: int, percentage: int) -> tuple[int, ...]:
        mlp = architecture.blocks[index].mlp
        assert mlp is not None  # the drafts of the embedded model narrow MLPs that are there
        removed = random.Random(f"{seed}/{index}/{percentage}").sample(range(mlp.width), mlp.width * percentage // 100)
        return tuple(sorted(removed))

    return choose


def _case(architecture: Architecture, source: random.Random, kinds: Sequence[str]) -> Case:
    before = _start(architecture, source, kinds)
    kind = source.choice(kinds)
    return Case(kind, before, _edited(architecture, source, before, kind))


def _start(architecture: Architecture, source: random.Random, kinds: Sequence[str]) -> Draft:
    """0-4 blocks, 0-4 sublayers and 0-3 partial edits, among the kinds that are allowed."""
    draft = Draft()
    for kinds_here, most in ((("block",), 4), (("attention", "mlp"), 4), (("width", "kv group"), 3)):
        allowed = [kind for kind in kinds_here if kind in kinds]
        for _ in range(source.randint(0, most) if allowed else 0):
            draft = _removed(architecture, source, draft, source.choice(allowed))
    return draft


def _edited(architecture: Architecture, source: random.Random, draft: Draft, kind: str) -> Draft:
    """One edit of a kind: a toggle of any block or sublayer, or one more partial removal."""
    index = source.randrange(len(architecture.blocks))
    if kind == "block" and index in draft.blocks:
        return replace(draft, blocks=draft.blocks - {index})
    if kind == "attention" and index in draft.attention:
        return replace(draft, attention=draft.attention - {index})
    if kind == "mlp" and index in draft.mlp:
        return replace(draft, mlp=draft.mlp - {index})
    return _removed(architecture, source, draft, kind)


def _removed(architecture: Architecture, source: random.Random, draft: Draft, kind: str) -> Draft:
    """One more removal of a kind, where there is still something to remove."""
    if kind == "kv group":
        return draft.without_group(*source.choice(_spare_groups(architecture, draft)))
    if kind == "width":
        index = source.choice(_with_mlp(architecture, draft))
        shares = [share for share in range(5, 65, 5) if share != draft.widths.get(index)]
        return draft.narrowed(index, source.choice(shares))
    if kind == "block":
        return draft.without_block(source.choice(_kept(architecture, draft)))
    if kind == "attention":
        return draft.without_attention(source.choice(_with_attention(architecture, draft)))
    return draft.without_mlp(source.choice(_with_mlp(architecture, draft)))


def _kept(architecture: Architecture, draft: Draft) -> list[int]:
    return [block.index for block in architecture.blocks if block.index not in draft.blocks]


def _with_attention(architecture: Architecture, draft: Draft) -> list[int]:
    return [index for index in _kept(architecture, draft) if index not in draft.attention]


def _with_mlp(architecture: Architecture, draft: Draft) -> list[int]:
    return [index for index in _kept(architecture, draft) if index not in draft.mlp]


def _spare_groups(architecture: Architecture, draft: Draft) -> list[tuple[int, int]]:
    """Every (block, KV group) that can go while another group of the block stays."""
    pairs: list[tuple[int, int]] = []
    for index in _with_attention(architecture, draft):
        attention = architecture.blocks[index].attention
        left = set(range(attention.kv_heads if attention else 0)) - draft.groups.get(index, frozenset())
        pairs += [(index, group) for group in sorted(left)] if len(left) > 1 else []
    return pairs


def _less(values: dict[int, V], index: int) -> dict[int, V]:
    return {key: value for key, value in values.items() if key != index}
