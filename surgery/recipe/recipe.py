"""The recipe: a small, immutable, validated, versioned JSON document of edits in the source model's numbering."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from pathlib import Path
from typing import Annotated, Any, Final, Literal, TypeVar

from pydantic import Field, JsonValue, TypeAdapter, ValidationError, field_validator

from analysis.files import size_of
from surgery.common.files import write_atomically
from surgery.common.ranges import length
from surgery.errors import InputError, RecipeError
from surgery.recipe.base import ModelReference, TextReference, _bounded, _Edit, _Frozen
from surgery.recipe.edits import (
    ArrangeBlocks,
    Compensate,
    Eora,
    MergeKvHeads,
    PruneHeads,
    PruneHidden,
    PruneKvGroups,
    PruneNeurons,
    RemoveAttention,
    RemoveBlocks,
    RemoveMlp,
)
from surgery.recipe.healing import Heal
from surgery.recipe.storage import Quantize

E = TypeVar("E", bound=_Edit)
SCHEMA: Final = "model-surgery/recipe/1"
LARGEST_RECIPE = 8 * 2**20
"""Bytes of recipe JSON that are read."""
MOST_EDITS = 1000
MOST_INDICES = 2**22
"""Indices that all edits together may list: a few characters can stand for millions of them."""


class Iterate(_Edit):
    """A schedule in place of cuts: a share of the budget goes, what stays is healed, and the next share is chosen on
    that. `surgery.healing.rounds` runs it and leaves a recipe for each round.

    `budget` and `rules` are the fields of `Budget` and `Rules` in `surgery.pruning.budget`; `heal` is that of every
    round, and `calibration` the text that the method sees, where it needs one.
    """

    op: Literal["iterate"] = "iterate"
    method: str = Field(min_length=1, max_length=100)
    budget: dict[str, JsonValue]
    rules: dict[str, JsonValue] = Field(default_factory=dict)
    rounds: int = Field(ge=1, le=1000)
    calibration: TextReference | None = None
    heal: Heal

    @field_validator("budget", "rules")
    @classmethod
    def _notes(cls, value: Any) -> Any:
        return _bounded(value)


Edit = Annotated[
    RemoveBlocks
    | RemoveAttention
    | RemoveMlp
    | PruneNeurons
    | PruneKvGroups
    | PruneHeads
    | ArrangeBlocks
    | MergeKvHeads
    | PruneHidden
    | Compensate
    | Heal
    | Quantize
    | Eora
    | Iterate,
    Field(discriminator="op"),
]


LATE: tuple[type[_Edit], ...] = (Compensate, Heal, Quantize, Eora)
"""What comes after the edits of the structure, in this order."""


def stage_of(edit: Any) -> int:
    """Place of an edit's kind in the order of a recipe: 0 for the structure, then as in `LATE`."""
    return next((place for place, kind in enumerate(LATE, 1) if isinstance(edit, kind)), 0)


class Recipe(_Frozen):
    """A recipe. Two recipes with the same model and edits have the same `key`, whatever their notes."""

    schema_: Literal["model-surgery/recipe/1"] = Field(default=SCHEMA, alias="schema")
    model: ModelReference
    edits: tuple[Edit, ...] = Field(default=(), max_length=MOST_EDITS, strict=False)
    target: dict[str, JsonValue] | None = None
    results: dict[str, JsonValue] | None = None

    @field_validator("edits", mode="before")
    @classmethod
    def _few_indices(cls, value: Any) -> Any:
        edits = [edit for edit in value if isinstance(edit, dict)] if isinstance(value, (list, tuple)) else []
        listed = [edit.get("blocks") for edit in edits]
        for edit in edits:
            removed = edit.get("removed")
            listed += removed.values() if isinstance(removed, dict) else [removed]
        if sum(length(indices) for indices in listed if isinstance(indices, str)) > MOST_INDICES:
            raise ValueError(f"the edits list more than {MOST_INDICES} indices together")
        return value

    @field_validator("target", "results")
    @classmethod
    def _notes(cls, value: Any) -> Any:
        return _bounded(value)

    @property
    def key(self) -> str:
        """SHA-256 of the model and the edits without their origins and results, the first 16 hexadecimal digits."""
        edits = [edit.model_dump(mode="json", exclude={"chosen_by", "result"}) for edit in self.edits]
        canonical = json.dumps([self.model.model_dump(mode="json"), edits], sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(canonical.encode()).hexdigest()[:16]

    def find(self, kind: type[E]) -> E | None:
        """The first edit of a kind, such as `Quantize`; None without one."""
        return next((edit for edit in self.edits if isinstance(edit, kind)), None)

    def document(self) -> dict[str, Any]:
        """The recipe as plain JSON values, in the contract's form."""
        document = self.model_dump(mode="json", by_alias=True, exclude_none=True)
        # What an edit does comes before where it came from.
        document["edits"] = [{"op": edit.pop("op"), **dict(reversed(edit.items()))} for edit in document["edits"]]
        return document

    def to_json(self) -> str:
        """The recipe file's text."""
        return json.dumps(self.document(), indent=2, ensure_ascii=False, allow_nan=False) + "\n"

    def with_edits(self, *edits: Any) -> Recipe:
        """The same model with other edits; results no longer hold and are dropped.

        Raises:
            RecipeError: something given is not an edit.
        """
        return self.read({"schema": SCHEMA, "model": self.model, "edits": edits, "target": self.target})

    @classmethod
    def parse(cls, text: str | bytes) -> Recipe:
        """Read a recipe's JSON text.

        Raises:
            RecipeError: too large, not JSON, or not a valid recipe; one sentence names the place.
        """
        if len(text) > LARGEST_RECIPE:
            raise RecipeError(
                f"The recipe is larger than {LARGEST_RECIPE // 2**20} MiB: it cannot be a recipe of this tool."
            )
        try:
            document = json.loads(text, object_pairs_hook=_unique)
        except RecipeError:
            raise
        except (ValueError, RecursionError):
            raise RecipeError("The recipe is not valid JSON: export it again, or repair it with an editor.") from None
        return cls.read(document)

    @classmethod
    def read(cls, document: Any) -> Recipe:
        """Validate parsed JSON. Raises RecipeError, one sentence that names the place."""
        if isinstance(document, dict) and document.get("schema") != SCHEMA:
            raise RecipeError(
                f"The recipe's schema is {str(document.get('schema'))[:60]!r}, and only {SCHEMA!r} is understood."
            )
        try:
            return TypeAdapter(cls).validate_python(document)
        except (ValidationError, RecursionError) as error:
            raise RecipeError(_sentence(error)) from None

    @classmethod
    def load(cls, path: Path) -> Recipe:
        """Read a recipe file. Raises RecipeError: missing, unreadable or invalid."""
        try:
            size_of(path, RecipeError)
            if path.stat().st_size > LARGEST_RECIPE:
                raise RecipeError(f"{path.name} is larger than {LARGEST_RECIPE // 2**20} MiB: it cannot be a recipe.")
            return cls.parse(path.read_bytes())
        except OSError as error:
            raise RecipeError(f"The recipe {str(path)!r} cannot be read ({error.strerror}): check the path.") from None

    def save(self, path: Path) -> None:
        """Write the recipe under a temporary name and rename it. Raises RecipeError: the file cannot be written."""
        try:
            write_atomically(path, self.to_json())
        except InputError as error:
            raise RecipeError(str(error)) from None


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object; of a repeated key, json would silently keep the last."""
    document = dict(pairs)
    if len(document) < len(pairs):
        twice = Counter(key for key, _ in pairs).most_common(1)[0][0]
        raise RecipeError(f"The recipe names the key {twice[:80]!r} twice in one place: keep one of the two.")
    return document


def _sentence(error: ValidationError | RecursionError) -> str:
    first = None if isinstance(error, RecursionError) else error.errors(include_url=False, include_input=False)[0]
    if first is None or first["type"] == "recursion_loop":
        return "The recipe is nested too deeply to be one of this tool: flatten its notes."
    place = ".".join(str(part) for part in first["loc"]) or "the document"
    if first["type"] == "extra_forbidden":
        return f"The recipe has an unknown key {place[:80]!r}: remove it."
    if first["type"] == "union_tag_invalid":
        tag, known = str(first["ctx"]["tag"])[:60], first["ctx"]["expected_tags"]
        return f"The recipe has an unknown op {tag!r} at {place}: the ops are {known}."
    if first["type"] == "union_tag_not_found":
        return f"The recipe's edit at {place} has no op: name one, like 'remove_blocks'."
    message = first["msg"].removeprefix("Value error, ")
    return f"The recipe is not valid at {place[:80]}: {message[:300]}."
