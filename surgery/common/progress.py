"""Reporting progress, and stopping. Long work takes a `report`, and a `stop` that ends it by `Cancelled` once set."""

from __future__ import annotations

from collections.abc import Callable
from threading import Event

from surgery.errors import Cancelled

Report = Callable[[float, str], None]
"""Called with the share done, 0 to 1, and what is being done; may raise to stop the work."""


def raise_if_set(stop: Event | None) -> None:
    """Raise `Cancelled` once `stop` is set."""
    if stop is not None and stop.is_set():
        raise Cancelled("Cancelled.")


def checker_of(stop: Event | None) -> Callable[[], None]:
    """A function that raises `Cancelled` once `stop` is set."""
    return lambda: raise_if_set(stop)


def part_of(report: Report, start: float, end: float) -> Report:
    """A report for one part of the work, from `start` to `end` of the whole."""
    return lambda share, words: report(start + (end - start) * share, words)


def silent(fraction: float, message: str) -> None:
    """Progress callback that does nothing."""
