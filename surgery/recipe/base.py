"""What edits are made of: references to models and texts, origins, bounds."""

from __future__ import annotations

import json
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, JsonValue, field_validator

LARGEST_NOTE = 64 * 2**10
"""Bytes of JSON in `target`, `results` or a budget."""


class _Frozen(BaseModel):
    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        strict=True,
        populate_by_name=True,
        ser_json_inf_nan="strings",
        allow_inf_nan=False,
    )


class ModelReference(_Frozen):
    """Which model the indices number."""

    id: str = Field(min_length=1, max_length=500)
    revision: str | None = Field(default=None, max_length=200)
    fingerprint: str | None = Field(default=None, max_length=64)


class ChosenBy(_Frozen):
    """Where an edit's indices came from; informative, the indices are what counts."""

    method: str = Field(max_length=100)
    budget: dict[str, JsonValue] = Field(default_factory=dict)
    text: dict[str, JsonValue] | None = None

    @field_validator("budget", "text")
    @classmethod
    def _bounded(cls, value: Any) -> Any:
        return _bounded(value)


class _Edit(_Frozen):
    chosen_by: ChosenBy | None = None


class TextReference(_Frozen):
    """Which token windows an edit was computed from. A file is named without its folders, and found by fingerprint."""

    source: str = Field(min_length=1, max_length=500)
    fingerprint: str = Field(min_length=1, max_length=64)
    window: int = Field(ge=2, le=2**20)
    windows: int = Field(ge=1, le=2**20)
    spread: bool = False
    """Whether the windows are evenly spaced over the text, instead of its first ones."""


def _sensible(value: Any) -> None:
    """Raise ValueError for a whole number that readers of JSON cut short: beyond 64 bits."""
    if isinstance(value, dict | list):
        for inner in value.values() if isinstance(value, dict) else value:
            _sensible(inner)
    elif isinstance(value, int) and not -(2**63) <= value < 2**63:
        raise ValueError


def _bounded(value: Any) -> Any:
    """Notes that can be written back as JSON, and are not too large."""
    try:
        written = json.dumps(value, ensure_ascii=False, allow_nan=False).encode()
        _sensible(value)
    except ValueError:
        raise ValueError("it holds a number or a character that JSON cannot express") from None
    if len(written) > LARGEST_NOTE:
        raise ValueError(f"it holds more than {LARGEST_NOTE // 1024} KiB of notes")
    return value
