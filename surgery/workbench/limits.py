"""What a server lets its visitors do: read once from the environment when it starts, then handed down."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import AfterValidator, BeforeValidator, Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from surgery.errors import InputError
from surgery.models.loading import DEFAULT

if TYPE_CHECKING:
    from surgery.recipe.texts import TextChoice

PREFIX = "MODEL_SURGERY_"
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}")


def _names(value: Any) -> Any:
    """A variable's text as names of models."""
    if not isinstance(value, str):
        return value
    names = [part.strip() for part in value.split(",") if part.strip()]
    if not names or not all(name == DEFAULT or HUB_ID.fullmatch(name) for name in names):
        raise ValueError("no names of models")
    return names


@dataclass(frozen=True)
class Limits:
    """None, or an empty set, stands for no limit. A field's description says what its variable must hold."""

    models: Annotated[frozenset[str], BeforeValidator(_names)] = Field(
        default=frozenset(), description="a list of default and Hub ids (owner/name) between commas"
    )
    """That may be opened: `default` and Hub ids."""
    tokens: Annotated[int, BeforeValidator(int)] = Field(
        default=2**17, ge=2, description="a whole number of tokens from 2 on"
    )
    """That one measurement may take."""
    upload: Annotated[str, BeforeValidator(str.lower), AfterValidator(lambda size: size.replace(" ", ""))] = Field(
        default="16mb", pattern=r"^[1-9]\d{0,5}\s*(kb|mb|gb)$", description="a size like 16mb"
    )
    """The largest upload, as Gradio reads it."""
    minutes: Annotated[float, BeforeValidator(float), Field(gt=0, lt=1e6)] | None = Field(
        default=None, description="a number of minutes above 0"
    )
    """The longest healing."""
    local_files: Annotated[bool, BeforeValidator(lambda value: {"0": False, "1": True}.get(value, value))] = Field(
        default=True, strict=True, description="0 or 1"
    )
    """Whether a model may be named by a path of the server."""

    def check_model(self, source: str) -> None:
        """Refuse a model that is not to be opened here. Raises InputError, which names what is allowed."""
        if self.models and source not in self.models:
            raise InputError(f"This server opens only {', '.join(sorted(self.models))}: choose one of them.")
        if not self.local_files and source != DEFAULT and not HUB_ID.fullmatch(source):
            raise InputError("This server opens no files of its own: name a model of the Hub (owner/name), or default.")

    def check_text(self, text: TextChoice) -> None:
        """Refuse a text that takes too long. Raises InputError, which names the limit."""
        if text.window * text.windows > self.tokens:
            raise InputError(f"This server measures at most {self.tokens:,} tokens at once: take fewer windows.")

    def check_minutes(self, minutes: float) -> None:
        """Refuse a healing that takes too long. Raises InputError, which names the limit."""
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
    limits = TypeAdapter(Limits)
    fields = limits.json_schema()["properties"]
    given = {name: environment.get(PREFIX + name.upper(), "").strip() for name in fields}
    try:
        return limits.validate_python({name: text for name, text in given.items() if text})
    except ValidationError as error:
        name = str(error.errors()[0]["loc"][0])
        shown = f"{PREFIX}{name.upper()}={given[name][:80]!r}"
        raise InputError(f"{shown} is not {fields[name]['description']}: correct it.") from None
