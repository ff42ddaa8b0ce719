"""One block by hand: its heads by KV group, switched off by a click, and its neurons as a strip that is narrowed.

The widget knows only JSON. What the person decided about the block travels in ``value``; what the page knows of it
(statistics, scores) travels in the read-only prop ``model``, which the browser never posts back.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypedDict

import gradio as gr

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


def _asset(name: str) -> str:
    return (Path(__file__).parent / name).read_text(encoding="utf-8")


class BlockDetail(gr.HTML):
    """Heads by KV group as buttons and neurons as a strip with a boundary, worked by pointer or keyboard.

    Listen with ``.input(..., trigger_mode="always_last", show_progress="hidden")``; a drag is one event. Handlers
    update it with ``BlockDetail(value=...)``, ``BlockDetail(model=...)`` or both at once. Without a block it is empty.
    It looks like the block map, whose style sheet it shares.
    """

    def __init__(
        self,
        value: Cut | None = None,
        *,
        model: Mapping[str, Any] | None = None,
        label: str | None = None,
        visible: bool = True,
        elem_id: str | None = None,
        elem_classes: list[str] | str | None = None,
        scale: int | None = None,
        min_width: int | None = None,
        render: bool = True,
        key: int | str | tuple[int | str, ...] | None = None,
    ) -> None:
        """Make the widget: `value` holds the decision, `model` what is shown (see `ui.presenters.detail_widget`)."""
        super().__init__(
            value=no_block() if value is None else value,
            model={"block": None} if model is None else dict(model),
            label=label,
            html_template=_asset("block_detail.html"),
            css_template=_asset("block_map.css") + _asset("block_detail.css"),
            js_on_load=_asset("block_detail.js"),
            apply_default_css=False,
            visible=visible,
            elem_id=elem_id,
            elem_classes=elem_classes,
            scale=scale,
            min_width=min_width,
            render=render,
            key=key,
        )

    def preprocess(self, payload: object) -> Cut:  # type: ignore[override]
        """The decision that the browser posted, checked; an empty widget posts nothing."""
        return no_block() if payload is None else clean(payload)

    def postprocess(self, value: object) -> Cut:  # type: ignore[override]
        """The decision on its way to the browser, checked in the same way; None shows no block."""
        return no_block() if value is None else clean(value)

    def api_info(self) -> dict[str, Any]:
        """The JSON schema of the value."""
        return {"type": "object"}

    def example_payload(self) -> Cut:
        """A value as it is posted."""
        return no_block()

    def example_value(self) -> Cut:
        """A value as a handler returns it."""
        return no_block()
