"""The row of numbers: parameters, file, memory, speed, perplexity, and whether it fits."""

from __future__ import annotations

from ui.panel import Panel
from ui.presenters.tiles import tiles


class Numbers(Panel):
    """The tiles."""

    def fields(self) -> None:
        """One piece of HTML."""
        self.html("tiles", tiles)
