"""The edits of the structure, the compensation and the low-rank repair."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator

from surgery.common.ranges import LARGEST_INDEX, Indices
from surgery.recipe.base import TextReference, _Edit

LONGEST_ORDER = 4096
"""Blocks that an arrangement may list."""


class RemoveBlocks(_Edit):
    """Remove whole blocks."""

    op: Literal["remove_blocks"] = "remove_blocks"
    blocks: Indices


class RemoveAttention(_Edit):
    """Remove the attention sublayer of blocks, with the norms that serve it."""

    op: Literal["remove_attention"] = "remove_attention"
    blocks: Indices


class RemoveMlp(_Edit):
    """Remove the MLP sublayer of blocks, with the norms that serve it."""

    op: Literal["remove_mlp"] = "remove_mlp"
    blocks: Indices


def _block_key(value: Any) -> Any:
    """JSON keys are strings; accept only plain decimal block numbers."""
    if isinstance(value, dict):
        for key in value:
            text = str(key)
            if not (text.isascii() and text.isdigit() and len(text) <= 7 and str(int(text)) == text):
                raise ValueError(f"{text[:40]!r} is not a block number")
        return {int(key): indices for key, indices in value.items()}
    return value


class _PerBlock(_Edit):
    removed: dict[int, Indices] = Field(min_length=1)

    @field_validator("removed", mode="before")
    @classmethod
    def _keys(cls, value: Any) -> Any:
        return _block_key(value)

    @field_validator("removed")
    @classmethod
    def _ordered(cls, value: dict[int, tuple[int, ...]]) -> dict[int, tuple[int, ...]]:
        return dict(sorted(value.items()))


class PruneNeurons(_PerBlock):
    """Remove MLP neurons, by block."""

    op: Literal["prune_neurons"] = "prune_neurons"


class PruneKvGroups(_PerBlock):
    """Remove key/value heads with all their query heads, by block."""

    op: Literal["prune_kv_groups"] = "prune_kv_groups"


class PruneHeads(_PerBlock):
    """Remove query heads, by block; every KV group that stays must keep the same number."""

    op: Literal["prune_heads"] = "prune_heads"


class ArrangeBlocks(_Edit):
    """Put source blocks in another order, or repeat some; what the other edits take from a block is gone in each."""

    op: Literal["arrange_blocks"] = "arrange_blocks"
    order: tuple[Annotated[int, Field(ge=0, lt=LARGEST_INDEX)], ...] = Field(
        min_length=1, max_length=LONGEST_ORDER, strict=False
    )


class MergeKvHeads(_Edit):
    """Merge neighbouring key/value heads of blocks until `kv_heads` are left (GQA and MQA conversion)."""

    op: Literal["merge_kv_heads"] = "merge_kv_heads"
    blocks: Indices
    kv_heads: int = Field(ge=1)
    how: Literal["mean", "first"] = "mean"


class PruneHidden(_Edit):
    """Remove channels of the residual stream, in every block, the embeddings and the head."""

    op: Literal["prune_hidden"] = "prune_hidden"
    removed: Indices


How = Literal["least_squares", "linear_patch", "bias"]


class Compensate(_Edit):
    """Refit weights that stay, without training, to make up for what the edits before it removed.

    `least_squares` refits the output projections of narrowed sublayers, `bias` adds the removed inputs' mean
    contribution, `linear_patch` folds a map across each run of removed blocks into the MLP before it. `ridge` is
    relative to the mean diagonal of the input moments; None chooses it, sublayer by sublayer, on windows kept aside,
    and leaves out what does not help there.
    """

    op: Literal["compensate"] = "compensate"
    how: How
    text: TextReference
    blocks: Indices | None = None
    ridge: float | None = Field(default=None, ge=0, le=1e6, allow_inf_nan=False)


class Eora(_Edit):
    """Repair a compressed model by low-rank matrices beside its linears, from a text and without training."""

    op: Literal["eora"] = "eora"
    rank: int = Field(ge=1, le=4096)
    text: TextReference
