"""What the verb `quantize` does for the formats torchao and compressed-tensors, and for the low-rank repair."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from surgery.checkpoints.adapter import save_adapter
from surgery.checkpoints.build import build_model
from surgery.common.files import SMALL, check_free, refuse_without_room
from surgery.common.jobs import Context
from surgery.common.progress import part_of
from surgery.fit.weight_types import type_of_edit, weights_by_class
from surgery.formats.table import FORMATS
from surgery.recipe.base import ModelReference, TextReference
from surgery.recipe.recipe import Recipe
from surgery.recipe.texts import TextChoice, text_reference
from surgery.workbench.open_model import OpenModel


@dataclass(frozen=True)
class PackedChoice:
    """What is asked for: the options of the command line under their own names."""

    format: str
    type: str
    method: str = "round_to_nearest"
    group_size: int | None = None
    symmetric: bool = True
    act_order: bool = False
    true_sequential: bool = True
    rank: int | None = None
    """Of the EoRA adapter; None for none."""

    def edits(self, text: TextReference | None) -> list[dict[str, Any]]:
        """The edits of a recipe that ask for it, calibrated on a text."""
        found: list[dict[str, Any]] = [
            {
                "op": "quantize",
                "format": self.format,
                "type": self.type,
                "method": self.method,
                "text": text if self.method == "gptq" else None,
                "group_size": self.group_size,
                "symmetric": self.symmetric,
                "act_order": self.act_order,
                "true_sequential": self.true_sequential,
            }
        ]
        return found if self.rank is None else [*found, {"op": "eora", "rank": self.rank, "text": text}]

    def check(self, out: Path) -> None:
        """Refuse, before a model is opened, what no model makes possible. Raises InputError, which says why."""
        for folder in (out, adapter_beside(out)) if self.rank is not None else (out,):
            check_free(folder)
        anything = TextReference(source="text", fingerprint="text", window=2, windows=1)
        Recipe(model=ModelReference(id="model")).with_edits(*self.edits(anything))


def adapter_beside(out: Path) -> Path:
    """The folder of the adapter that goes with a quantised checkpoint."""
    return out.with_name(f"{out.name}-adapter")


def quantize_checkpoint(
    opened: OpenModel, choice: PackedChoice, calibration: TextChoice, measured: TextChoice, out: Path, job: Context
) -> dict[str, Any]:
    """Quantise an open checkpoint, measure it as it will reload, and write it (and its adapter, as `OUT-adapter`).

    Args:
        calibration: the text for GPTQ and EoRA; not read for anything else.
        measured: the text that the perplexity is measured on.
        job: told the progress, and asked whether to stop.

    Returns:
        The contract's JSON keys `bytes`, `bits_per_weight`, `perplexity`, and more.

    Raises:
        InputError: the model cannot be stored so, or a folder is in use or cannot be written.
        Cancelled: the job is to stop; nothing is left behind.
    """
    choice.check(out)
    adapter = adapter_beside(out)
    calibrated = choice.method == "gptq" or choice.rank is not None
    text = text_reference(opened.windows(calibration)) if calibrated else None
    recipe = opened.recipe().with_edits(*choice.edits(text))
    structure = opened.resolve(recipe)
    assert structure.quantize is not None  # it was just put in
    needed = sum(weights_by_class(structure, type_of_edit(structure.quantize)).values())
    refuse_without_room(out.parent, needed, "Quantising", SMALL)
    done = opened.complete(structure, [calibration], part_of(job.report, 0.0, 0.7), job.stop).structure
    job.report(0.7, "Measuring")
    windows = opened.windows(measured)
    estimate = opened.evaluator.measure(done, windows, job.stop)
    built = build_model(opened.loaded.model, opened.architecture, done)
    save = FORMATS[choice.format].save
    saved = save(built, done, opened.loaded.tokenizer, recipe, out, part_of(job.report, 0.85, 1.0))
    if choice.rank is not None:
        save_adapter(done, str(out), adapter)
    return {
        **saved.document(),
        "bits_per_weight": 8 * saved.bytes / saved.parameters,
        "perplexity": estimate.perplexity,
        "dense_perplexity": estimate.dense_perplexity,
        "format": choice.format,
        "type": choice.type,
        "method": choice.method,
        "calibration": text.model_dump() if text else None,
        "text": text_reference(windows).model_dump(),
        "adapter": str(adapter) if choice.rank is not None else None,
    }
