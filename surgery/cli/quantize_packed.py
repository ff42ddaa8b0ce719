"""What the verb `quantize` does for the formats torchao and compressed-tensors, and for the low-rank repair."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from surgery.checkpoints.adapter import save_adapter
from surgery.checkpoints.build import build_model
from surgery.common.files import check_free
from surgery.common.jobs import Context
from surgery.common.progress import part_of
from surgery.formats.table import FORMATS
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
    adapter = out.with_name(f"{out.name}-adapter")
    for folder in (out, adapter) if choice.rank is not None else (out,):
        check_free(folder)
    calibrated = choice.method == "gptq" or choice.rank is not None
    text = text_reference(opened.windows(calibration)) if calibrated else None
    edits: list[dict[str, Any]] = [
        {
            "op": "quantize",
            "format": choice.format,
            "type": choice.type,
            "method": choice.method,
            "text": text if choice.method == "gptq" else None,
            "group_size": choice.group_size,
            "symmetric": choice.symmetric,
            "act_order": choice.act_order,
            "true_sequential": choice.true_sequential,
        }
    ]
    if choice.rank is not None:
        edits.append({"op": "eora", "rank": choice.rank, "text": text})
    recipe = opened.recipe().with_edits(*edits)
    structure = opened.resolve(recipe)
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
