"""The door for numbers: finite, and within what makes sense."""

from __future__ import annotations

from typing import Any

import pytest

from surgery.common.numbers import MOST, real, whole
from surgery.errors import InputError

NEVER = [float("nan"), float("inf"), float("-inf"), 10**400, -(10**400), 1e300, "3", None, True, [1]]


@pytest.mark.parametrize("value", [*NEVER, 2.5, -1, MOST + 1])
def test_no_whole_number(value: Any) -> None:
    with pytest.raises(InputError, match="x must be a whole number from 0 to 2,147,483,648"):
        whole(value, "x")


@pytest.mark.parametrize("value", [*NEVER, -0.5, 1.5])
def test_no_number(value: Any) -> None:
    with pytest.raises(InputError, match="x must be a number from 0 to 1"):
        real(value, "x", 0, 1)


def test_numbers() -> None:
    assert whole(3.0, "x") == 3 and type(whole(3.0, "x")) is int and whole(MOST, "x") == MOST
    assert real(1, "x") == 1.0 and type(real(1, "x")) is float
