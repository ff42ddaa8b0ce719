"""GGUF files changed in one place, written by the official library."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np


def rewritten(
    path: Path,
    out: Path,
    keys: dict[str, Any] | None = None,
    without: tuple[str, ...] = (),
    tensors: dict[str, np.ndarray] | None = None,
    bfloat16: bool = False,
    **writing: Any,
) -> Path:
    """A copy of a file with some keys and tensors set, or left out by name; F32 tensors are rounded if `bfloat16`."""
    reader = gguf.GGUFReader(path)
    kept = {name: (field.contents(), field.types) for name, field in reader.fields.items() if name[:5] != "GGUF."}
    writer = gguf.GGUFWriter(out, str(kept.pop("general.architecture")[0]), **writing)
    for name, (value, types) in kept.items():
        if name not in (keys or {}) and name not in without:
            writer.add_key_value(name, value, types[0], types[1] if len(types) > 1 else None)
    adders: dict[type, Callable[[str, Any], None]] = {
        bool: writer.add_bool, int: writer.add_uint32, float: writer.add_float32, str: writer.add_string,
        list: writer.add_array,
    }  # fmt: skip
    for name, value in (keys or {}).items():
        adders[type(value)](name, value)
    for tensor in reader.tensors:
        if tensor.name not in without and tensor.name not in (tensors or {}):
            data, kind = np.array(tensor.data), tensor.tensor_type
            if bfloat16:
                data, kind = (data.view(np.uint32) >> 16).astype(np.uint16), gguf.GGMLQuantizationType.BF16
            writer.add_tensor(tensor.name, data, raw_dtype=kind)
    for name, values in (tensors or {}).items():
        writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return out
