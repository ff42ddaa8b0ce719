"""Single removals of blocks and sublayers."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from analysis.model.architecture import Architecture
from surgery.structure.structure import BlockSpec, Structure, whole

RemovalKind = Literal["blocks", "attention", "mlp"]
REMOVALS: dict[RemovalKind, str] = {
    "blocks": "blocks",
    "attention": "attention sublayers",
    "mlp": "MLP sublayers",
}
"""What can be removed from a model one at a time, and its name."""


@dataclass(frozen=True)
class Removal:
    """A block, or one of its sublayers, that can be removed."""

    kind: RemovalKind
    block: int


def sizes(architecture: Architecture, kind: RemovalKind) -> dict[int, int]:
    """Parameters that leave with each block, or with each one's sublayer, by block; blocks without it are left out."""
    found: dict[int, int] = {}
    for block in architecture.blocks:
        spec = whole(block)
        if kind == "blocks":
            found[block.index] = block.parameters
        elif getattr(spec, kind):
            found[block.index] = spec.parameters(block) - without_sublayer(spec, kind).parameters(block)
    return found


def without(structure: Structure, part: Removal) -> tuple[Structure, int]:
    """The structure without that part of a block it keeps, and the position of what changed."""
    position = next(index for index, spec in enumerate(structure.blocks) if spec.source == part.block)
    spec = structure.blocks[position]
    new = () if part.kind == "blocks" else (without_sublayer(spec, part.kind),)
    return replace(structure, blocks=(*structure.blocks[:position], *new, *structure.blocks[position + 1 :])), position


def without_sublayer(spec: BlockSpec, kind: Literal["attention", "mlp"]) -> BlockSpec:
    """The block without that sublayer."""
    return replace(spec, query_heads=(), kv_heads=()) if kind == "attention" else replace(spec, neurons=())
