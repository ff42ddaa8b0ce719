"""How parts of the page look that are nothing but their content."""

from __future__ import annotations

from typing import Any

PLAIN: dict[str, Any] = {"padding": False, "apply_default_css": False}
"""Options of an HTML part without a frame."""
