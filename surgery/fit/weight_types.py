"""Every form in which weights are stored, and the file of a structure in one of them, by arithmetic.

What a type is and the bytes that a tensor takes in it are the formats' (`surgery.formats`).
"""

from __future__ import annotations

from dataclasses import dataclass

from surgery.errors import InputError
from surgery.fit.weights import Shapes, class_of, shared, weight_shapes
from surgery.formats.format import WeightType
from surgery.formats.table import FORMATS, PLAIN, format_of
from surgery.recipe.storage import Quantize
from surgery.structure.structure import Structure

_ROWS = sorted((PLAIN, *FORMATS.values()), key=lambda row: not row.one_file)
TYPES = {kind.name: kind for row in _ROWS for kind in row.weight_types}
"""Every type by name: GGUF's first."""


def weight_type(name: str) -> WeightType:
    """The weight type of that name. Raises InputError: unknown; the message lists the names."""
    if name not in TYPES:
        raise InputError(f"There is no weight type {name!r}: use one of {', '.join(TYPES)}.")
    return TYPES[name]


def type_of_edit(edit: Quantize) -> WeightType:
    """The weight type that a recipe's quantisation makes."""
    return format_of(edit).weight_type(edit)


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
    shapes = weight_shapes(structure, kind.format.one_file)
    floating = max(1, round(structure.architecture.bytes_per_parameter))
    types, sizes = kind.format.weigh(kind, shapes, shared(structure), floating)
    return Stored(kind, shapes, types, sizes)


def weights_by_class(structure: Structure, kind: WeightType) -> dict[str, int]:
    """Bytes of the weights of each tensor class."""
    return stored(structure, kind).by_class
