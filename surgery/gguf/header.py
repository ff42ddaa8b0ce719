"""What a GGUF file holds: its keys and where its tensors lie, read within the bounds of the file's own size.

Nothing is built from a number before the file is known to be large enough for it, so a damaged header is refused at
once. A model that is split over several files is read as one.
"""

from __future__ import annotations

import math
import mmap
import re
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import gguf
import numpy as np

from surgery.errors import CorruptFile
from surgery.gguf.types import Kind, bytes_of, decode

NUMBERS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d"}
"""Formats of GGUF's number types."""
TEXT, ARRAY = 8, 9
NO_WEIGHTS = ("I8", "I16", "I32", "I64", "F64", "Q8_1", "Q8_K", "Q1_0")
"""Types that no library here turns into floating point."""
MOST_ENTRIES = 2**16
"""Keys or tensors in one file."""
MOST_TEXTS = 2**22
"""Texts in one array; the largest vocabularies have a quarter of a million tokens and half a million merges."""
LONGEST_NAME = 2**16
PART = re.compile(r"(.*)-(\d{5})-of-(\d{5})(\.gguf)$", re.IGNORECASE)


@dataclass(frozen=True)
class StoredTensor:
    """One tensor of a file; `shape` is numpy's order."""

    name: str
    shape: tuple[int, ...]
    kind: Kind
    data: np.ndarray = field(repr=False)
    """Bytes as they are stored, a view of the mapped file."""

    def values(self) -> np.ndarray:
        """What the tensor reads back as, float32 of its shape, in memory of its own."""
        if self.kind == Kind.BF16:
            return (self.data.view(np.uint16).astype(np.uint32) << 16).view(np.float32).reshape(self.shape)
        dtype = {Kind.F32: np.float32, Kind.F16: np.float16}.get(self.kind, np.uint8)
        rows = self.data.view(dtype).reshape(*self.shape[:-1], -1)
        return np.array(decode(rows, self.kind), np.float32).reshape(self.shape)


@dataclass(frozen=True)
class GgufFile:
    """A GGUF file, or a whole split set as one."""

    name: str
    keys: dict[str, Any]
    """Numbers, texts, flags, lists of texts, and arrays of numbers."""
    tensors: dict[str, StoredTensor]


def open_gguf(path: Path) -> GgufFile:
    """Keys and tensors of a file, and of the other parts where it is the first of a split set.

    Raises:
        CorruptFile: not a whole GGUF file, or not the first part of a split set, or a part of the set is absent.
    """
    first = _read(path)
    count = first.keys.get("split.count", 0)
    if not isinstance(count, int) or count <= 1:
        return first
    part, match = first.keys.get("split.no"), PART.fullmatch(path.name)
    if part != 0:
        begin = f"{match[1]}-00001-of-{match[3]}{match[4]}" if match else "the file whose name ends in -00001-of-..."
        shown = part + 1 if isinstance(part, int) else "one"
        raise CorruptFile(f"{path.name} is part {shown} of {count} of a model: give the first part, {begin}.")
    if match is None or int(match[3]) != count:
        raise CorruptFile(
            f"{path.name} is part 1 of {count} of a model, whose other parts are found by their names: call it "
            f"NAME-00001-of-{count:05}.gguf, and the others alike."
        )
    tensors = dict(first.tensors)
    for number in range(2, count + 1):
        other = path.with_name(f"{match[1]}-{number:05}-of-{match[3]}{match[4]}")
        if not other.is_file():
            raise CorruptFile(
                f"{path.name} is part 1 of {count} of a model, and {other.name} is not beside it: put all parts into "
                "one folder."
            )
        found = _read(other)
        if found.keys.get("split.no") != number - 1 or found.tensors.keys() & tensors.keys():
            raise CorruptFile(f"{other.name} is not part {number} of {path.name}: download the set again.")
        tensors |= found.tensors
    if first.keys.get("split.tensors.count", len(tensors)) != len(tensors):
        raise CorruptFile(f"The parts of {path.name} do not hold all its tensors: download the set again.")
    return GgufFile(path.name, first.keys, tensors)


def _read(path: Path) -> GgufFile:
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
            keys, entries, start = _header(_Bytes(memoryview(mapped)))
        data = np.memmap(path, np.uint8, "r")
        tensors = {entry[0]: _tensor(entry, data[start:]) for entry in entries}
        if sum(tensor.data.size for tensor in tensors.values()) > data.size:
            raise ValueError("its tensors overlap")
        if len(tensors) < len(entries):
            raise ValueError("a tensor is there twice")
    except (OSError, ValueError, struct.error, OverflowError) as error:
        raise CorruptFile(f"{path.name} is not a whole GGUF file ({error}): download it again.") from None
    return GgufFile(path.name, keys, tensors)


Entry = tuple[str, tuple[int, ...], int, int]
"""Name, shape in numpy's order, number of the type, and offset of a tensor."""


def _header(read: _Bytes) -> tuple[dict[str, Any], list[Entry], int]:
    """Keys, tensors, and where the data begins."""
    with read:
        if read.take(4) != b"GGUF":
            raise ValueError("it does not begin with GGUF")
        version, tensor_count, key_count = read.numbers("<IQQ")
        if version not in (2, 3):
            raise ValueError("it is of a version other than 2 and 3, or for machines of the other byte order")
        if max(tensor_count, key_count) > MOST_ENTRIES:
            raise ValueError("it announces more entries than any model has")
        keys: dict[str, Any] = {}
        for _ in range(key_count):
            name = read.text(LONGEST_NAME)
            if name in keys:
                raise ValueError(f"the key {name[:60]} is there twice")
            keys[name] = read.value(read.numbers("<I")[0])
        entries = [_entry(read) for _ in range(tensor_count)]
        alignment = keys.get("general.alignment", gguf.GGUF_DEFAULT_ALIGNMENT)
        if not isinstance(alignment, int) or not 0 < alignment <= MOST_ENTRIES or alignment & (alignment - 1):
            raise ValueError("its alignment is not a power of two")
        return keys, entries, -(-read.place // alignment) * alignment


def _entry(read: _Bytes) -> Entry:
    name = read.text(LONGEST_NAME)
    (count,) = read.numbers("<I")
    if not 1 <= count <= 4:
        raise ValueError(f"the tensor {name[:60]} has {count} dimensions")
    shape = tuple(reversed(read.numbers(f"<{count}Q")))
    return name, shape, *read.numbers("<IQ")


def _tensor(entry: Entry, data: np.ndarray) -> StoredTensor:
    name, shape, number, offset = entry
    try:
        kind = Kind(number)
        block, _ = gguf.GGML_QUANT_SIZES[kind]
    except (ValueError, KeyError):
        raise ValueError(f"the tensor {name[:60]} is of an unknown type, {number}") from None
    if kind.name in NO_WEIGHTS:
        raise ValueError(f"the tensor {name[:60]} is of the type {kind.name}, in which no weights are stored")
    if not 0 < math.prod(shape) <= 8 * block * data.size or shape[-1] % block:
        raise ValueError(f"the tensor {name[:60]} is larger than the file, or its rows are not whole")
    size = bytes_of(shape, kind)
    if offset + size > data.size:
        raise ValueError(f"the tensor {name[:60]} ends behind the end of the file")
    return StoredTensor(name, shape, kind, data[offset : offset + size])


class _Bytes:
    """A place in a file that moves on; raises ValueError at the file's end."""

    def __init__(self, view: memoryview) -> None:
        self._view = view
        self.place = 0

    def __enter__(self) -> _Bytes:
        return self

    def __exit__(self, *_: object) -> None:
        self._view.release()

    def take(self, size: int) -> bytes:
        begin, self.place = self.place, self.place + size
        if self.place > len(self._view):
            raise ValueError("it ends too early")
        return bytes(self._view[begin : self.place])

    def numbers(self, form: str) -> tuple[Any, ...]:
        return struct.unpack(form, self.take(struct.calcsize(form)))

    def text(self, longest: int | None = None) -> str:
        (size,) = self.numbers("<Q")
        if longest is not None and size > longest:
            raise ValueError("a name is too long")
        return self.take(size).decode("utf-8")

    def value(self, kind: int) -> Any:
        if kind in NUMBERS:
            return self.numbers(NUMBERS[kind])[0]
        if kind == TEXT:
            return self.text()
        if kind != ARRAY:
            raise ValueError(f"a key is of an unknown type, {kind}")
        inner, count = self.numbers("<IQ")
        if inner in NUMBERS:
            dtype = np.dtype(NUMBERS[inner])
            return np.frombuffer(self.take(count * dtype.itemsize), dtype)
        if inner != TEXT or count > MOST_TEXTS:
            raise ValueError("an array holds arrays or too many texts")
        return list(self._texts(count))

    def _texts(self, count: int) -> Iterator[str]:
        """As `text`, in a loop that a vocabulary can pass quickly."""
        view, place, end = self._view, self.place, len(self._view)
        size_at: Callable[[int], tuple[int]] = partial(struct.Struct("<Q").unpack_from, view)
        for _ in range(count):
            if place + 8 > end:
                raise ValueError("it ends too early")
            begin = place + 8
            place = begin + size_at(place)[0]
            if place > end:
                raise ValueError("it ends too early")
            yield str(view[begin:place], "utf-8")
        self.place = place
