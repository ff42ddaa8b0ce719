"""What a storage format is: everything that the rest of the program asks of one."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from surgery.common.progress import Report, silent
from surgery.recipe.storage import STORABLE, PackedFormat, Quantize

if TYPE_CHECKING:
    from threading import Event

    from analysis.model.runner import Runner
    from analysis.text import Windows
    from surgery.calibration.moments import Moments
    from surgery.checkpoints.build import Built
    from surgery.checkpoints.save import Saved
    from surgery.gguf.mixes import Shared
    from surgery.gguf.plan import GgufPlan
    from surgery.recipe.base import TextReference
    from surgery.recipe.recipe import Recipe
    from surgery.structure.structure import Structure

GROUP_SIZE = 32
"""Weights that share a scale where a 4-bit type's name alone is given."""
Shape = tuple[int, ...]


@dataclass(frozen=True)
class Sources:
    """What formats quantise a model by; each is made when it is asked for."""

    runner: Runner
    plan: Callable[[Structure], GgufPlan]
    """The GGUF file of a structure."""
    moments: Callable[[Structure, TextReference], Moments]
    """Input moments of a structure on a text."""
    windows: Callable[[TextReference], Windows]


class StorageFormat(ABC):
    """One way to store a model's weights."""

    name: ClassVar[str]
    """As recipes, the command line and JSON have it."""
    title: ClassVar[str]
    """Its label on the page."""
    does: ClassVar[str]
    """What it does to a model, in a few sentences for the page."""
    default_type: ClassVar[str]
    settings: ClassVar[tuple[str, ...]] = ()
    """Settings that it knows besides the type: `importance` (whether errors are weighted by an importance matrix), or
    fields of `Quantize`."""
    one_file: ClassVar[bool] = False
    """Whether the model becomes one file, with a type of its own for each tensor and codecs that encode when they are
    applied. Otherwise it is a checkpoint, whose linears are quantised in one pass over the blocks."""
    library: ClassVar[Literal["", PackedFormat]] = ""
    """What transformers needs besides to load such a checkpoint."""
    runtime: ClassVar[Literal["llama.cpp", "transformers"]] = "transformers"
    """The program that runs it."""

    @property
    def types(self) -> tuple[str, ...]:
        """Names of its weight types."""
        return STORABLE[self.name].types

    @property
    def weight_types(self) -> tuple[WeightType, ...]:
        """The types with their usual settings."""
        return tuple(WeightType(self.label(name), self, name, _group_of(name)) for name in self.types)

    def label(self, type_name: str) -> str:
        """How a type is called among the types of all formats."""
        return f"{self.name}-{type_name}"

    def weight_type(self, edit: Quantize) -> WeightType:
        """The weight type that a recipe's quantisation makes."""
        weighted = edit.text is not None
        return WeightType(self.label(edit.type), self, edit.type, edit.group_size, edit.symmetric, weighted)

    def settings_of(self, type_name: str) -> tuple[str, ...]:
        """The settings that count for a type."""
        return self.settings

    def notes(self, type_name: str) -> tuple[str, ...]:
        """What a person should know of the memory that a type needs, one sentence each."""
        return ()

    def check(self, structure: Structure, plan: Callable[[Structure], GgufPlan]) -> None:  # noqa: B027
        """Refuse a structure that the format cannot express, before anything is computed.

        Args:
            structure: nothing in it has to be computed.
            plan: gives the GGUF file of a structure.

        Raises:
            RecipeError: no checkpoint can express it.
            UnsupportedArchitecture: the format's runtime has nothing that does the same.
        """

    @abstractmethod
    def weigh(
        self, kind: WeightType, shapes: Mapping[str, Shape], shared: Shared, floating: int
    ) -> tuple[dict[str, str], dict[str, int]]:
        """GGML's type of each tensor (empty for a checkpoint), and the bytes of each.

        Args:
            shapes: (outputs, inputs) or (values,), by llama.cpp's name.
            shared: what some of llama.cpp's mixes go by.
            floating: bytes of a number that stays in floating point.
        """

    @abstractmethod
    def quantise(
        self, structure: Structure, sources: Sources, report: Report = silent, stop: Event | None = None
    ) -> Structure:
        """Compute the quantisation that is pending in a structure: what is measured then is what reads back.

        Args:
            structure: with `quantize` of this format, and what comes before it computed.
            sources: what it is computed from.

        Raises:
            InputError: the format cannot hold the model, or a text is not at hand.
        """

    def save(
        self, built: Built, structure: Structure, tokenizer: Any, recipe: Recipe, out: Path, report: Report = silent
    ) -> Saved:
        """Write the checkpoint as a new folder: in floating point where the format is one file, made from it.

        A low-rank repair is not part of it: see `surgery.checkpoints.adapter`.

        Args:
            built: the structure's floating model; not changed.
            structure: quantised by this format.
            out: the folder; written under a temporary name and renamed.

        Raises:
            InputError: the folder is in use, cannot be written, or the disk is full.
        """
        from surgery.checkpoints.save import save_checkpoint

        return save_checkpoint(built, tokenizer, recipe, out, report)

    @abstractmethod
    def read(self, folder: Path, file: str, adapter: str, config: Path, report: Report) -> tuple[Any, Any]:
        """A model in memory and its tokenizer, from files of this format; nothing from there is run.

        Args:
            folder: holds the files.
            file: the first file of the weights.
            adapter: what stands beside them and counts with them; empty for nothing.
            config: the folder of config.json and the tokenizer.

        Raises:
            InputError: a file is absent or damaged, or there is no memory for it.
        """


@dataclass(frozen=True)
class WeightType:
    """How the weights of a model are stored.

    `group_size` neighbouring weights of a row share a scale (the whole row if None). Asymmetric grids have a zero point
    beside each scale.
    """

    name: str
    """As chosen: GGUF's own name, or format and type, such as `torchao-int8`."""
    format: StorageFormat
    type: str
    group_size: int | None = None
    symmetric: bool = True
    importance: bool = False
    """Whether there is an importance matrix: some of llama.cpp's mixes depend on it."""

    @property
    def integers(self) -> bool:
        """Whether matrices are stored as integers with scales."""
        return self.type not in ("F32", "F16")

    @property
    def bits(self) -> int:
        """Bits of an integer type or of a safetensors number."""
        return int("".join(letter for letter in self.type if letter.isdigit()))

    def obstacle(self, shapes: Mapping[str, Shape]) -> str:
        """Why the format cannot store these tensors; empty where it can."""
        size = self.group_size
        for name, shape in shapes.items():
            if size is not None and len(shape) == 2 and name.startswith("blk.") and shape[1] % size:
                return f"{name} has rows of {shape[1]} weights, which groups of {size} do not divide"
        return ""


def _group_of(type_name: str) -> int | None:
    """Weights that share a scale where a type's name alone is given."""
    return GROUP_SIZE if type_name in ("int4", "int3", "int2") else None
