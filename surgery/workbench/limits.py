"""What a server lets its visitors do: read once from the environment when it starts, then handed down."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import AfterValidator, BeforeValidator, Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from surgery.errors import InputError
from surgery.models.loading import DEFAULT

if TYPE_CHECKING:
    from surgery.recipe.texts import TextChoice

PREFIX = "MODEL_SURGERY_"
ANY = "any"
"""In place of a limit in a variable: there is none."""
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}")


def _minutes(value: Any) -> Any:
    """A variable's text as minutes."""
    return None if isinstance(value, str) and value.lower() == ANY else value if value is None else float(value)


def _names(value: Any) -> Any:
    """A variable's text as names of models."""
    if not isinstance(value, str):
        return value
    if value.lower() == ANY:
        return frozenset()
    names = [part.strip() for part in value.split(",") if part.strip()]
    if not names or not all(name == DEFAULT or HUB_ID.fullmatch(name) for name in names):
        raise ValueError("no names of models")
    return names


@dataclass(frozen=True)
class Limits:
    """None, or an empty set, stands for no limit. A field's description says what its variable must hold."""

    models: Annotated[frozenset[str], BeforeValidator(_names)] = Field(
        default=frozenset(), description="a list of default and Hub ids (owner/name) between commas, or any"
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
    minutes: Annotated[Annotated[float, Field(gt=0, lt=1e6)] | None, BeforeValidator(_minutes)] = Field(
        default=None, description="a number of minutes above 0, or any"
    )
    """The longest healing."""
    local_files: Annotated[bool, BeforeValidator(lambda value: {"0": False, "1": True}.get(value, value))] = Field(
        default=True, strict=True, description="0 or 1"
    )
    """Whether a model, or a folder of texts, may be named by a path of the server."""
    downloads: Annotated[int, BeforeValidator(int)] = Field(
        default=1, ge=1, le=64, description="a whole number of models from 1 on"
    )
    """Models that are fetched and loaded at the same time."""
    windows: Annotated[int, BeforeValidator(int)] = Field(
        default=4, ge=1, le=512, description="a whole number of windows from 1 to 512"
    )
    """Windows of 256 tokens on which a new tab measures; it analyses on four times as many. Fewer answer sooner."""

    def check_model(self, source: str) -> None:
        """Refuse a model that is not to be opened here. Raises InputError, which names what is allowed."""
        if self.models and source not in self.models:
            raise InputError(f"This server opens only {', '.join(sorted(self.models))}: choose one of them.")
        if not self.local_files and source != DEFAULT and not _on_hub(source):
            raise InputError("This server opens no files of its own: name a model of the Hub (owner/name), or default.")

    def check_text(self, text: TextChoice) -> None:
        """Refuse a text of the server's own, or one that takes too long. Raises InputError, which names the limit."""
        name = text.source.removeprefix("hub:").partition(":")[0]
        if not self.local_files and text.source.startswith("hub:") and not _on_hub(name):
            raise InputError("This server reads no folder of its own: name a data set of the Hub (hub:owner/name).")
        if text.window * text.windows > self.tokens:
            raise InputError(f"This server measures at most {self.tokens:,} tokens at once: take fewer windows.")

    def words(self) -> str:
        """The limits in force, for the log."""
        most = "any length" if self.minutes is None else f"at most {self.minutes:g} minutes"
        paths = "yes" if self.local_files else "no"
        return (
            f"Limits: models {', '.join(sorted(self.models)) or ANY}; local paths {paths}; healing {most}; "
            f"{self.tokens:,} tokens a measurement; uploads up to {self.upload}; models fetched at the same time: "
            f"{self.downloads}."
        )

    def check_minutes(self, minutes: float) -> None:
        """Refuse a healing that takes too long. Raises InputError, which names the limit."""
        if self.minutes is not None and minutes > self.minutes:
            raise InputError(f"This server heals for at most {self.minutes:g} minutes: choose a shorter preset.")


def _on_hub(name: str) -> bool:
    """Whether a name is the Hub's. Libraries take it for a folder where there is one of that name."""
    return HUB_ID.fullmatch(name) is not None and not Path(name).exists()


PUBLIC = Limits(
    models=frozenset({DEFAULT, "HuggingFaceTB/SmolLM2-135M", "HuggingFaceTB/SmolLM2-360M-Instruct",
                      "Qwen/Qwen2.5-0.5B-Instruct", "Qwen/Qwen3-0.6B"}),
    minutes=5.0,
    local_files=False,
)  # fmt: skip
"""What a public Space lets its visitors do, where no variable says otherwise."""


def hosted(limits: Limits) -> Limits:
    """For callers whom nobody knows: no files of the server."""
    return replace(limits, local_files=False)


def read_limits(environment: Mapping[str, str]) -> Limits:
    """From MODEL_SURGERY_MODELS, _TOKENS, _UPLOAD, _MINUTES, _LOCAL_FILES, _DOWNLOADS and _WINDOWS, each optional.

    On a Space (SPACE_ID is set) the defaults are those of a public server.

    Raises:
        InputError: a value makes no sense; the message names the variable.
    """
    limits = TypeAdapter(Limits)
    fields = limits.json_schema()["properties"]
    given = {name: environment.get(PREFIX + name.upper(), "").strip() for name in fields}
    try:
        said = limits.validate_python({name: text for name, text in given.items() if text})
        default = PUBLIC if environment.get("SPACE_ID") else Limits()
        return replace(default, **{name: getattr(said, name) for name, text in given.items() if text})
    except ValidationError as error:
        name = str(error.errors()[0]["loc"][0])
        shown = f"{PREFIX}{name.upper()}={given[name][:80]!r}"
        raise InputError(f"{shown} is not {fields[name]['description']}: correct it.") from None
