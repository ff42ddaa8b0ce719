"""The kind that merges key/value heads: conversion to grouped-query or multi-query attention."""

from __future__ import annotations

from functools import partial
from typing import Any, Literal

from surgery.errors import InputError
from surgery.pruning.kinds import ENDS, Kind, Procedure
from surgery.pruning.request import Request
from surgery.recipe.edits import MergeKvHeads


def merge(how: Literal["mean", "first"], request: Request) -> list[Any]:
    """The edit that leaves the budget's key/value heads in each unprotected block; none where no block has more."""
    blocks, wanted = request.model.architecture.blocks, request.budget.kv_heads
    heads = {
        block.index: block.attention.kv_heads
        for block in blocks
        if block.attention is not None and not request.rules.protects(block.index, len(blocks))
    }
    assert wanted is not None  # suggest has checked
    if wanted < 1:
        raise InputError("At least one key/value head must stay: give --kv-heads 1 or more.")
    for block, count in heads.items():
        if count % wanted:
            raise InputError(
                f"The {count} key/value heads of block {block} cannot be merged evenly into {wanted}: choose a divisor "
                f"of {count}."
            )
    going = tuple(block for block, count in heads.items() if count > wanted)
    return [MergeKvHeads(blocks=going, kv_heads=wanted, how=how, chosen_by=request.origin)] if going else []


GQA = "GQA, arXiv 2305.13245"
KV_HEADS = Kind(
    "kv_heads",
    title="KV heads",
    does="merges key/value heads",
    ops={"merge_kv_heads": "KV head"},
    budgets=("kv_heads",),
    rules=ENDS,
    procedures=(
        Procedure("gqa_mean", "kv_heads", "Merged KV heads, mean", GQA, False, partial(merge, "mean")),
        Procedure("gqa_first", "kv_heads", "Merged KV heads, first", GQA, False, partial(merge, "first")),
    ),
)
