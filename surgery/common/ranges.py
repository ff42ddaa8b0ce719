"""Compact index sets: "3-7,12" for (3, 4, 5, 6, 7, 12)."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from typing import Annotated, Any

from pydantic import BeforeValidator, PlainSerializer

from surgery.errors import InputError

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
    return ",".join(format_runs(sorted(set(indices))))


def format_runs(order: Iterable[int]) -> list[str]:
    """Each run of an order in words: "0-2", "2", "3-5" for (0, 1, 2, 2, 3, 4, 5)."""
    return [str(first) if first == last else f"{first}-{last}" for first, last in runs(order)]


def runs(order: Iterable[int]) -> list[tuple[int, int]]:
    """An order of indices as runs in which each index is one more than the one before: (first, last) of each."""
    found: list[tuple[int, int]] = []
    for index in order:
        if found and index == found[-1][1] + 1:
            found[-1] = (found[-1][0], index)
        else:
            found.append((index, index))
    return found


def parse_blocks(text: str) -> tuple[int, ...]:
    """Blocks as a compact range (3,5-7); empty for none.

    Raises:
        InputError: not such a range.
    """
    try:
        return parse_ranges(text) if text.strip() else ()
    except ValueError as error:
        raise InputError(f"These are no blocks: {error}.") from None


def check_blocks(blocks: Collection[int], count: int, refusal: str) -> None:
    """Refuse blocks that a model does not have.

    Args:
        blocks: their indices.
        count: blocks of the model.
        refusal: the sentence that refuses them, with `{last}` for the model's last block.

    Raises:
        InputError: an index is not between 0 and `count` - 1.
    """
    if any(not 0 <= block < count for block in blocks):
        raise InputError(refusal.format(last=count - 1))


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
