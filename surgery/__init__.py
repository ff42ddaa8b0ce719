"""Headless core: recipes, structure, loading, live evaluation, building, memory, jobs and the command line."""

from __future__ import annotations

from typing import Any


def __getattr__(name: str) -> Any:
    """`surgery.load(...)`, without loading torch when the package is imported."""
    if name == "load":
        from surgery.loading import load

        return load
    raise AttributeError(f"module 'surgery' has no attribute {name!r}")
