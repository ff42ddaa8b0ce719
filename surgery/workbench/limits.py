"""What a server lets its visitors do: read once from the environment when it starts, then handed down."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from surgery.errors import InputError
from surgery.models.loading import DEFAULT

if TYPE_CHECKING:
    from surgery.recipe.texts import TextChoice

PREFIX = "MODEL_SURGERY_"
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}")


@dataclass(frozen=True)
class Limits:
    """None, or an empty set, stands for no limit."""

    models: frozenset[str] = frozenset()
    """That may be opened: `default` and Hub ids."""
    tokens: int = 2**17
    """That one measurement may take."""
    upload: str = "16mb"
    """The largest upload, as Gradio reads it."""
    minutes: float | None = None
    """The longest healing."""
    local_files: bool = True
    """Whether a model may be named by a path of the server."""

    def check_model(self, source: str) -> None:
        """Refuse a model that is not to be opened here.

        Raises:
            InputError: it names what is allowed.
        """
        if self.models and source not in self.models:
            raise InputError(f"This server opens only {', '.join(sorted(self.models))}: choose one of them.")
        if not self.local_files and source != DEFAULT and not HUB_ID.fullmatch(source):
            raise InputError("This server opens no files of its own: name a model of the Hub (owner/name), or default.")

    def check_text(self, text: TextChoice) -> None:
        """Refuse a text that takes too long.

        Raises:
            InputError: it names the limit.
        """
        if text.window * text.windows > self.tokens:
            raise InputError(f"This server measures at most {self.tokens:,} tokens at once: take fewer windows.")

    def check_minutes(self, minutes: float) -> None:
        """Refuse a healing that takes too long.

        Raises:
            InputError: it names the limit.
        """
        if self.minutes is not None and minutes > self.minutes:
            raise InputError(f"This server heals for at most {self.minutes:g} minutes: choose a shorter preset.")


def hosted(limits: Limits) -> Limits:
    """For callers whom nobody knows: no files of the server."""
    return replace(limits, local_files=False)


def read_limits(environment: Mapping[str, str]) -> Limits:
    """From MODEL_SURGERY_MODELS, _TOKENS, _UPLOAD, _MINUTES and _LOCAL_FILES, each optional.

    Raises:
        InputError: a value makes no sense; the message names the variable.
    """
    given = {name: environment.get(PREFIX + name.upper(), "").strip() for name in Limits.__dataclass_fields__}
    found: dict[str, Any] = {name: _value(name, text) for name, text in given.items() if text}
    return Limits(**found)


def _value(name: str, text: str) -> Any:
    try:
        match name:
            case "models":
                names = frozenset(part.strip() for part in text.split(",") if part.strip())
                if not names or not all(one == DEFAULT or HUB_ID.fullmatch(one) for one in names):
                    raise ValueError
                return names
            case "tokens":
                number = int(text)
                if number < 2:
                    raise ValueError
                return number
            case "minutes":
                minutes = float(text)
                if not 0 < minutes < 1e6:
                    raise ValueError
                return minutes
            case "upload":
                if not re.fullmatch(r"[1-9]\d{0,5}\s*(kb|mb|gb)", text.lower()):
                    raise ValueError
                return text.lower().replace(" ", "")
            case _:
                return {"0": False, "1": True}[text]
    except (ValueError, KeyError):
        raise InputError(f"{PREFIX}{name.upper()}={text[:80]!r} is not {EXPECTED[name]}: correct it.") from None


EXPECTED = {
    "models": "a list of default and Hub ids (owner/name) between commas",
    "tokens": "a whole number of tokens from 2 on",
    "upload": "a size like 16mb",
    "minutes": "a number of minutes above 0",
    "local_files": "0 or 1",
}
