"""How recipes and results name a text: never by the folders of this computer."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from surgery.recipe.base import TextReference

if TYPE_CHECKING:  # the command line reads its options before torch is loaded
    from analysis.text import Purpose, Windows

WINDOW = 256
"""Tokens in a window where no number is given."""
HEALING_WINDOW = 512
"""The same of a healing text."""


def within(window: int, positions: int) -> int:
    """A window that is no longer than a model's positions; 0 positions stand for no limit."""
    return min(window, positions or window)


def shown_source(source: str) -> str:
    """A text's name without the folders of this computer."""
    return source if source.startswith("hub:") else Path(source).name


def text_reference(windows: Windows) -> TextReference:
    """How a recipe names token windows."""
    return TextReference(
        source=shown_source(windows.source),
        fingerprint=windows.text_fingerprint,
        window=windows.length,
        windows=windows.count,
        spread=windows.spread,
    )


@dataclass(frozen=True)
class TextChoice:
    """Which text is measured or analysed, and how it is cut. `content` holds a pasted text; with `spread` the windows
    are evenly spaced over the text, else they are its first ones. With `shorten` a window that is longer than the
    model's positions becomes as long as these, for where nobody asked for that length; else it is refused."""

    source: str = "embedded"
    window: int = WINDOW
    windows: int = 4
    purpose: Purpose = "evaluation"
    content: str | None = None
    spread: bool = False
    shorten: bool = False
