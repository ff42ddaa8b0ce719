"""Every kind of cut, and every way of choosing that a person can ask for by name.

A new kind is a file with its `Kind`, entered in `KINDS`; a new method is a function and an entry of the registry.
"""

from __future__ import annotations

from typing import Any

from analysis.importance import registry
from analysis.importance.registry import Method
from surgery.errors import InputError
from surgery.pruning.blocks import ATTENTION, BLOCKS, MLP, SUBLAYERS
from surgery.pruning.channels import HIDDEN
from surgery.pruning.heads import HEADS
from surgery.pruning.kinds import Kind, Procedure
from surgery.pruning.kv_heads import KV_HEADS
from surgery.pruning.neurons import NEURONS

KINDS: dict[str, Kind] = {
    kind.name: kind for kind in (BLOCKS, ATTENTION, MLP, SUBLAYERS, NEURONS, HEADS, KV_HEADS, HIDDEN)
}
"""By name, in the order of menus."""
LISTED = ("name", "kind", "title", "source", "needs_gradients", "needs_text")


def everything() -> tuple[Method | Procedure, ...]:
    """The registry's methods and the procedures."""
    return (*registry.METHODS, *(procedure for kind in KINDS.values() for procedure in kind.procedures))


def entry(name: str) -> Method | Procedure:
    """The method or procedure of that name. Raises InputError: unknown; the message lists the names."""
    for item in everything():
        if item.name == name:
            return item
    raise InputError(f"There is no method {name!r}: use one of {', '.join(item.name for item in everything())}.")


def listed() -> list[dict[str, Any]]:
    """Everything that `methods` prints."""
    return [{key: getattr(item, key) for key in LISTED} for item in everything()]


def rules_of(item: Method | Procedure) -> tuple[str, ...]:
    """Names of the rules that apply."""
    return KINDS[item.kind].rules_of(item)
