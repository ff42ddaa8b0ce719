"""Shipping: from a model and a recipe to a folder that somebody else can run, check and make again."""

from __future__ import annotations

import math
import os
import shutil
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from threading import Event
from typing import Any, Literal

import torch
from safetensors import SafetensorError

from analysis.text import Windows
from surgery.build import Built, build_model
from surgery.checkpoint import RECIPE_FILE, check_free, save_checkpoint
from surgery.checksums import write_sums
from surgery.download import checkpoint_bytes, file_name
from surgery.errors import InputError, VerificationFailed
from surgery.gguf_export import write_gguf
from surgery.live import Estimate
from surgery.model_card import MODELFILE, model_card
from surgery.modelfile import modelfile
from surgery.origin import CARD, origin_of
from surgery.packing import refuse_without_room
from surgery.recipe import Quantize, Recipe
from surgery.recipe_words import recipe_words
from surgery.ship_record import RECORD, Kind, Measured, Part, Protocol, Sample, ShipRecord
from surgery.structure import Structure, dense
from surgery.text_names import shown_source
from surgery.verification import Verification, verify
from surgery.workbench import OpenModel, TextChoice

SAMPLE_WINDOWS = 2
SAMPLE_TOKENS = 64
SAMPLE_EVERY = 8
"""Logits of every eighth token of the sample's windows are kept."""
Report = Callable[[float, str], None]


@dataclass(frozen=True)
class ShipOptions:
    """What goes into the folder."""

    checkpoint: bool = True
    gguf: str | None = None
    """Type of a GGUF file; None for none."""
    keep_windows: bool = True
    """Whether the token ids of the measured text go along. Without them only who has the text can measure again."""


@dataclass(frozen=True)
class Shipped:
    """A folder that was made and verified."""

    path: Path
    record: ShipRecord
    verification: Verification
    notes: tuple[str, ...]

    def document(self) -> dict[str, Any]:
        """What `ship` prints."""
        found = self.verification.document()
        kept = ("holds", "files", "sha256", "recipe", "dense_perplexity", "differences")
        return {
            "path": str(self.path),
            "bytes": sum(entry.stat().st_size for entry in self.path.rglob("*") if entry.is_file()),
            "parameters": self.record.parameters,
            "perplexity": self.record.shipped.measured.perplexity,
            "parts": {part.kind: part.model_dump(mode="json", exclude={"kind"}) for part in self.record.parts},
            **{key: found[key] for key in kept},
            "notes": list(self.notes),
        }


@dataclass(frozen=True)
class _Form:
    """One form in which the model ships, as it is measured before it is written."""

    kind: Kind
    structure: Structure
    estimate: Estimate
    logits: torch.Tensor


def ship(
    model: OpenModel,
    recipe: Recipe,
    out: Path,
    text: TextChoice = TextChoice(),
    options: ShipOptions = ShipOptions(),
    calibration: Sequence[TextChoice] = (),
    report: Report = lambda share, words: None,
    stop: Event | None = None,
) -> Shipped:
    """Make a folder with the model, its recipe, card, sums and a record of what was measured; then verify it.

    The folder is made under a temporary name beside `out` and renamed once its files, read back, give what was
    measured. When they do not, it is kept under a name that says so (`out` with `.not-verified` behind), for a look.

    Args:
        model: the source.
        recipe: what to make of it.
        out: the folder; nothing may be in it.
        text: what perplexity is measured on.
        options: what goes in.
        calibration: texts, besides the embedded one, that the recipe's compensations may be computed on.
        report: progress; may raise to stop.
        stop: ends the work.

    Raises:
        InputError: the recipe cannot be shipped so, the folder is in use, or there is no room; nothing is left.
        VerificationFailed: the files do not hold; the message names the folder in which they are kept.
        Cancelled: stopped; nothing is left.
    """
    if not options.checkpoint and options.gguf is None:
        raise InputError("There is nothing to ship: ask for the checkpoint, a GGUF file, or both.")
    check_free(out)
    windows = model.windows(text)
    structures = _structures(model, recipe, options, calibration, _share(report, 0.0, 0.2), stop)
    refuse_without_room(out.parent, _needed_bytes(model, structures), "Shipping")
    sample = sample_windows(model)
    forms = _measured(model, structures, windows, sample, _share(report, 0.2, 0.4), stop)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}-") as scratch:
            made = Path(scratch) / out.name
            record, notes = _write(
                model, recipe, made, forms, (windows, sample), options, _share(report, 0.4, 0.7), stop
            )
            verification = _verified(made, out, text, _share(report, 0.7, 0.99), stop)
            _put(made, out)
    except (OSError, SafetensorError) as error:  # safetensors has its own error for a full disk
        reason = getattr(error, "strerror", None) or error
        raise InputError(
            f"The folder {str(out)!r} cannot be written ({reason}): free some space or choose another folder."
        ) from None
    report(1.0, "Shipped and verified")
    return Shipped(out, record, replace(verification, path=out), notes)


def sample_windows(model: OpenModel) -> Windows:
    """The windows of the embedded text whose logits are kept."""
    length = min(SAMPLE_TOKENS, model.architecture.context_length)
    return model.windows(TextChoice(window=length, windows=SAMPLE_WINDOWS))


def _structures(
    model: OpenModel,
    recipe: Recipe,
    options: ShipOptions,
    calibration: Sequence[TextChoice],
    report: Report,
    stop: Event | None,
) -> dict[Kind, Structure]:
    """The structure of each form: a checkpoint holds floating point, a GGUF file what its type reads back as."""
    edits = [edit for edit in recipe.edits if not isinstance(edit, Quantize)]
    structures: dict[Kind, Structure] = {}
    if options.checkpoint:
        structures["checkpoint"] = model.complete(model.resolve(recipe).floating, calibration, report, stop).structure
    if options.gguf is not None:
        quantised = recipe.with_edits(*edits, Quantize(format="gguf", type=options.gguf))
        structures["gguf"] = model.complete(model.resolve(quantised), calibration, report, stop).structure
    return structures


def _needed_bytes(model: OpenModel, structures: dict[Kind, Structure]) -> int:
    """Bytes on the disk at most: a checkpoint, from which a GGUF file is written too, and a file no larger than it."""
    size = max(checkpoint_bytes(model, structure) for structure in structures.values())
    return size * (2 if "gguf" in structures else 1)


def _measured(
    model: OpenModel,
    structures: dict[Kind, Structure],
    windows: Windows,
    sample: Windows,
    report: Report,
    stop: Event | None,
) -> list[_Form]:
    """What each form gives, live: what a page shows of it."""
    forms: list[_Form] = []
    for number, (kind, structure) in enumerate(structures.items()):
        estimate = None
        for estimate in model.evaluator.evaluate(structure, windows, stop):
            done = (number + estimate.windows / estimate.of_windows) / len(structures)
            report(done, f"Perplexity {estimate.perplexity:.3f} after {estimate.windows} windows")
        assert estimate is not None  # there is at least one window
        if not math.isfinite(estimate.nll):
            raise InputError("The recipe makes a model whose losses are not finite numbers: change it before shipping.")
        logits = model.evaluator.logits(structure, sample.ids, _positions(sample))
        forms.append(_Form(kind, structure, estimate, logits))
    return forms


def _positions(sample: Windows) -> torch.Tensor:
    return torch.arange(sample.length - 1, -1, -SAMPLE_EVERY).flip(0)


def _write(
    model: OpenModel,
    recipe: Recipe,
    made: Path,
    forms: list[_Form],
    cut: tuple[Windows, Windows],
    options: ShipOptions,
    report: Report,
    stop: Event | None,
) -> tuple[ShipRecord, tuple[str, ...]]:
    """Every file of the folder, the sums last."""
    windows, sample = cut
    documented = recipe.model_copy(update={"results": _results(forms[-1].estimate, windows, model)})
    parts, notes = _write_weights(model, documented, made, forms, options, report, stop)
    record = _record(model, recipe, forms, parts, windows, sample, options.keep_windows)
    Sample(
        ids=sample.ids,
        positions=_positions(sample),
        logits={form.kind: form.logits for form in forms},
        windows=windows.ids.to(torch.int32) if options.keep_windows else None,
    ).save(made)
    (made / RECIPE_FILE).write_text(documented.to_json(), "utf-8")
    (made / RECORD).write_text(record.to_json(), "utf-8")
    gguf = record.part("gguf")
    if gguf is not None:
        loaded = model.loaded
        text = modelfile(
            gguf.files[0],
            loaded.tokenizer,
            getattr(loaded.model, "generation_config", None),
            model.architecture.context_length,
        )
        (made / MODELFILE).write_text(text.text, "utf-8")
        if not text.chat:
            notes += ("The Modelfile has no TEMPLATE: the chat template is not ChatML, so Ollama completes plain text.",)
    (made / CARD).write_text(model_card(record, documented, gguf is not None), "utf-8")
    report(0.95, "Writing the sums")
    write_sums(made, stop)
    return record, notes


def _write_weights(
    model: OpenModel,
    recipe: Recipe,
    made: Path,
    forms: list[_Form],
    options: ShipOptions,
    report: Report,
    stop: Event | None,
) -> tuple[list[Part], tuple[str, ...]]:
    """Checkpoint and GGUF file; without a checkpoint in the folder the file is written from one beside it."""
    report(0.0, "Building the model")
    built: Built = build_model(model.loaded.model, model.architecture, forms[0].structure.floating)
    folder = made if options.checkpoint else made.with_name("checkpoint")
    saved = save_checkpoint(built, model.loaded.tokenizer, recipe, folder, _share(report, 0.1, 0.6))
    by_kind = {form.kind: _measurement(form.estimate) for form in forms}
    parts: list[Part] = []
    notes: tuple[str, ...] = ()
    if options.checkpoint:
        weights = tuple(name for name in saved.files if name.endswith(".safetensors"))
        dtype = next(iter(model.architecture.bytes_by_dtype))
        parts.append(
            Part(
                kind="checkpoint",
                files=weights,
                bytes=saved.bytes,
                type=dtype,
                plain=saved.plain,
                measured=by_kind["checkpoint"],
            )
        )
    if options.gguf is not None:
        made.mkdir(exist_ok=True)
        path = made / f"{file_name(model.loaded.id)}-{options.gguf}.gguf"
        exported = write_gguf(folder, path, options.gguf, _share(report, 0.6, 0.9), stop)  # type: ignore[arg-type]
        notes = exported.notes
        parts.append(
            Part(
                kind="gguf",
                files=(path.name,),
                bytes=exported.bytes,
                type=options.gguf,
                architecture=exported.architecture,
                notes=notes,
                measured=by_kind["gguf"],
            )
        )
        if not options.checkpoint:
            shutil.rmtree(folder)
    return parts, notes


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


def _results(estimate: Estimate, windows: Windows, model: OpenModel) -> dict[str, Any]:
    """What the recipe says of itself from now on."""
    return estimate.document() | {
        "text": shown_source(windows.source),
        "window": windows.length,
        "bos": "every window" if windows.bos else "none",
        "dtype": next(iter(model.architecture.bytes_by_dtype)),
    }


def _record(
    model: OpenModel,
    recipe: Recipe,
    forms: list[_Form],
    parts: list[Part],
    windows: Windows,
    sample: Windows,
    keep_windows: bool,
) -> ShipRecord:
    source, structure, estimate = model.architecture, forms[0].structure, forms[0].estimate
    return ShipRecord(
        recipe=recipe.key,
        words=recipe_words(recipe, structure, dense(source)),
        origin=origin_of(model.loaded),
        parameters=structure.parameters,
        dense_parameters=source.parameters,
        blocks=sum(not spec.empty for spec in structure.blocks),
        dense_blocks=len(source.blocks),
        dense_bytes=sum(source.bytes_by_dtype.values()),
        protocol=Protocol(
            text=shown_source(windows.source),
            text_fingerprint=windows.text_fingerprint,
            windows_fingerprint=windows.fingerprint,
            window=windows.length,
            windows=windows.count,
            spread=windows.spread,
            bos=windows.bos,
            tokens=estimate.tokens,
            dtype=next(iter(source.bytes_by_dtype)),
            dense_nll=estimate.nll - estimate.difference,
            dense_perplexity=_plain(estimate.dense_perplexity),
            kept=keep_windows,
        ),
        sample_text=sample.text_fingerprint,
        parts=tuple(parts),
    )


def _verified(made: Path, out: Path, text: TextChoice, report: Report, stop: Event | None) -> Verification:
    """Verify before the folder gets its name; what does not hold is kept under another."""
    try:
        return verify(made, text, report, stop)
    except VerificationFailed as error:
        aside = _unused(out.with_name(f"{out.name}.not-verified"))
        os.replace(made, aside)
        raise VerificationFailed(f"{error} The folder was not put in place; it is kept as {str(aside)!r}.",
                                 error.verification) from None  # fmt: skip


def _unused(path: Path) -> Path:
    """The path, or with a number behind where it is taken."""
    number, free = 1, path
    while free.exists():
        number += 1
        free = path.with_name(f"{path.name}-{number}")
    return free


def _put(made: Path, out: Path) -> None:
    """Give the finished folder its name."""
    check_free(out)
    if out.is_dir():
        out.rmdir()
    os.replace(made, out)


def _share(report: Report, start: float, end: float) -> Report:
    """A report of one part of the work inside the whole."""
    return lambda share, words: report(start + (end - start) * share, words)
