"""A checkpoint directory as one GGUF file that stock llama.cpp runs."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from threading import Event

import gguf
import numpy as np

from surgery.common.files import new_file
from surgery.common.progress import Report, raise_if_set
from surgery.errors import InputError
from surgery.folders.files import CheckpointFiles
from surgery.gguf.metadata import add_metadata
from surgery.gguf.mixes import check_type
from surgery.gguf.plan import GgufPlan, begin
from surgery.gguf.tensors import PlannedTensor
from surgery.gguf.types import Kind, encode

Importance = Mapping[str, np.ndarray]
"""Mean square of each input, (inputs,), by the name of the linear's weight in the checkpoint."""


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
    bits_per_weight: float
    notes: tuple[str, ...] = ()
    """What a person should know of the file, one sentence each."""


def write_gguf(
    checkpoint: Path,
    out: Path,
    type_name: str = "F16",
    report: Report | None = None,
    stop: Event | None = None,
    importance: Importance | None = None,
    name: str | None = None,
) -> Exported:
    """Write a checkpoint directory as a GGUF file, reading and holding one tensor at a time.

    Args:
        checkpoint: a folder that `build` or save_pretrained wrote, uniform or with `per_layer_config`.
        out: the file; written under a temporary name beside it and renamed.
        type_name: the file's type, see `recipe.GgufType` and `gguf_mixes`.
        importance: the importance matrix; linears that it does not name are encoded without.
        name: the model's name in the file; the folder's if None.

    Raises:
        InputError: unknown type, unreadable checkpoint, nothing in llama.cpp that does the same, or no space left; the
            message says which.
        Cancelled: stopped; nothing is left behind.
    """
    check_type(type_name)
    plan = GgufPlan(CheckpointFiles(checkpoint))
    chosen = plan.kinds(type_name, importance is not None)
    with new_gguf(out, plan.layout.architecture) as writer:
        called = name or checkpoint.resolve().name
        add_metadata(writer, plan.files, plan.layout, plan.tokenizer, type_name, called)
        begin(writer, plan.tensors, chosen)
        _write_data(writer, plan, chosen, importance or {}, report, stop)
    return Exported(
        path=out,
        bytes=out.stat().st_size,
        architecture=plan.layout.architecture,
        tensors=len(plan.tensors),
        parameters=plan.parameters,
        type_name=type_name,
        bits_per_weight=plan.bits_per_weight(type_name, importance is not None),
        notes=tuple(filter(None, (*plan.notes, plan.short_rows(type_name, importance is not None)))),
    )


@contextlib.contextmanager
def new_gguf(out: Path, architecture: str) -> Iterator[gguf.GGUFWriter]:
    """A writer of a GGUF file that appears when the block has ended without an exception; errors as `new_file`."""
    with new_file(out) as temporary:
        writer = gguf.GGUFWriter(temporary, architecture)
        try:
            yield writer
            writer.close()
        finally:
            with contextlib.suppress(OSError):  # closing flushes, which a full disk refuses once more
                writer.close()


def _write_data(
    writer: gguf.GGUFWriter,
    plan: GgufPlan,
    chosen: dict[str, Kind],
    importance: Importance,
    report: Report | None,
    stop: Event | None,
) -> None:
    """Write every tensor, each read, encoded and written before the next is read."""
    total, done = plan.parameters, 0
    for tensor in plan.tensors:
        raise_if_set(stop)
        if report is not None:
            report(done / total, f"Writing {tensor.name}")
        writer.write_tensor_data(encoded(tensor, plan.files, chosen[tensor.name], importance))
        done += tensor.parameters


def encoded(
    tensor: PlannedTensor, files: CheckpointFiles, kind: Kind, importance: Importance | None = None
) -> np.ndarray:
    """One tensor of a checkpoint as the file holds it; errors as `encode`."""
    columns = (importance or {}).get(tensor.sources[0]) if tensor.sources else None
    values = tensor.read(files)
    try:
        return encode(values, kind, columns)
    except InputError as error:
        raise InputError(f"{tensor.name} cannot be written: {error}.") from None
