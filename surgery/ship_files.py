"""The files of a shipped folder: weights, recipe, card, record, sample, sums."""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from threading import Event
from typing import Any, Literal

import numpy as np
import torch

from analysis.text import Windows
from surgery.build import build_model
from surgery.checkpoint import RECIPE_FILE, Saved, save_checkpoint
from surgery.checkpoint_files import INDEX
from surgery.checksums import write_sums
from surgery.download import file_name
from surgery.gguf_export import write_gguf
from surgery.jobs import part_of
from surgery.live import Estimate
from surgery.model_card import MODELFILE, model_card
from surgery.modelfile import modelfile
from surgery.origin import CARD, origin_of
from surgery.recipe import Recipe
from surgery.recipe_words import recipe_words
from surgery.ship_record import RECORD, SAMPLE, Kind, Measured, Part, Protocol, Sample, ShipRecord
from surgery.structure import Structure, dense
from surgery.text_names import shown_source
from surgery.workbench import OpenModel

NO_TEMPLATE = "The Modelfile has no TEMPLATE: the chat template is not ChatML, so Ollama completes plain text."
Report = Callable[[float, str], None]


@dataclass(frozen=True)
class ShipOptions:
    """What goes into the folder."""

    checkpoint: bool = True
    gguf: str | None = None
    """Type of a GGUF file; None for none. The recipe that ships has it as its last edit."""
    keep_windows: bool = True
    """Whether the token ids of the measured text go along. Without them only who has the text can measure again."""


@dataclass(frozen=True)
class Form:
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
    forms: list[Form]
    importance: dict[str, np.ndarray] | None

    @property
    def name(self) -> str:
        """Of files and in them."""
        return file_name(self.model.loaded.id)

    @property
    def dtype(self) -> str:
        """Number type of the model as it is loaded, and of its checkpoint."""
        return next(iter(self.model.architecture.bytes_by_dtype))


def write_folder(job: Shipping, made: Path, report: Report, stop: Event | None) -> tuple[ShipRecord, tuple[str, ...]]:
    """Every file of the folder, the sums last."""
    documented = job.recipe.model_copy(update={"results": _results(job)})
    parts = _write_weights(job, documented, made, report, stop)
    record = _record(job, parts)
    notes = tuple(note for part in parts for note in part.notes)
    Sample(
        ids=job.sample.ids,
        positions=job.positions,
        logits={form.kind: form.logits for form in job.forms},
        windows=job.windows.ids.to(torch.int32) if job.options.keep_windows else None,
    ).save(made)
    (made / RECIPE_FILE).write_text(documented.to_json(), "utf-8")
    (made / RECORD).write_text(record.to_json(), "utf-8")
    gguf = record.part("gguf")
    if gguf is not None:
        loaded: Any = job.model.loaded
        generation, context = loaded.model.generation_config, job.model.architecture.context_length
        text = modelfile(gguf.files[0], loaded.tokenizer, generation, context)
        (made / MODELFILE).write_text(text.text, "utf-8")
        notes += () if text.chat else (NO_TEMPLATE,)
    (made / CARD).write_text(model_card(record, documented, gguf is not None), "utf-8")
    for path in made.rglob("*.safetensors"):  # safetensors lets nobody but the owner read them
        shutil.copymode(made / CARD, path)
    report(0.95, "Writing the sums")
    write_sums(made, stop)
    return record, notes


def _write_weights(job: Shipping, recipe: Recipe, made: Path, report: Report, stop: Event | None) -> list[Part]:
    """Checkpoint and GGUF file; without a checkpoint in the folder the file is written from one beside it."""
    report(0.0, "Building the model")
    built = build_model(job.model.loaded.model, job.model.architecture, job.forms[0].structure)
    folder = made if job.options.checkpoint else made.with_name("checkpoint")
    saved = save_checkpoint(built, job.model.loaded.tokenizer, recipe, folder, part_of(report, 0.1, 0.6))
    return [
        _checkpoint_part(job, saved, form) if form.kind == "checkpoint" else _write_file(job, folder, made, form,
                                                                                        part_of(report, 0.6, 0.9), stop)
        for form in job.forms
    ]  # fmt: skip


def _checkpoint_part(job: Shipping, saved: Saved, form: Form) -> Part:
    return Part(
        kind="checkpoint",
        files=tuple(name for name in saved.files if name.endswith(".safetensors")),
        bytes=saved.bytes,
        type=job.dtype,
        plain=saved.plain,
        measured=_measurement(form.estimate),
    )


def _write_file(job: Shipping, checkpoint: Path, made: Path, form: Form, report: Report, stop: Event | None) -> Part:
    """Write the GGUF file from a checkpoint; where that is not in the folder itself, its weights go."""
    type_name = str(job.options.gguf)
    made.mkdir(exist_ok=True)
    path = made / f"{job.name}-{type_name}.gguf"
    exported = write_gguf(checkpoint, path, type_name, report, stop, job.importance, job.name)
    if checkpoint != made:
        _keep_small_files(checkpoint, (made / SAMPLE).parent)
    return Part(
        kind="gguf",
        files=(path.name,),
        bytes=exported.bytes,
        type=type_name,
        architecture=exported.architecture,
        notes=exported.notes,
        measured=_measurement(form.estimate),
    )


def _keep_small_files(checkpoint: Path, place: Path) -> None:
    """All but the weights and the recipe: what the GGUF file would be as a checkpoint, to read it back."""
    for path in checkpoint.iterdir():
        if path.suffix == ".safetensors" or path.name in (INDEX, RECIPE_FILE):
            path.unlink()
    os.replace(checkpoint, place)


def _measurement(estimate: Estimate) -> Measured:
    return Measured(
        nll=estimate.nll,
        perplexity=_plain(estimate.perplexity),
        standard_error=None if estimate.standard_error is None else _plain(estimate.standard_error),
        difference=estimate.difference,
        difference_standard_error=estimate.difference_standard_error,
    )


def _plain(value: float) -> float | Literal["inf"]:
    return value if math.isfinite(value) else "inf"


def _results(job: Shipping) -> dict[str, Any]:
    """What the recipe says of itself from now on: of its last form, as a page shows it."""
    windows = job.windows
    return job.forms[-1].estimate.document() | {
        "text": shown_source(windows.source),
        "window": windows.length,
        "bos": "every window" if windows.bos else "none",
        "dtype": job.dtype,
    }


def _record(job: Shipping, parts: list[Part]) -> ShipRecord:
    windows, estimate = job.windows, job.forms[0].estimate
    protocol = Protocol(
        text=shown_source(windows.source),
        text_fingerprint=windows.text_fingerprint,
        windows_fingerprint=windows.fingerprint,
        window=windows.length,
        windows=windows.count,
        spread=windows.spread,
        bos=windows.bos,
        tokens=estimate.tokens,
        dtype=job.dtype,
        dense_nll=estimate.nll - estimate.difference,
        dense_perplexity=_plain(estimate.dense_perplexity),
        kept=job.options.keep_windows,
    )
    return record_of(job.model, job.recipe, job.forms[0].structure, parts, protocol, job.sample.text_fingerprint)


def record_of(
    model: OpenModel,
    recipe: Recipe,
    structure: Structure,
    parts: Sequence[Part],
    protocol: Protocol | None = None,
    sample_text: str = "",
) -> ShipRecord:
    """What is known of some forms of a model.

    Args:
        model: the source.
        recipe: what made them.
        structure: what the recipe makes of the model.
        parts: the forms.
        protocol: how they were measured, if they were.
        sample_text: see `ShipRecord`.
    """
    source = model.architecture
    return ShipRecord(
        recipe=recipe.key,
        words=recipe_words(recipe, structure, dense(source)),
        origin=origin_of(model.loaded),
        parameters=structure.parameters,
        dense_parameters=source.parameters,
        blocks=sum(not spec.empty for spec in structure.blocks),
        dense_blocks=len(source.blocks),
        dense_bytes=sum(source.bytes_by_dtype.values()),
        protocol=protocol,
        sample_text=sample_text,
        parts=tuple(parts),
    )
