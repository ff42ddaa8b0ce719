"""A slider that brings a typed number into its range: half of "150" is no error."""

from __future__ import annotations

import gradio as gr


class Ratio(gr.Slider):
    """A `gr.Slider` that refuses nothing; None means that its box is empty."""

    is_template = True  # the browser's side is the slider's own

    def preprocess(self, payload: float | None) -> float | None:  # type: ignore[override]
        """The number in the slider's range."""
        return None if payload is None else min(max(payload, self.minimum), self.maximum)
