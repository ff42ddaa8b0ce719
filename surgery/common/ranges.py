"""Compact index sets: "3-7,12" for (3, 4, 5, 6, 7, 12)."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Annotated, Any

from pydantic import BeforeValidator, PlainSerializer

LARGEST_INDEX = 2**20
MOST_INDICES = 2**20
_PART = re.compile(r" *([0-9]{1,7})(?: *- *([0-9]{1,7}))? *")


def parse_ranges(text: str) -> tuple[int, ...]:
    """Indices of a compact range, ascending.

    Raises:
        ValueError: malformed, empty, repeated, out of order, or too large.
    """
    indices: list[int] = []
    for part in text.split(","):
        match = _PART.fullmatch(part)
        if not match:
            raise ValueError(f"{text[:40]!r} is not a range like '3-7,12'")
        first, last = int(match[1]), int(match[2] or match[1])
        if first > last or (indices and first <= indices[-1]):
            raise ValueError(f"{text[:40]!r} is not in ascending order without repeats")
        if last >= LARGEST_INDEX or len(indices) + last - first >= MOST_INDICES:
            raise ValueError(f"an index of {text[:40]!r} is out of any model's range")
        indices.extend(range(first, last + 1))
    return tuple(indices)


def length(text: str) -> int:
    """How many indices a compact range would list, without listing them; malformed parts count as none."""
    found = [match for match in map(_PART.fullmatch, text.split(",")) if match]
    return sum(max(0, int(match[2] or match[1]) - int(match[1])) + 1 for match in found)


def format_ranges(indices: Iterable[int]) -> str:
    """The compact form of a set of indices."""
    parts: list[str] = []
    run: list[int] = []
    for index in [*sorted(set(indices)), None]:
        if run and (index is None or index != run[-1] + 1):
            parts.append(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}")
            run = []
        if index is not None:
            run.append(index)
    return ",".join(parts)


def _validate(value: Any) -> tuple[int, ...]:
    if isinstance(value, str):
        return parse_ranges(value)
    if isinstance(value, (list, tuple, set, frozenset)) and all(type(index) is int for index in value) and value:
        return parse_ranges(format_ranges(value)) if len(set(value)) == len(value) else _repeated()
    raise ValueError("an index set is a range like '3-7,12'")


def _repeated() -> tuple[int, ...]:
    raise ValueError("an index set names an index twice")


Indices = Annotated[tuple[int, ...], BeforeValidator(_validate), PlainSerializer(format_ranges, return_type=str)]
"""A pydantic field type: a tuple of ascending indices that reads and writes the compact form."""
