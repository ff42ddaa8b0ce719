"""How recipes and results name a text: never by the folders of this computer."""

from __future__ import annotations

from pathlib import Path

from analysis.text import Windows
from surgery.recipe import TextReference


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
