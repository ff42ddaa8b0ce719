"""The weights of a shipped folder: a checkpoint, floating or packed, a GGUF file, and adapters beside them."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from pathlib import Path
from threading import Event
from typing import Literal

import numpy as np
import torch

from analysis.text import Windows
from surgery.checkpoints.adapter import save_adapter
from surgery.checkpoints.build import build_model, stored_dtype
from surgery.checkpoints.gguf_adapter import write_gguf_adapter
from surgery.checkpoints.save import RECIPE_FILE
from surgery.common.progress import Report, part_of
from surgery.evaluation.estimate import Estimate
from surgery.folders.folder import INDEX
from surgery.formats.table import format_of
from surgery.gguf.write import write_gguf
from surgery.recipe.recipe import Recipe
from surgery.recipe.storage import Quantize
from surgery.shipping.download import file_name
from surgery.shipping.record import ADAPTER, SAMPLE, Kind, Measured, Origin, Part
from surgery.structure.structure import Structure
from surgery.workbench.open_model import OpenModel

AS_RECIPE, NONE = "recipe", "none"
"""What may stand in place of a GGUF type: that of the recipe, and no file."""


@dataclass(frozen=True)
class ShipOptions:
    """What goes into the folder."""

    checkpoint: bool = True
    gguf: str | None = None
    """Type of a GGUF file; None for none. The recipe that ships says so."""
    keep_windows: bool = True
    """Whether the token ids of the measured text go along. Without them only who has the text can measure again."""


def gguf_type(recipe: Recipe, type_name: str) -> str | None:
    """The type of the GGUF file that is asked for: a type's name, `AS_RECIPE` or `NONE`."""
    if type_name == AS_RECIPE:
        edit = recipe.find(Quantize)
        return edit.type if edit is not None and format_of(edit).one_file else None
    return None if type_name == NONE else type_name


@dataclass(frozen=True)
class MeasuredForm:
    """One form in which the model ships, as it is measured before it is written."""

    kind: Kind
    structure: Structure
    estimate: Estimate
    logits: torch.Tensor


@dataclass(frozen=True)
class Shipping:
    """Everything that the files of a folder are made from."""

    model: OpenModel
    recipe: Recipe
    options: ShipOptions
    windows: Windows
    sample: Windows
    positions: torch.Tensor
    forms: list[MeasuredForm]
    importance: dict[str, np.ndarray] | None
    origin: Origin

    @property
    def name(self) -> str:
        """Of files and in them."""
        return file_name(self.origin.name)

    @property
    def packed(self) -> Quantize | None:
        """How the checkpoint's weights are packed, if not in floating point."""
        edit = self.recipe.find(Quantize)
        return None if edit is None or format_of(edit).one_file else edit

    @property
    def dtype(self) -> str:
        """Number type of the model as it is loaded and computed."""
        return next(iter(self.model.architecture.bytes_by_dtype))


def write_weights(job: Shipping, recipe: Recipe, made: Path, report: Report, stop: Event | None) -> list[Part]:
    """Write every form into the folder. A GGUF file that ships alone is written from a checkpoint beside the folder.

    Raises:
        InputError: the forms cannot be written so.
        OSError: the disk is full.
    """
    parts: list[Part] = []
    for form in job.forms:
        if form.kind == "checkpoint":
            parts.append(_write_checkpoint(job, recipe, made, form, part_of(report, 0.0, 0.6)))
        else:
            floating = made
            if not job.options.checkpoint:
                floating = made.with_name("checkpoint")
                _write_checkpoint(job, recipe, floating, form, part_of(report, 0.0, 0.6))
            parts.append(_write_file(job, floating, made, form, part_of(report, 0.6, 1.0), stop))
    return parts


def _write_checkpoint(job: Shipping, recipe: Recipe, folder: Path, form: MeasuredForm, report: Report) -> Part:
    """A checkpoint in floating point, or as the recipe packs it."""
    report(0.0, "Building the model")
    loaded, inside = job.model.loaded, part_of(report, 0.2, 1.0)
    dtype = stored_dtype(loaded, form.structure)
    built = build_model(loaded.model, job.model.architecture, form.structure, dtype)
    packed = job.packed
    row = format_of(packed)
    saved = row.save(built, form.structure, loaded.tokenizer, recipe, folder, inside)
    size, adapter = saved.bytes, ""
    if packed is not None and _repaired(form.structure):
        adapter = ADAPTER
        save_adapter(form.structure, ".", folder / adapter)
        size += sum(path.stat().st_size for path in (folder / adapter).glob("*.safetensors"))
    return Part(
        kind="checkpoint",
        files=tuple(name for name in saved.files if name.endswith(".safetensors")),
        bytes=size,
        type=saved.dtype if packed is None else f"{packed.type} ({packed.format})",
        library=row.library,
        plain=saved.plain,
        adapter=adapter,
        measured=_measurement(form.estimate),
    )


def _write_file(
    job: Shipping, checkpoint: Path, made: Path, form: MeasuredForm, report: Report, stop: Event | None
) -> Part:
    """Write the GGUF file from a checkpoint; where that is not in the folder itself, its weights go."""
    type_name = str(job.options.gguf)
    made.mkdir(exist_ok=True)
    path = made / f"{job.name}-{type_name}.gguf"
    exported = write_gguf(checkpoint, path, type_name, report, stop, job.importance, job.name)
    size, adapter = exported.bytes, ""
    if _repaired(form.structure):
        adapter = f"{path.stem}-eora.gguf"
        written = write_gguf_adapter(form.structure, job.model.gguf_plan(form.structure), made / adapter)
        size += written.stat().st_size
    if checkpoint != made:
        _keep_small_files(checkpoint, (made / SAMPLE).parent)
    return Part(
        kind="gguf",
        files=(path.name,),
        bytes=size,
        type=type_name,
        architecture=exported.architecture,
        notes=exported.notes,
        adapter=adapter,
        measured=_measurement(form.estimate),
    )


def _repaired(structure: Structure) -> bool:
    return any(spec.repair is not None for spec in structure.blocks)


def _keep_small_files(checkpoint: Path, place: Path) -> None:
    """All but the weights and the recipe: what the GGUF file would be as a checkpoint, to read it back."""
    for path in checkpoint.iterdir():
        if path.suffix == ".safetensors" or path.name in (INDEX, RECIPE_FILE):
            path.unlink()
    os.replace(checkpoint, place)


def _measurement(estimate: Estimate) -> Measured:
    return Measured(
        nll=estimate.nll,
        perplexity=plain(estimate.perplexity),
        standard_error=None if estimate.standard_error is None else plain(estimate.standard_error),
        difference=estimate.difference,
        difference_standard_error=estimate.difference_standard_error,
    )


def plain(value: float) -> float | Literal["inf"]:
    """A number as JSON has it."""
    return value if math.isfinite(value) else "inf"
