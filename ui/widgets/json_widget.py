"""What the pictures that are worked by hand have in common: they know only JSON.

What the person decided travels in ``value``; what the page knows about it travels in the read-only prop ``model``,
which the browser never posts back.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import gradio as gr


class JsonWidget(gr.HTML):
    """Listen with ``.input(..., trigger_mode="always_last", show_progress="hidden")``; a drag is one event. Handlers
    update it with ``(value=...)``, ``(model=...)`` or both at once.
    """

    HTML: ClassVar[str]
    """Name of the file of its template; so are the next two of its styles and its script."""
    CSS: ClassVar[tuple[str, ...]]
    JS: ClassVar[str]
    BLANK: ClassVar[Mapping[str, Any]]
    """The model where there is nothing to show."""

    def __init__(self, value: Any = None, *, model: Mapping[str, Any] | None = None, **options: Any) -> None:
        """Make the widget: `value` holds the decision, `model` what is shown."""
        super().__init__(
            value=self.nothing() if value is None else value,
            model=dict(self.BLANK if model is None else model),
            html_template=_asset(self.HTML),
            css_template="".join(map(_asset, self.CSS)),
            js_on_load=_asset(self.JS),
            apply_default_css=False,
            **options,
        )

    @abstractmethod
    def nothing(self) -> Any:
        """The decision where nothing was decided."""

    @abstractmethod
    def checked(self, value: object) -> Any:
        """A decision in its one normal form; `gr.Error` if it is none."""

    def preprocess(self, payload: object) -> Any:
        """The decision that the browser posted, checked; None if it was cleared."""
        return self.nothing() if payload is None else self.checked(payload)

    def postprocess(self, value: object) -> Any:
        """The decision on its way to the browser, checked in the same way."""
        return self.nothing() if value is None else self.checked(value)

    def api_info(self) -> dict[str, Any]:
        """The JSON schema of the value."""
        return {"type": "object"}

    def example_payload(self) -> Any:
        """A value as it is posted."""
        return self.nothing()

    def example_value(self) -> Any:
        """A value as a handler returns it."""
        return self.nothing()


def _asset(name: str) -> str:
    return (Path(__file__).parent / name).read_text(encoding="utf-8")
