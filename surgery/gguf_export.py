"""A checkpoint directory as one GGUF file that stock llama.cpp runs."""

from __future__ import annotations

import contextlib
import os
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from threading import Event
from typing import get_args

import gguf
import numpy as np

from surgery.checkpoint_files import CheckpointFiles
from surgery.errors import Cancelled, InputError
from surgery.gguf_families import needed
from surgery.gguf_layout import Layout, lay_out
from surgery.gguf_rope import add_rope
from surgery.gguf_tensors import PlannedTensor, TypeName, plan, tensor_type
from surgery.gguf_tokenizer import GgufTokenizer, read_tokenizer

Report = Callable[[float, str], None]
TypeOf = Callable[[str, tuple[int, ...]], gguf.GGMLQuantizationType]
FILE_TYPES = {
    "F32": gguf.LlamaFileType.ALL_F32,
    "F16": gguf.LlamaFileType.MOSTLY_F16,
    "Q8_0": gguf.LlamaFileType.MOSTLY_Q8_0,
}


@dataclass(frozen=True)
class Exported:
    """A GGUF file that was written."""

    path: Path
    bytes: int
    architecture: str
    """llama.cpp's name of the architecture."""
    tensors: int
    parameters: int
    """Values in the file's tensors, constants such as rotary factors included."""
    type_name: str
    notes: tuple[str, ...] = ()
    """What a person should know of the file, one sentence each."""


def write_gguf(
    checkpoint: Path,
    out: Path,
    type_name: TypeName = "F16",
    report: Report | None = None,
    stop: Event | None = None,
) -> Exported:
    """Write a checkpoint directory as a GGUF file, reading and holding one tensor at a time.

    Args:
        checkpoint: a folder that `build` or save_pretrained wrote, uniform or with `per_layer_config`.
        out: the file; written under a temporary name beside it and renamed.
        type_name: type of the matrices; vectors stay F32, rows that are not whole blocks of Q8_0 become F16.
        report: told the share done; may raise to stop.
        stop: set by another thread to stop within one tensor.

    Raises:
        InputError: unknown type, unreadable checkpoint, nothing in llama.cpp that does the same, or no space left; the
            message says which.
        Cancelled: stopped; nothing is left behind.
    """
    if type_name not in get_args(TypeName):
        raise InputError(f"GGUF export has no type {type_name!r}: choose {', '.join(get_args(TypeName))}.")
    files = CheckpointFiles(checkpoint)
    layout = lay_out(files)
    tensors = plan(files, layout)
    tokenizer = read_tokenizer(files, layout)
    temporary = out.with_name(f".{uuid.uuid4().hex}.part")
    writer = gguf.GGUFWriter(temporary, layout.architecture)
    try:
        add_metadata(writer, files, layout, tokenizer, type_name)
        write_tensors(writer, files, tensors, lambda name, shape: tensor_type(name, shape, type_name), report, stop)
        os.replace(temporary, out)
        size = out.stat().st_size
    except OSError as error:
        raise InputError(
            f"{str(out)!r} cannot be written ({error.strerror or error}): choose another place or free some space."
        ) from None
    finally:
        with contextlib.suppress(OSError):  # closing flushes, which a full disk refuses once more
            writer.close()
        temporary.unlink(missing_ok=True)
    count = sum(tensor.parameters for tensor in tensors)
    return Exported(out, size, layout.architecture, len(tensors), count, type_name, (*layout.notes, *tokenizer.notes))


def add_metadata(
    writer: gguf.GGUFWriter, files: CheckpointFiles, layout: Layout, tokenizer: GgufTokenizer, type_name: str
) -> None:
    """Write every key but the tensors: sizes per block, rotary embeddings, the family's own, the tokenizer.

    Raises:
        InputError: llama.cpp cannot express something; the message says what.
    """
    family, blocks = layout.family, layout.blocks
    writer.add_type("model")
    writer.add_name(tokenizer.model_name(files.directory.resolve().name))
    writer.add_file_type(FILE_TYPES[type_name])
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    writer.add_block_count(len(blocks))
    writer.add_context_length(layout.context_length)
    writer.add_embedding_length(layout.hidden_size)
    writer.add_vocab_size(layout.vocabulary_size)
    widths, heads, kv = ([getattr(block, key) for block in blocks] for key in ("width", "query_heads", "kv_heads"))
    writer.add_feed_forward_length(widths if layout.deci else widths[0])
    writer.add_head_count(heads if layout.deci else heads[0])
    writer.add_head_count_kv(kv if layout.deci else kv[0])
    writer.add_key_length(layout.head_size)
    writer.add_value_length(layout.head_size)
    epsilon = float(needed(files.config, family.names["epsilon"]))
    (writer.add_layer_norm_eps if "layer_norm" in family.names["epsilon"] else writer.add_layer_norm_rms_eps)(epsilon)
    add_rope(writer, layout, files.config)
    family.details(files.config, writer)
    tokenizer.write(writer)


def write_tensors(
    writer: gguf.GGUFWriter,
    files: CheckpointFiles,
    tensors: list[PlannedTensor],
    type_of: TypeOf,
    report: Report | None = None,
    stop: Event | None = None,
) -> None:
    """Write header, keys and tensors, each tensor read, converted and written before the next is read.

    Raises:
        OSError: the file cannot be written.
        InputError: a value does not fit the type.
        Cancelled: `stop` was set.
    """
    types = {tensor.name: type_of(tensor.name, tensor.shape) for tensor in tensors}
    for tensor in tensors:
        stored = gguf.quants.quant_shape_to_byte_shape(tensor.shape, types[tensor.name])
        writer.add_tensor_info(
            tensor.name, tensor.shape, np.dtype(np.float32), int(np.prod(stored)), raw_dtype=types[tensor.name]
        )
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    total, done = sum(tensor.parameters for tensor in tensors), 0
    for tensor in tensors:
        if stop is not None and stop.is_set():
            raise Cancelled("Cancelled.")
        if report is not None:
            report(done / total, f"Writing {tensor.name}")
        writer.write_tensor_data(converted(tensor, files, types[tensor.name]))
        done += tensor.parameters


def converted(tensor: PlannedTensor, files: CheckpointFiles, wanted: gguf.GGMLQuantizationType) -> np.ndarray:
    """One tensor's values in the wanted type.

    Raises:
        InputError: it holds a value that is not finite, or too large for the type.
    """
    values = tensor.read(files)
    with np.errstate(over="ignore"):
        stored = gguf.quants.quantize(values, wanted)
    largest = float(np.abs(values).max(initial=0.0))
    limit = {gguf.GGMLQuantizationType.F16: 65504.0, gguf.GGMLQuantizationType.Q8_0: 127 * 65504.0}.get(wanted)
    if not np.isfinite(largest):
        raise InputError(f"{tensor.name} holds values that are not finite: build the checkpoint again.")
    if limit is not None and largest > limit:
        raise InputError(f"{tensor.name} holds the value {largest:g}, too large for {wanted.name}: choose F32.")
    return stored
