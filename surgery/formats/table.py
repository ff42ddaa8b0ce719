"""The table of storage formats."""

from __future__ import annotations

from surgery.formats.compressed_tensors import CompressedTensors
from surgery.formats.format import StorageFormat
from surgery.formats.gguf import Gguf
from surgery.formats.safetensors import Safetensors
from surgery.formats.torchao import Torchao
from surgery.recipe.storage import Quantize

FORMATS: dict[str, StorageFormat] = {row.name: row for row in (Gguf(), Torchao(), CompressedTensors())}
"""Formats that a recipe can ask for, by name."""
PLAIN: StorageFormat = Safetensors()
"""The format of weights that are not quantised."""


def format_of(edit: Quantize | None) -> StorageFormat:
    """The format of a recipe's quantisation, or of weights that have none."""
    return PLAIN if edit is None else FORMATS[edit.format]
