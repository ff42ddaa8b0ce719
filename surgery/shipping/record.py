"""What is known of a shipped folder, machine-readable: `ship.json`, and the sample that verification compares."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Final, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from surgery.errors import CorruptFile, UnknownModel, brief
from surgery.recipe.storage import PackedFormat

SCHEMA: Final = "model-surgery/ship/1"
RECORD = "ship.json"
SAMPLE = "verification/sample.safetensors"
"""In a folder of its own: some runtimes load every .safetensors file that lies beside the weights."""
ADAPTER = "adapter"
"""The folder of a PEFT adapter beside a packed checkpoint."""
LARGEST_RECORD = 2**20
LARGEST_SAMPLE = 2**30

Number = float | Literal["inf"]
"""An overflowing perplexity is the word "inf"."""
Kind = Literal["checkpoint", "gguf"]
FileName = Annotated[str, Field(pattern=r"^[^/\\:]+$", max_length=255)]


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True, allow_inf_nan=False)


class Origin(_Frozen):
    """Where the source model comes from, as far as it may be published: never a folder of this computer."""

    name: str = Field(max_length=500)
    base_model: str | None = Field(default=None, max_length=500)
    """Its id on the Hub, if it has one."""
    revision: str | None = Field(default=None, max_length=200)
    licence: str | None = Field(default=None, max_length=200)
    licence_name: str | None = Field(default=None, max_length=200)
    licence_link: str | None = Field(default=None, max_length=1000)
    note: str = Field(default="", max_length=1000)


class Protocol(_Frozen):
    """How perplexity was measured, and what the source model itself has. Losses in nats per token."""

    text: str
    text_fingerprint: str
    windows_fingerprint: str
    window: int
    windows: int
    spread: bool
    bos: bool
    tokens: int
    """Scored tokens."""
    dtype: str
    """That the source model computes in."""
    dense_nll: float
    dense_perplexity: Number
    kept: bool
    """Whether the token ids are in the sample file, so that anybody can measure again."""


class Measured(_Frozen):
    """A shipped form, measured live before it was written. Losses in nats per token; `standard_error` is the
    perplexity's, `difference` is paired against the source model on the same tokens."""

    nll: float
    perplexity: Number
    standard_error: Number | None
    difference: float
    difference_standard_error: float | None


class Part(_Frozen):
    """One form in which the model is in the folder."""

    kind: Kind
    files: tuple[FileName, ...] = Field(min_length=1)
    """Of its weights, in the folder itself."""
    bytes: int
    """Of these files, and of the adapter's weights."""
    type: str
    """Number type of the checkpoint, or GGUF type."""
    library: Literal["", PackedFormat] = ""
    """What transformers needs besides to load a packed checkpoint."""
    adapter: FileName | Literal[""] = ""
    """What stands beside the weights and counts with them: a PEFT folder, or a LoRA file for llama.cpp."""
    plain: bool = True
    """Whether transformers loads the checkpoint without `trust_remote_code`."""
    architecture: str = ""
    """llama.cpp's, of a GGUF file."""
    notes: tuple[str, ...] = ()
    measured: Measured | None
    """None only in a card of a checkpoint that was built and not shipped."""


class Run(_Frozen):
    """A program that a form was tried in before it was shipped."""

    version: str = Field(max_length=200)
    """Empty where the program was not at hand."""
    tried: tuple[str, ...] = Field(max_length=100)
    """What was done with it there; nothing where it was not at hand, or where there was no memory."""
    memory: dict[str, int] = Field(default_factory=dict, max_length=10)
    """Bytes that the program says it took, by what for."""
    predicted: dict[str, int] = Field(default_factory=dict, max_length=10)
    """Bytes that the memory model gives for the same."""


class ShipRecord(_Frozen):
    """Everything that a model card says and a verification compares, the recipe apart."""

    schema_: Literal["model-surgery/ship/1"] = Field(default=SCHEMA, alias="schema")
    recipe: str
    """Key of the recipe."""
    words: str
    """What the recipe does to the model."""
    origin: Origin
    parameters: int
    dense_parameters: int
    blocks: int
    dense_blocks: int
    dense_bytes: int
    """Of the source model's weights as they are loaded."""
    protocol: Protocol | None
    """None as above."""
    sample_text: str = ""
    """Fingerprint of the embedded text from which the sample's token ids were cut."""
    parts: tuple[Part, ...] = Field(min_length=1)
    runs: dict[str, Run] = Field(default_factory=dict, max_length=10)
    """By the name of the program."""

    @property
    def shipped(self) -> Part:
        """The most compressed form."""
        return self.parts[-1]

    def part(self, kind: Kind) -> Part | None:
        """The form of that kind."""
        return next((part for part in self.parts if part.kind == kind), None)

    def to_json(self) -> str:
        """The file's text."""
        document = self.model_dump(mode="json", by_alias=True)
        return json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False) + "\n"

    @classmethod
    def load(cls, folder: Path) -> ShipRecord:
        """Read a shipped folder's record.

        Raises:
            UnknownModel: the folder has none.
            CorruptFile: it is not one of this tool.
        """
        path = folder / RECORD
        if not path.is_file():
            raise UnknownModel(f"The folder {str(folder)[:200]!r} has no {RECORD}: give a folder that `ship` made.")
        try:
            if path.stat().st_size > LARGEST_RECORD:
                raise ValueError("it is too large")
            record = TypeAdapter(cls).validate_json(path.read_bytes())
            if record.protocol is None or any(part.measured is None for part in record.parts):
                raise ValueError("it holds no measurement")
            return record
        except (OSError, ValueError, RecursionError) as error:  # pydantic's errors are ValueErrors
            first = error.errors()[0] if isinstance(error, ValidationError) else None
            place = ".".join(map(str, first["loc"])) if first else ""
            reason = f"{place}: {first['msg']}" if first else str(error)
            raise CorruptFile(
                f"{RECORD} of {folder.name} cannot be used ({brief(reason)}): take the folder from its origin again."
            ) from None


@dataclass(frozen=True)
class Sample:
    """What the model gave before it was shipped."""

    ids: torch.Tensor
    """Token ids of a few windows of the embedded text, (windows, tokens)."""
    positions: torch.Tensor
    """Tokens of each window whose logits are kept, (positions,)."""
    logits: dict[str, torch.Tensor]
    """(windows, positions, vocabulary), float32, by the kind of the part."""
    windows: torch.Tensor | None
    """The measured windows, (windows, tokens), where they are kept."""

    @property
    def consistent(self) -> bool:
        """Whether the tensors have the shapes that belong together, and ids that are in the vocabulary."""
        count, length = self.ids.shape if self.ids.dim() == 2 else (0, 0)
        vocabulary = min((values.shape[-1] for values in self.logits.values()), default=0)
        shape = (count, len(self.positions), vocabulary)
        indices = [(self.ids, vocabulary), (self.positions, length)]
        indices += [(self.windows, vocabulary)] if self.windows is not None else []
        return (
            count > 0
            and length > 1
            and all(tuple(values.shape) == shape for values in self.logits.values())
            and all(bool(((values >= 0) & (values < limit)).all()) for values, limit in indices)
        )

    def save(self, folder: Path) -> None:
        """Write it into a folder that is to be shipped."""
        path = folder / SAMPLE
        path.parent.mkdir(exist_ok=True)
        tensors = {"ids": self.ids, "positions": self.positions}
        tensors |= {f"logits.{kind}": values.contiguous() for kind, values in self.logits.items()}
        if self.windows is not None:
            tensors["windows"] = self.windows
        save_file({name: tensor.clone() for name, tensor in tensors.items()}, path)

    @classmethod
    def load(cls, folder: Path) -> Sample:
        """Read a shipped folder's sample. Raises CorruptFile: it is absent or damaged."""
        path = folder / SAMPLE
        try:
            if path.stat().st_size > LARGEST_SAMPLE:
                raise ValueError("it is too large")
            tensors = load_file(path)
            logits = {name.removeprefix("logits."): value for name, value in tensors.items() if "logits." in name}
            sample = cls(tensors["ids"], tensors["positions"], logits, tensors.get("windows"))
            if not sample.consistent:
                raise ValueError("its tensors do not belong together")
            return sample
        except (OSError, SafetensorError, ValueError, KeyError) as error:
            raise CorruptFile(
                f"{SAMPLE} of {folder.name} cannot be used ({brief(error)}): take the folder from its origin again."
            ) from None
