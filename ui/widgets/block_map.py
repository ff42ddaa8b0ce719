"""The clickable map of a model's blocks: one column per block, its attention and its MLP switched off by a click.

The map knows only JSON. What the person decided travels in ``value``; what the page knows about the model
(influences, kept shares) travels in the read-only prop ``model``, which the browser never posts back.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypedDict

import gradio as gr


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


def _asset(kind: str) -> str:
    """The text of the file beside this module that holds the widget's html, css or js."""
    return Path(__file__).with_suffix(f".{kind}").read_text(encoding="utf-8")


class BlockMap(gr.HTML):
    """Blocks x {attention, MLP} as tiles that are clicked, dragged over or driven by the keyboard.

    Listen with ``.input(..., trigger_mode="always_last", show_progress="hidden")``; a drag is one event.
    Handlers update it with ``BlockMap(value=...)``, ``BlockMap(model=...)`` or both at once. To hide it, hide the
    column around it: Gradio 6.31 drops the props of a `gr.HTML` that itself went through ``visible=False``.
    """

    def __init__(
        self,
        value: Decisions | Callable[..., Decisions] | None = None,
        *,
        model: BlockMapModel | None = None,
        label: str | None = None,
        visible: bool = True,
        elem_id: str | None = None,
        elem_classes: list[str] | str | None = None,
        scale: int | None = None,
        min_width: int | None = None,
        render: bool = True,
        key: int | str | tuple[int | str, ...] | None = None,
    ) -> None:
        """Make the map: `value` holds the decisions, `model` what is shown (see `BlockMapModel`)."""
        super().__init__(
            value=nothing_removed() if value is None else value,
            model={"blocks": 0} if model is None else model,
            label=label,
            html_template=_asset("html"),
            css_template=_asset("css"),
            js_on_load=_asset("js"),
            apply_default_css=False,
            visible=visible,
            elem_id=elem_id,
            elem_classes=elem_classes,
            scale=scale,
            min_width=min_width,
            render=render,
            key=key,
        )

    @property
    def block_count(self) -> int:
        """How many blocks the model on the map has."""
        return int(self.props["model"].get("blocks", 0))

    def preprocess(self, payload: object) -> Decisions:  # type: ignore[override]
        """The decisions that the browser posted, checked; a cleared map posts nothing."""
        return nothing_removed() if payload is None else clean(payload, self.block_count)

    def postprocess(self, value: object) -> Decisions:  # type: ignore[override]
        """The decisions on their way to the browser, checked in the same way; None removes nothing."""
        return nothing_removed() if value is None else clean(value, self.block_count)

    def api_info(self) -> dict[str, Any]:
        """The JSON schema of the value."""
        return {"type": "object", "additionalProperties": {"type": "array", "items": {"type": "integer"}}}

    def example_payload(self) -> Decisions:
        """A value as it is posted."""
        return nothing_removed()

    def example_value(self) -> Decisions:
        """A value as a handler returns it."""
        return nothing_removed()
