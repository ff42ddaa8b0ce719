"""The recipe: a small, immutable, validated, versioned JSON document of edits in the source model's numbering."""

from __future__ import annotations

import hashlib
import json
import os
import uuid
from collections import Counter
from pathlib import Path
from typing import Annotated, Any, Final, Literal, get_args

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    JsonValue,
    TypeAdapter,
    ValidationError,
    field_validator,
    model_validator,
)

from surgery.errors import RecipeError
from surgery.ranges import LARGEST_INDEX, Indices, length

SCHEMA: Final = "model-surgery/recipe/1"
LARGEST_RECIPE = 8 * 2**20
"""Bytes of recipe JSON that are read."""
LARGEST_NOTE = 64 * 2**10
"""Bytes of JSON in `target`, `results` or a budget."""
MOST_EDITS = 1000
LONGEST_ORDER = 4096
"""Blocks that an arrangement may list."""
MOST_INDICES = 2**22
"""Indices that all edits together may list: a few characters can stand for millions of them."""


class _Frozen(BaseModel):
    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, populate_by_name=True, ser_json_inf_nan="strings"
    )


class ModelReference(_Frozen):
    """Which model the indices number."""

    id: str = Field(min_length=1, max_length=500)
    revision: str | None = Field(default=None, max_length=200)
    fingerprint: str | None = Field(default=None, max_length=64)


class ChosenBy(_Frozen):
    """Where an edit's indices came from; informative, the indices are what counts."""

    method: str = Field(max_length=100)
    budget: dict[str, JsonValue] = Field(default_factory=dict)
    text: dict[str, JsonValue] | None = None

    @field_validator("budget", "text")
    @classmethod
    def _bounded(cls, value: Any) -> Any:
        return _bounded(value)


class _Edit(_Frozen):
    chosen_by: ChosenBy | None = None


class RemoveBlocks(_Edit):
    """Remove whole blocks."""

    op: Literal["remove_blocks"] = "remove_blocks"
    blocks: Indices


class RemoveAttention(_Edit):
    """Remove the attention sublayer of blocks, with the norms that serve it."""

    op: Literal["remove_attention"] = "remove_attention"
    blocks: Indices


class RemoveMlp(_Edit):
    """Remove the MLP sublayer of blocks, with the norms that serve it."""

    op: Literal["remove_mlp"] = "remove_mlp"
    blocks: Indices


def _block_key(value: Any) -> Any:
    """JSON keys are strings; accept only plain decimal block numbers."""
    if isinstance(value, dict):
        for key in value:
            text = str(key)
            if not (text.isascii() and text.isdigit() and len(text) <= 7 and str(int(text)) == text):
                raise ValueError(f"{text[:40]!r} is not a block number")
        return {int(key): indices for key, indices in value.items()}
    return value


class _PerBlock(_Edit):
    removed: dict[int, Indices] = Field(min_length=1)

    @field_validator("removed", mode="before")
    @classmethod
    def _keys(cls, value: Any) -> Any:
        return _block_key(value)

    @field_validator("removed")
    @classmethod
    def _ordered(cls, value: dict[int, tuple[int, ...]]) -> dict[int, tuple[int, ...]]:
        return dict(sorted(value.items()))


class PruneNeurons(_PerBlock):
    """Remove MLP neurons, by block."""

    op: Literal["prune_neurons"] = "prune_neurons"


class PruneKvGroups(_PerBlock):
    """Remove key/value heads with all their query heads, by block."""

    op: Literal["prune_kv_groups"] = "prune_kv_groups"


class PruneHeads(_PerBlock):
    """Remove query heads, by block; every KV group that stays must keep the same number."""

    op: Literal["prune_heads"] = "prune_heads"


class ArrangeBlocks(_Edit):
    """Put source blocks in another order, or repeat some; what the other edits take from a block is gone in each."""

    op: Literal["arrange_blocks"] = "arrange_blocks"
    order: tuple[Annotated[int, Field(ge=0, lt=LARGEST_INDEX)], ...] = Field(
        min_length=1, max_length=LONGEST_ORDER, strict=False
    )


class MergeKvHeads(_Edit):
    """Merge neighbouring key/value heads of blocks until `kv_heads` are left (GQA and MQA conversion)."""

    op: Literal["merge_kv_heads"] = "merge_kv_heads"
    blocks: Indices
    kv_heads: int = Field(ge=1)
    how: Literal["mean", "first"] = "mean"


class PruneHidden(_Edit):
    """Remove channels of the residual stream, in every block, the embeddings and the head."""

    op: Literal["prune_hidden"] = "prune_hidden"
    removed: Indices


class TextReference(_Frozen):
    """Which token windows an edit was computed from. A file is named without its folders, and found by fingerprint."""

    source: str = Field(min_length=1, max_length=500)
    fingerprint: str = Field(min_length=1, max_length=64)
    window: int = Field(ge=2, le=2**20)
    windows: int = Field(ge=1, le=2**20)
    spread: bool = False
    """Whether the windows are evenly spaced over the text, instead of its first ones."""


How = Literal["least_squares", "linear_patch", "bias"]


class Compensate(_Edit):
    """Refit weights that stay, without training, to make up for what the edits before it removed.

    `least_squares` refits the output projections of narrowed sublayers, `bias` adds the removed inputs' mean
    contribution, `linear_patch` folds a map across each run of removed blocks into the MLP before it. `ridge` is
    relative to the mean diagonal of the input moments; None chooses it, sublayer by sublayer, on windows kept aside,
    and leaves out what does not help there.
    """

    op: Literal["compensate"] = "compensate"
    how: How
    text: TextReference
    blocks: Indices | None = None
    ridge: float | None = Field(default=None, ge=0, le=1e6, allow_inf_nan=False)


GgufType = Literal[
    "F32", "F16", "Q8_0", "Q6_K", "Q5_K", "Q5_K_M", "Q5_K_S", "Q4_K", "Q4_K_M", "Q4_K_S", "Q3_K", "Q3_K_L", "Q3_K_M",
    "Q3_K_S", "Q2_K", "Q4_0", "IQ4_NL", "IQ4_XS", "IQ3_S", "IQ3_M", "MXFP4",
]  # fmt: skip
TorchaoType = Literal["int8", "int4"]
PackedType = Literal["int8", "int4", "int3", "int2"]
TYPES_OF = {"gguf": get_args(GgufType), "torchao": get_args(TorchaoType), "compressed-tensors": get_args(PackedType)}
"""Weight types by format."""


class Quantize(_Edit):
    """Store weights in fewer bits. `text` gives the importance matrix (GGUF) or the moments of the solver (GPTQ);
    without it neither is used.

    GGUF's types are llama.cpp's: those that end in _S, _M or _L and Q2_K mix types per tensor as `llama-quantize` does,
    Q3_K to Q5_K without an ending are the type alone. `group_size` is the number of neighbouring weights of a row that
    share a scale (None: the whole row), for torchao's int4 and compressed-tensors.
    """

    op: Literal["quantize"] = "quantize"
    format: Literal["gguf", "torchao", "compressed-tensors"] = "gguf"
    type: str = Field(max_length=20)
    text: TextReference | None = None
    method: Literal["round_to_nearest", "gptq"] = "round_to_nearest"
    group_size: int | None = Field(default=None, ge=8, le=2**20)
    symmetric: bool = True
    act_order: bool = False
    """GPTQ: solve the columns of the largest input moment first."""
    true_sequential: bool = True
    """GPTQ: inside a block, solve each sublayer on what the quantised ones before it give."""

    @model_validator(mode="after")
    def _possible(self) -> Quantize:
        known = TYPES_OF[self.format]
        if self.type not in known:
            raise ValueError(f"{self.format} has no type {self.type!r}: choose {', '.join(known)}")
        if (self.method == "gptq") != (self.text is not None) and self.format != "gguf":
            raise ValueError("gptq needs a text, and round_to_nearest uses none")
        if self.format != "compressed-tensors" and self.method == "gptq":
            raise ValueError("gptq is stored as compressed-tensors: choose that format")
        return self


Divergence = Literal["kl", "reverse_kl", "skew_kl", "skew_reverse_kl", "contrastive"]
Precision = Literal["float32", "bfloat16"]
Role = Literal["query", "key", "value", "output", "gate", "up", "down"]


class Distillation(_Frozen):
    """How a student learns from the dense model's predictions (see `surgery.healing.losses`).

    The loss is `weight` times the divergence, `cross_entropy` times that of the text, and `features` times the cosine
    distance between the states that leave each block and those that leave its source block.
    """

    divergence: Divergence = "kl"
    temperature: float = Field(default=1.0, gt=0, le=100)
    skew: float = Field(default=0.1, ge=0, lt=1)
    balance: float = Field(default=1.0, ge=0, le=2)
    """Of `contrastive`: (2 - balance) on the teacher's continuations, balance on the student's."""
    weight: float = Field(default=1.0, gt=0, le=1e3)
    cross_entropy: float = Field(default=0.0, ge=0, le=1e3)
    features: float = Field(default=0.0, ge=0, le=1e3)
    top_k: int | None = Field(default=None, ge=1, le=2**16)
    """Largest teacher probabilities that are kept on disk, so that the teacher runs once; None keeps its states."""

    @model_validator(mode="after")
    def _possible(self) -> Distillation:
        if self.divergence == "contrastive" and self.top_k is not None:
            raise ValueError("contrastive distillation sees every continuation once: leave top_k out")
        return self


class HealResult(_Frozen):
    """What a healing reached: identity of the trained tensors, the step of the best state, held-out perplexities (None
    where one overflows)."""

    adapter: str = Field(min_length=1, max_length=64)
    step: int = Field(ge=0)
    before: float | None = Field(default=None, allow_inf_nan=False)
    after: float | None = Field(default=None, allow_inf_nan=False)


class Heal(_Edit):
    """Train low-rank matrices beside linears that stay (or the linears themselves), on a text of its own.

    `batch` windows make a step, `micro_batch` of them go through the blocks together. `held_out` windows from the end
    of the text are kept aside; every `evaluate_every` steps they decide which state is the best one, and `patience`
    evaluations without a better one end the training.
    """

    op: Literal["heal"] = "heal"
    method: Literal["lora", "distill"] = "lora"
    """The loss: `lora` is the cross-entropy of the text, `distill` what `distillation` says."""
    train: Literal["lora", "dora", "weights"] = "lora"
    text: TextReference
    answers_only: bool = False
    """Learn from the answers of conversations alone."""
    where: Literal["all", "around"] = "around"
    """`around`: blocks that are narrowed, and the neighbours of removed ones."""
    blocks: Indices | None = None
    """Instead of `where`: blocks of the source model."""
    linears: tuple[Role, ...] | None = Field(default=None, min_length=1, max_length=7, strict=False)
    """Roles that are trained; all when None."""
    rank: int = Field(default=8, ge=1, le=4096)
    rank_by: Literal["uniform", "coarse_importance"] = "uniform"
    alpha: float = Field(default=16.0, gt=0, le=1e5)
    dropout: float = Field(default=0.0, ge=0, lt=1)
    learning_rate: float = Field(default=2e-4, gt=0, le=10)
    warm_up: float = Field(default=0.1, ge=0, le=1)
    """Share of the steps in which the learning rate rises; from there it falls along a cosine to 0."""
    weight_decay: float = Field(default=0.0, ge=0, le=10)
    clip: float | None = Field(default=1.0, gt=0)
    """Largest norm of the gradient of all trained tensors together."""
    steps: int = Field(ge=1, le=10**7)
    batch: int = Field(default=1, ge=1, le=2**16)
    micro_batch: int = Field(default=1, ge=1, le=2**12)
    checkpointing: bool = False
    """Compute the inside of blocks again in the backward pass instead of keeping it."""
    held_out: int = Field(default=2, ge=1, le=2**12)
    evaluate_every: int = Field(default=10, ge=1)
    patience: int | None = Field(default=None, ge=1)
    precision: Precision = "float32"
    """Of the factors in the products of linears while training; sums, states and adapters are float32."""
    seed: int = Field(default=0, ge=0, lt=2**31)
    distillation: Distillation | None = None
    base: Quantize | None = None
    """Train over weights that are quantised like this (as QLoRA does)."""
    result: HealResult | None = None

    @model_validator(mode="after")
    def _possible(self) -> Heal:
        if (self.method == "distill") != (self.distillation is not None):
            raise ValueError("method distill goes with `distillation`, and lora with none")
        if self.train == "weights" and (self.rank_by != "uniform" or self.dropout or self.base is not None):
            raise ValueError("rank_by, dropout and base are of low-rank matrices, not of trained weights")
        if self.dropout and self.precision != "float32":
            raise ValueError("dropout goes with precision float32")
        if self.text.windows <= self.held_out:
            raise ValueError("the text has no more windows than are held out: take more windows or hold out fewer")
        return self


class Eora(_Edit):
    """Repair a compressed model by low-rank matrices beside its linears, from a text and without training."""

    op: Literal["eora"] = "eora"
    rank: int = Field(ge=1, le=4096)
    text: TextReference


class Iterate(_Edit):
    """A schedule in place of cuts: a share of the budget goes, what stays is healed, and the next share is chosen on
    that. `surgery.healing.rounds` runs it and leaves a recipe for each round.

    `budget` and `rules` are the fields of `surgery.budget.Budget` and `Rules`; `heal` is that of every round, and
    `calibration` the text that the method sees, where it needs one.
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


def _bounded(value: Any) -> Any:
    """Notes that can be written back as JSON, and are not too large."""
    try:
        written = json.dumps(value, ensure_ascii=False, allow_nan=False).encode()
    except ValueError:
        raise ValueError("it holds a number or a character that JSON cannot express") from None
    if len(written) > LARGEST_NOTE:
        raise ValueError(f"it holds more than {LARGEST_NOTE // 1024} KiB of notes")
    return value


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
        """Validate parsed JSON.

        Raises:
            RecipeError: one sentence that names the place.
        """
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
        """Read a recipe file.

        Raises:
            RecipeError: missing, unreadable or invalid.
        """
        try:
            if path.stat().st_size > LARGEST_RECIPE:
                raise RecipeError(f"{path.name} is larger than {LARGEST_RECIPE // 2**20} MiB: it cannot be a recipe.")
            return cls.parse(path.read_bytes())
        except OSError as error:
            raise RecipeError(f"The recipe {str(path)!r} cannot be read ({error.strerror}): check the path.") from None

    def save(self, path: Path) -> None:
        """Write the recipe under a temporary name and rename it."""
        write_atomically(path, self.to_json())


def write_atomically(path: Path, text: str) -> None:
    """Write a UTF-8 text file so that a reader sees the old file or the new one, never a part.

    Raises:
        RecipeError: the folder cannot be written or the disk is full.
    """
    temporary = path.with_name(f".{uuid.uuid4().hex}.part")
    try:
        temporary.write_text(text, "utf-8")
        os.replace(temporary, path)
    except OSError as error:
        raise RecipeError(
            f"{str(path)!r} cannot be written ({error.strerror}): choose another place or free some space."
        ) from None
    finally:
        temporary.unlink(missing_ok=True)


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
