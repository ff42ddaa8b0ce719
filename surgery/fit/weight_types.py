"""The forms in which weights are stored, and the bytes that a tensor takes in each.

GGUF's types are llama.cpp's with its mixes (`gguf_mixes`). The other formats are checkpoints of the transformers
library: plain safetensors, torchao's weight-only integers, and compressed-tensors' packed integers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import ceil
from typing import Literal, get_args

from surgery.errors import InputError
from surgery.fit.weights import Shape, Shapes, class_of, heads_per_group, weight_shapes
from surgery.gguf.mixes import kinds
from surgery.gguf.types import bytes_of
from surgery.recipe.storage import GgufType, PackedType, Quantize, TorchaoType
from surgery.structure.structure import Structure

Format = Literal["gguf", "safetensors", "torchao", "compressed-tensors"]
GROUP_SIZE = 32
"""Weights that share a scale where a 4-bit type's name alone is given."""
WORD = 32
SCALE_BYTES = 2
"""Of a packed weight's scales (see `grids.Grid`)."""
SHAPE_BYTES = 16
"""compressed-tensors keeps the shape of each packed weight, two 64-bit numbers."""


@dataclass(frozen=True)
class WeightType:
    """How the weights of a model are stored.

    `group_size` neighbouring weights of a row share a scale (the whole row if None). Asymmetric grids have a zero point
    beside each scale.
    """

    name: str
    """As chosen: GGUF's own name, or format and type, such as `torchao-int8`."""
    format: Format
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

    def checkpoint_bytes(self, name: str, shape: Shape, floating: int) -> int:
        """Bytes of one tensor of a checkpoint, scales and zero points included.

        Args:
            name: llama.cpp's; only matrices inside blocks are quantised.
            shape: (outputs, inputs) or (values,).
            floating: bytes of the numbers that stay in floating point.
        """
        values = 1
        for size in shape:
            values *= size
        if self.format == "safetensors":
            return values * self.bits // 8
        if len(shape) < 2 or not name.startswith("blk."):
            return values * floating
        outputs, inputs = shape
        groups = ceil(inputs / (self.group_size or inputs))
        if self.format == "torchao":  # a byte a value, int4 too; zero points are stored even where all are zero
            return values + outputs * groups * (floating + 1)
        size = outputs * (4 * ceil(inputs * self.bits / WORD) + groups * SCALE_BYTES) + SHAPE_BYTES
        return size if self.symmetric else size + groups * 4 * ceil(outputs * self.bits / WORD)


def _all_types() -> dict[str, WeightType]:
    gguf = [WeightType(name, "gguf", name) for name in get_args(GgufType)]
    plain = [WeightType(f"safetensors-{name}", "safetensors", name) for name in ("F32", "F16")]
    torchao = [
        WeightType(f"torchao-{name}", "torchao", name, None if name == "int8" else GROUP_SIZE)
        for name in get_args(TorchaoType)
    ]
    packed = [
        WeightType(f"compressed-tensors-{name}", "compressed-tensors", name, None if name == "int8" else GROUP_SIZE)
        for name in get_args(PackedType)
    ]
    return {kind.name: kind for kind in (*gguf, *plain, *torchao, *packed)}


TYPES = _all_types()
"""Every type by name: GGUF's first."""


def weight_type(name: str) -> WeightType:
    """The weight type of that name.

    Raises:
        InputError: unknown; the message lists the names.
    """
    if name not in TYPES:
        raise InputError(f"There is no weight type {name!r}: use one of {', '.join(TYPES)}.")
    return TYPES[name]


def type_of_edit(edit: Quantize) -> WeightType:
    """The weight type that a recipe's quantisation makes."""
    name = edit.type if edit.format == "gguf" else f"{edit.format}-{edit.type}"
    return WeightType(name, edit.format, edit.type, edit.group_size, edit.symmetric, edit.text is not None)


@dataclass(frozen=True)
class Stored:
    """The weights of a structure as a file of one type holds them, by llama.cpp's names."""

    kind: WeightType
    shapes: Shapes
    types: dict[str, str]
    """GGML's type of each tensor, in a GGUF file; empty for a checkpoint."""
    bytes: dict[str, int]

    @property
    def by_class(self) -> dict[str, int]:
        """Bytes of each class of tensors."""
        sizes: dict[str, int] = {}
        for name, size in self.bytes.items():
            sizes[class_of(name)] = sizes.get(class_of(name), 0) + size
        return sizes


def stored(structure: Structure, kind: WeightType) -> Stored:
    """The file of a structure, by arithmetic."""
    shapes = weight_shapes(structure, kind.format == "gguf")
    if kind.format == "gguf":
        chosen = kinds(shapes, kind.type, heads_per_group(structure), kind.importance)
        types = {name: found.name for name, found in chosen.items()}
        return Stored(kind, shapes, types, {name: bytes_of(shapes[name], chosen[name]) for name in shapes})
    floating = max(1, round(structure.architecture.bytes_per_parameter))
    return Stored(kind, shapes, {}, {name: kind.checkpoint_bytes(name, shapes[name], floating) for name in shapes})


def weights_by_class(structure: Structure, kind: WeightType) -> dict[str, int]:
    """Bytes of the weights of each tensor class."""
    return stored(structure, kind).by_class
