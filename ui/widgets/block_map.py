"""The clickable map of a model's blocks: one column per block, its attention and its MLP switched off by a click."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, TypedDict

import gradio as gr

from ui.widgets.json_widget import JsonWidget


class Decisions(TypedDict):
    """What is removed: whole blocks, and single parts of blocks that stay."""

    blocks: list[int]
    attention: list[int]
    mlp: list[int]


class BlockMapModel(TypedDict, total=False):
    """What the map shows; every list has one entry per block, and only ``blocks`` is needed."""

    blocks: int
    attention: list[float | None]
    mlp: list[float | None]
    block: list[float | None]
    width: list[float]
    heads: list[float]
    groups: list[list[bool]]
    locked: list[int]
    going: dict[str, list[int]]
    measure: str
    analysed: bool
    editable_attention: list[bool]
    editable_mlp: list[bool]


def nothing_removed() -> Decisions:
    """The decisions of a person who has not removed anything."""
    return {"blocks": [], "attention": [], "mlp": []}


def clean(value: object, blocks: int) -> Decisions:
    """Check what a browser posted for a model of `blocks` blocks and bring it into its one normal form.

    Indices come back unique and sorted, and a part of a removed block is not listed on its own.
    Anything else than an object with exactly the three lists of indices in range raises `gr.Error`.
    """
    if not isinstance(value, Mapping):
        raise gr.Error("The block map sent something that is not a set of decisions.")
    if set(value) != {"blocks", "attention", "mlp"}:
        raise gr.Error("The block map must send the lists blocks, attention and mlp, and nothing else.")
    gone = _indices(value["blocks"], "blocks", blocks)
    return {
        "blocks": sorted(gone),
        "attention": sorted(_indices(value["attention"], "attention", blocks) - gone),
        "mlp": sorted(_indices(value["mlp"], "mlp", blocks) - gone),
    }


def _indices(items: object, name: str, blocks: int) -> set[int]:
    """The indices in one posted list, or `gr.Error`."""
    if not isinstance(items, list):
        raise gr.Error(f"The block map sent {name} as something that is not a list.")
    for item in items:
        if type(item) is not int:  # a bool is an int to isinstance
            raise gr.Error(f"The block map sent a block number in {name} that is not a whole number.")
        if not 0 <= item < blocks:
            raise gr.Error(f"The block map sent a block in {name} that this model of {blocks} blocks does not have.")
    return set(items)


class BlockMap(JsonWidget):
    """Blocks x {attention, MLP} as tiles that are clicked, dragged over or driven by the keyboard.

    Its value are `Decisions`, its model a `BlockMapModel`. To hide it, hide the column around it: Gradio 6.31 drops the
    props of a `gr.HTML` that itself went through ``visible=False``.
    """

    HTML, CSS, JS = "block_map.html", ("block_map.css",), "block_map.js"
    BLANK: ClassVar = {"blocks": 0}

    @property
    def block_count(self) -> int:
        """How many blocks the model on the map has."""
        return int(self.props["model"].get("blocks", 0))

    def nothing(self) -> Decisions:
        """Nothing is removed."""
        return nothing_removed()

    def checked(self, value: object) -> Decisions:
        """Decisions on the blocks of the model on the map; `gr.Error` if they are none."""
        return clean(value, self.block_count)

    def api_info(self) -> dict[str, Any]:
        """The JSON schema of the value."""
        return {"type": "object", "additionalProperties": {"type": "array", "items": {"type": "integer"}}}
