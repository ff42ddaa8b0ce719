"""What the GGUF file of a checkpoint will hold: its tensors, their types and its exact size, before it is written."""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path

import gguf
import numpy as np

from surgery.folders.files import CheckpointFiles
from surgery.gguf.layout import Layout, lay_out
from surgery.gguf.metadata import add_metadata
from surgery.gguf.mixes import Shared, kinds
from surgery.gguf.tensors import PlannedTensor, plan
from surgery.gguf.tokenizer import GgufTokenizer, read_tokenizer
from surgery.gguf.types import Kind, bytes_of

ALIGNMENT = gguf.GGUF_DEFAULT_ALIGNMENT


class GgufPlan:
    """The GGUF file of one checkpoint, or of what would be one.

    Raises:
        UnsupportedArchitecture: llama.cpp has nothing that does the same.
        CorruptFile: the checkpoint is damaged.
    """

    def __init__(self, files: CheckpointFiles) -> None:
        self.files = files
        self.layout: Layout = lay_out(files)
        self.tensors: list[PlannedTensor] = plan(files, self.layout)
        self._headers: dict[str, int] = {}
        self._sizes: dict[tuple[str, bool], dict[str, int]] = {}

    @cached_property
    def tokenizer(self) -> GgufTokenizer:
        """The tokenizer as the file holds it."""
        return read_tokenizer(self.files, self.layout)

    @property
    def notes(self) -> tuple[str, ...]:
        """What a person should know of the file, one sentence each."""
        return (*self.layout.notes, *self.tokenizer.notes)

    @property
    def parameters(self) -> int:
        """Values in the file's tensors, constants such as rotary factors included."""
        return sum(tensor.parameters for tensor in self.tensors)

    def kinds(self, type_name: str, importance: bool = False) -> dict[str, Kind]:
        """The type of each tensor by name; see `gguf_mixes.kinds`."""
        first = self.layout.blocks[0]
        shared = Shared(first.query_heads // first.kv_heads if first.kv_heads else 1, self.layout.architecture)
        shapes = {tensor.name: tensor.shape for tensor in self.tensors}
        return kinds(shapes, type_name, shared, importance)

    def tensor_bytes(self, type_name: str, importance: bool = False) -> Mapping[str, int]:
        """Bytes of each tensor by name."""
        key = type_name, importance
        if key not in self._sizes:
            chosen = self.kinds(type_name, importance)
            self._sizes[key] = {tensor.name: bytes_of(tensor.shape, chosen[tensor.name]) for tensor in self.tensors}
        return self._sizes[key]

    def mix(self, type_name: str, importance: bool = False) -> dict[str, int]:
        """How many matrices each of GGML's types holds, most used first."""
        chosen = self.kinds(type_name, importance)
        names = Counter(chosen[tensor.name].name for tensor in self.tensors if len(tensor.shape) > 1)
        return dict(names.most_common())

    def short_rows(self, type_name: str, importance: bool = False) -> str:
        """What a person should know where rows are too odd for any block; empty where none is."""
        kept = self.mix(type_name, importance).get("F16", 0)
        if type_name in ("F16", "F32") or not kept:
            return ""
        return (
            f"{kept} of the matrices stay in F16, because their rows are not whole blocks of 32: give MLPs widths that "
            "are multiples of 32, or better of 256."
        )

    def bits_per_weight(self, type_name: str, importance: bool = False) -> float:
        """Of all tensors together."""
        return 8 * sum(self.tensor_bytes(type_name, importance).values()) / self.parameters

    def file_bytes(self, type_name: str, name: str, importance: bool = False) -> int:
        """Bytes of the whole file, exactly, where it has that name in it."""
        sizes = self.tensor_bytes(type_name, importance).values()
        return _aligned(self._header_bytes(name)) + sum(_aligned(size) for size in sizes)

    def _header_bytes(self, name: str) -> int:
        """Bytes before the data: the same for every type. Written once to a temporary file, to be counted."""
        if name not in self._headers:
            with tempfile.TemporaryDirectory() as scratch:
                path = Path(scratch) / "header"
                writer = gguf.GGUFWriter(path, self.layout.architecture)
                add_metadata(writer, self.files, self.layout, self.tokenizer, "F16", name)
                begin(writer, self.tensors, self.kinds("F16"))
                writer.close()
                self._headers[name] = path.stat().st_size
        return self._headers[name]


def begin(writer: gguf.GGUFWriter, tensors: list[PlannedTensor], chosen: dict[str, Kind]) -> None:
    """Write everything that comes before the data. Raises OSError: the file cannot be written."""
    for tensor in tensors:
        kind = chosen[tensor.name]
        size = bytes_of(tensor.shape, kind)
        writer.add_tensor_info(tensor.name, tensor.shape, np.dtype(np.float32), size, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()


def _aligned(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT
