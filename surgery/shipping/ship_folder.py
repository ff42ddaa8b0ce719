"""Shipping: from a model and a recipe to a folder that somebody else can run, check and make again."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from threading import Event
from typing import Any

import numpy as np
import torch

from analysis.text import Windows
from surgery.common.files import check_free, new_folder, refuse_without_room, usual_modes
from surgery.common.progress import Report, part_of, silent
from surgery.errors import InputError, VerificationFailed
from surgery.formats.table import format_of
from surgery.gguf.mixes import check_type
from surgery.quantization.gguf_codecs import importance_of
from surgery.recipe.edits import Eora
from surgery.recipe.recipe import Recipe
from surgery.recipe.storage import Quantize
from surgery.recipe.texts import TextChoice
from surgery.shipping.download import checkpoint_bytes, file_name
from surgery.shipping.folder import write_folder
from surgery.shipping.origin import origin_of
from surgery.shipping.record import Kind, ShipRecord
from surgery.shipping.verify import Verification, verify
from surgery.shipping.weights import MeasuredForm, ShipOptions, Shipping
from surgery.structure.structure import Structure
from surgery.workbench.open_model import OpenModel

SAMPLE_WINDOWS = 2
SAMPLE_TOKENS = 64
SAMPLE_EVERY = 8
"""Logits of every eighth token of the sample's windows are kept."""


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
            "perplexity": found["perplexity"],
            "parts": {part.kind: part.model_dump(mode="json", exclude={"kind"}) for part in self.record.parts},
            "runs": {name: run.model_dump(mode="json") for name, run in self.record.runs.items()},
            **{key: found[key] for key in kept},
            "notes": list(self.notes),
        }


def ship(
    model: OpenModel,
    recipe: Recipe,
    out: Path,
    text: TextChoice = TextChoice(shorten=True),
    options: ShipOptions = ShipOptions(),
    calibration: Sequence[TextChoice] = (),
    report: Report = silent,
    stop: Event | None = None,
    results: Sequence[Path] = (),
) -> Shipped:
    """Make a folder with the model, its recipe, card, sums and a record of what was measured; then verify it.

    The folder is made under a temporary name beside `out` and renamed once its files, read back, give what was
    measured. When they do not, it is kept under a name that says so (`out` with `.not-verified` behind), for a look.

    Args:
        out: the folder; nothing may be in it.
        text: what perplexity is measured on.
        calibration: texts, besides the embedded one, that the recipe's compensations may be computed on.
        results: folders with results of healing that the recipe may name, besides those that were kept.

    Raises:
        InputError: the recipe cannot be shipped so, the folder is in use, or there is no room; nothing is left.
        VerificationFailed: the files do not hold; the message names the folder in which they are kept.
        Cancelled: stopped; nothing is left.
    """
    check_options(recipe, options)
    check_free(out)
    recipe = shipped_recipe(recipe, options)
    windows, sample = model.windows(text), sample_windows(model)
    done = model.complete(model.resolve(recipe), calibration, part_of(report, 0.0, 0.2), stop, results).structure
    structures = _structures(done, options)
    refuse_without_room(out.parent, _needed_bytes(model, recipe, structures), "Shipping")
    forms = _measured(model, structures, windows, sample, part_of(report, 0.2, 0.4), stop)
    importance, origin = _importance(model, recipe, structures, calibration), origin_of(model.loaded)
    failure = f"The folder {str(out)!r} cannot be written"
    with new_folder(out, failure, "free some space or choose another folder") as made, _kept_aside(made, out):
        job = Shipping(model, recipe, options, windows, sample, _positions(sample), forms, importance, origin)
        record, notes = write_folder(job, made, part_of(report, 0.4, 0.7), stop)
        verification = verify(made, text, part_of(report, 0.7, 0.99), stop)
    report(1.0, "Shipped and verified")
    return Shipped(out, record, replace(verification, path=out), notes)


def check_options(recipe: Recipe, options: ShipOptions) -> None:
    """Refuse what no model makes possible, before one is opened. Raises InputError, which says why."""
    if not options.checkpoint and options.gguf is None:
        raise InputError("There is nothing to ship: ask for the checkpoint, a GGUF file, or both.")
    if options.gguf is not None:
        check_type(options.gguf)
    shipped_recipe(recipe, options)


def sample_windows(model: OpenModel) -> Windows:
    """The windows of the embedded text whose logits are kept."""
    length = min(SAMPLE_TOKENS, model.architecture.context_length or SAMPLE_TOKENS)
    return model.windows(TextChoice(window=length, windows=SAMPLE_WINDOWS))


def _positions(sample: Windows) -> torch.Tensor:
    return torch.arange(sample.length - 1, -1, -SAMPLE_EVERY).flip(0)


def shipped_recipe(recipe: Recipe, options: ShipOptions) -> Recipe:
    """The recipe of what ships: as it is where its quantisation is one of the forms, else with the GGUF file's, or
    with none.

    Raises:
        InputError: it packs the checkpoint, and something else is asked for.
    """
    held = recipe.find(Quantize)
    if held is not None and not format_of(held).one_file:
        if options.gguf is not None or not options.checkpoint:
            raise InputError(
                f"The recipe packs a checkpoint as {held.format}: ship that checkpoint alone, or take the edit out."
            )
        return recipe
    if held is not None and held.type == options.gguf:
        return recipe
    if held is None and options.gguf is None and recipe.find(Eora) is not None:
        raise InputError("EoRA repairs a quantised model, and nothing is quantised here: ship a GGUF file.")
    edits: list[Any] = [edit for edit in recipe.edits if not isinstance(edit, Quantize | Eora)]
    if options.gguf is not None:
        edits.append(Quantize(format="gguf", type=options.gguf, text=held.text if held is not None else None))
        edits += [edit for edit in recipe.edits if isinstance(edit, Eora)]
    return recipe.with_edits(*edits) if edits != list(recipe.edits) else recipe


def _structures(done: Structure, options: ShipOptions) -> dict[Kind, Structure]:
    """The structure of each form: a checkpoint beside a GGUF file is in floating point."""
    structures: dict[Kind, Structure] = {}
    if options.checkpoint:
        structures["checkpoint"] = done.floating if options.gguf is not None else done
    if options.gguf is not None:
        structures["gguf"] = done
    return structures


def _importance(
    model: OpenModel, recipe: Recipe, structures: dict[Kind, Structure], calibration: Sequence[TextChoice]
) -> dict[str, np.ndarray] | None:
    """The importance matrix that the GGUF file is written with: the one that was measured with."""
    edit = recipe.find(Quantize)
    if edit is None or edit.text is None or "gguf" not in structures:
        return None
    structure = structures["gguf"].floating
    return importance_of(structure, model.moments(structure, edit.text, calibration))


def _needed_bytes(model: OpenModel, recipe: Recipe, structures: dict[Kind, Structure]) -> int:
    """Bytes that are on the disk at one time: a checkpoint, from which a GGUF file is written too, and that file."""
    needed = checkpoint_bytes(model, next(iter(structures.values())))
    if "gguf" in structures:
        edit = recipe.find(Quantize)
        assert edit is not None  # the structure is quantised by it
        plan = model.gguf_plan(structures["gguf"])
        needed += plan.file_bytes(edit.type, file_name(model.loaded.id), edit.text is not None)
    return needed


def _measured(
    model: OpenModel,
    structures: dict[Kind, Structure],
    windows: Windows,
    sample: Windows,
    report: Report,
    stop: Event | None,
) -> list[MeasuredForm]:
    """What each form gives, live: what a page shows of it."""
    forms: list[MeasuredForm] = []
    for number, (kind, structure) in enumerate(structures.items()):
        estimate = None
        for estimate in model.evaluator.evaluate(structure, windows, stop):
            done = (number + estimate.windows / estimate.of_windows) / len(structures)
            report(done, f"Perplexity {estimate.perplexity:.3f} after {estimate.windows} windows")
        assert estimate is not None  # there is at least one window
        if not math.isfinite(estimate.nll):
            raise InputError("The recipe makes a model whose losses are not finite numbers: change it before shipping.")
        logits = model.evaluator.logits(structure, sample.ids, _positions(sample))
        forms.append(MeasuredForm(kind, structure, estimate, logits))
    return forms


@contextmanager
def _kept_aside(made: Path, out: Path) -> Iterator[None]:
    """Keep a folder that does not hold under a name that says so, instead of putting it in place."""
    try:
        yield
    except VerificationFailed as error:
        aside = _unused(out.with_name(f"{out.name}.not-verified"))
        usual_modes(made)
        os.replace(made, aside)
        raise VerificationFailed(error.message, error.verification, aside) from None


def _unused(path: Path) -> Path:
    """The path, or with a number behind where it is taken."""
    number, free = 1, path
    while free.exists():
        number += 1
        free = path.with_name(f"{path.name}-{number}")
    return free
