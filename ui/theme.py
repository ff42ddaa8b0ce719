"""Looks and limits of the page as a whole."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gradio as gr

UPLOAD_LIMIT = "16mb"
THREADS = 128
"""Events that are answered at one time: a look that awaits a number holds one for a moment."""
PLAIN: dict[str, Any] = {"padding": False, "apply_default_css": False}
"""Options of an HTML part without a frame."""


def launch_arguments(upload: str = UPLOAD_LIMIT) -> dict[str, Any]:
    """What `launch` needs for this page: theme, style, limits; `upload` is the largest file."""
    theme = gr.themes.Default(
        primary_hue="teal",
        neutral_hue="slate",
        font=("system-ui", "-apple-system", "Segoe UI", "Roboto", "sans-serif"),
        font_mono=("ui-monospace", "Consolas", "monospace"),
    ).set(
        body_background_fill="*neutral_50",
        body_text_color_subdued="*neutral_500",
        body_text_color_subdued_dark="*neutral_400",
        block_info_text_color="*neutral_500",
        block_info_text_color_dark="*neutral_400",
        button_primary_background_fill="*primary_700",
        button_primary_background_fill_hover="*primary_800",
        button_primary_background_fill_dark="*primary_700",
        button_primary_background_fill_hover_dark="*primary_600",
    )
    return {
        "theme": theme,
        "css": (Path(__file__).parent / "style.css").read_text("utf-8"),
        "max_file_size": upload,
        "run_history": False,
        "max_threads": THREADS,
    }
