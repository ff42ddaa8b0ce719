"""GGML's number types: encoding matrices in them and reading them back, by the library that llama.cpp's code is in."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import gguf
import libgguf
import numpy as np
import torch

from surgery.errors import InputError

if TYPE_CHECKING:
    Kind = Any  # the library has no types
else:
    Kind = gguf.GGMLQuantizationType
LARGEST_HALF = 65504.0
LEAST_IMPORTANCE = 1e-6
"""Share of the mean importance that every column gets: some searches divide by the importance of a whole block."""


def kind_of(name: str) -> Kind:
    """The type that GGML calls so."""
    return gguf.GGMLQuantizationType[name]


def bytes_of(shape: tuple[int, ...], kind: Kind) -> int:
    """Bytes of a tensor whose rows, along the last dimension, are whole blocks of the type."""
    return int(np.prod(gguf.quants.quant_shape_to_byte_shape(shape, kind)))


def fits(row: int, kind: Kind) -> bool:
    """Whether rows of that many values are whole blocks of the type."""
    return bool(row % gguf.GGML_QUANT_SIZES[kind][0] == 0)


def encode(values: np.ndarray, kind: Kind, importance: np.ndarray | None = None) -> np.ndarray:
    """A tensor as the file stores it.

    Args:
        values: float32, (rows, columns) or a vector.
        kind: the type; whole blocks of it make up a row.
        importance: weight of each column's error, (columns,); used by the types that can.

    Raises:
        InputError: a value is not finite, or too large for the type.
    """
    if not np.isfinite(values).all():
        raise InputError("a weight is not finite: build the checkpoint again")
    if kind == Kind.F32:
        return np.ascontiguousarray(values, np.float32)
    if kind == Kind.F16:
        with np.errstate(over="ignore"):
            stored = values.astype(np.float16)
    else:
        rows = np.ascontiguousarray(values, np.float32)
        stored = libgguf.quantize_rows(rows, int(kind), imatrix=_usable(importance))
    if np.abs(values).max(initial=0.0) > LARGEST_HALF and not np.isfinite(decode(stored, kind)).all():
        raise InputError(f"a weight is {np.abs(values).max():g}, too large for {kind.name}: choose F32")
    return stored


def decode(stored: np.ndarray, kind: Kind) -> np.ndarray:
    """What a stored tensor reads back as, float32."""
    if kind in (Kind.F32, Kind.F16):
        return stored.astype(np.float32)
    block, size = gguf.GGML_QUANT_SIZES[kind]
    columns = stored.shape[-1] // size * block
    found: np.ndarray = libgguf.dequantize_rows(stored, int(kind), columns)
    return found.reshape(*stored.shape[:-1], columns)


def _usable(importance: np.ndarray | None) -> np.ndarray | None:
    """The importance with a floor; None where nothing was seen."""
    if importance is None or not importance.max(initial=0.0) > 0:
        return None
    return np.maximum(importance, LEAST_IMPORTANCE * importance.mean()).astype(np.float32)


@dataclass(frozen=True)
class GgufCodec:
    """A matrix in one of GGML's types; `importance` is the weight of each column's error, (inputs,), float32."""

    type_name: str
    importance: np.ndarray | None = field(default=None, compare=False, repr=False)

    @cached_property
    def key(self) -> str:
        """The type and what the importance is."""
        if self.importance is None:
            return self.type_name
        return f"{self.type_name}:{hashlib.sha256(self.importance.tobytes()).hexdigest()[:16]}"

    def __hash__(self) -> int:
        return hash(self.key)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, GgufCodec) and self.key == other.key

    def apply(self, weight: torch.Tensor) -> torch.Tensor:
        """The weight (outputs, inputs) as the file gives it back. Raises InputError: as `encode`."""
        kind = kind_of(self.type_name)
        values = weight.detach().float().cpu().numpy()
        found = decode(encode(values, kind, self.importance), kind)
        return torch.from_numpy(np.ascontiguousarray(found)).to(weight.device, weight.dtype)
