"""How parts of the page look that are nothing but their content, and how a text leaves it as a file."""

from __future__ import annotations

from typing import Any

PLAIN: dict[str, Any] = {"padding": False, "apply_default_css": False}
"""Options of an HTML part without a frame."""


def download_js(name: str, kind: str) -> str:
    """Script of an event that saves the text it is given.

    Args:
        name: of the file.
        kind: its media type.
    """
    return f"""(text) => {{
  if (!text) return;
  const link = document.createElement('a');
  link.href = URL.createObjectURL(new Blob([text], {{type: '{kind}'}}));
  link.download = '{name}';
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
}}"""
