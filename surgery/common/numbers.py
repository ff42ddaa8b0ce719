"""The door for numbers that a person, a page or a program gives: finite, and within what makes sense."""

from __future__ import annotations

from typing import Any

from surgery.errors import InputError

MOST = 2**31
"""No option counts further, and every program that reads an answer can hold this."""
LARGEST = 1e9
"""No option measures further."""


def whole(value: Any, name: str, least: int = 0, most: int = MOST) -> int:
    """A whole number, which a browser may send as 3.0.

    Args:
        value: of any type.
        name: how the sentence calls it.

    Raises:
        InputError: no whole number, or not between `least` and `most`.
    """
    number = not isinstance(value, bool) and isinstance(value, int | float)
    if not number or not least <= value <= most or value != int(value):
        raise InputError(f"{name} must be a whole number from {least:,} to {most:,}.")
    return int(value)


def real(value: Any, name: str, least: float = -LARGEST, most: float = LARGEST) -> float:
    """A finite number. Arguments and errors as `whole`."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not least <= value <= most:
        raise InputError(f"{name} must be a number from {least:,.10g} to {most:,.10g}.")
    return float(value)
