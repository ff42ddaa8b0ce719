"""One block by hand: its heads by KV group, switched off by a click, and its neurons as a strip that is narrowed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, TypedDict

import gradio as gr

from ui.widgets.json_widget import JsonWidget

MOST_UNITS = 2**16
"""Heads that a value may list."""
LARGEST_NUMBER = 2**24
"""Of a block or a width."""


class Cut(TypedDict):
    """The whole decision on one block: what of its attention is off, and how wide its MLP is."""

    block: int | None
    groups: list[int]
    """KV groups that are off, with their query heads."""
    heads: list[int]
    """Query heads that are off alone."""
    width: int


def no_block() -> Cut:
    """The decision where no block is shown."""
    return {"block": None, "groups": [], "heads": [], "width": 0}


def clean(value: object) -> Cut:
    """Check what a browser posted and bring it into its one normal form: indices unique and sorted.

    Whether the block has such groups, heads and neurons is for the session to say. Anything else than an object with
    exactly the four entries raises `gr.Error`.
    """
    if not isinstance(value, Mapping) or set(value) != set(no_block()):
        raise gr.Error("The detail of a block must send the block, groups, heads and a width, and nothing else.")
    block = value["block"]
    return {
        "block": None if block is None else _number(block, "block"),
        "groups": _indices(value["groups"], "groups"),
        "heads": _indices(value["heads"], "heads"),
        "width": _number(value["width"], "width"),
    }


def _indices(items: object, name: str) -> list[int]:
    if not isinstance(items, list) or len(items) > MOST_UNITS:
        raise gr.Error(f"The detail of a block sent {name} as something that is not a short list.")
    return sorted({_number(item, name) for item in items})


def _number(item: object, name: str) -> int:
    if type(item) is not int or not 0 <= item <= LARGEST_NUMBER:  # a bool is an int to isinstance
        raise gr.Error(f"The detail of a block sent a number in {name} that makes no sense.")
    return item


class BlockDetail(JsonWidget):
    """Heads by KV group as buttons and neurons as a strip with a boundary, worked by pointer or keyboard.

    Its value is a `Cut`, its model is of `ui.presenters.detail_widget`. Without a block it is empty. It looks like the
    block map, whose style sheet it shares.
    """

    HTML, CSS, JS = "block_detail.html", ("block_map.css", "block_detail.css"), "block_detail.js"
    BLANK: ClassVar = {"block": None}

    def nothing(self) -> Cut:
        """No block is shown."""
        return no_block()

    def checked(self, value: object) -> Cut:
        """The decision on one block; `gr.Error` if it is none."""
        return clean(value)
