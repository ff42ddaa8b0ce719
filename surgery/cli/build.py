"""The verb `build` of the command line."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from surgery.cli.console import complete, emit, prepare, run_job
from surgery.cli.options import JsonOption, RecipeOptions, one_of
from surgery.common.files import SMALL, check_free, refuse_without_room
from surgery.common.jobs import Context
from surgery.recipe.recipe import Recipe

SOURCE = "source"
DTYPES = (SOURCE, "float32", "bfloat16", "float16")


def build(
    given: RecipeOptions,
    out: Annotated[Path, typer.Option("--out", help="The folder to make.")],
    dtype: Annotated[
        str,
        typer.Option(
            help=f"Number type of the weights: {', '.join(DTYPES)}. source: its own, unless values are computed anew."
        ),
    ] = SOURCE,
    as_json: JsonOption = False,
) -> None:
    """Make the smaller checkpoint that a recipe describes."""
    one_of(dtype, DTYPES, "--dtype")
    wanted = Recipe.load(given.recipe)
    check_free(out)
    import torch

    from surgery.checkpoints.build import build_model, stored_dtype
    from surgery.checkpoints.save import save_checkpoint
    from surgery.shipping.download import checkpoint_bytes

    bench, opened = prepare(given.source(wanted))
    asked = opened.resolve(wanted)
    refuse_without_room(out.parent, checkpoint_bytes(opened, asked), "Building", SMALL)
    structure = complete(bench, opened, asked, given.calibration, given.recipe).structure

    def work(job: Context) -> Any:
        job.report(0.0, "Building the model")
        loaded = opened.loaded
        built = build_model(loaded.model, opened.architecture, structure, stored_dtype(loaded, structure))
        rounded = None if dtype == SOURCE else getattr(torch, dtype)
        return save_checkpoint(built, loaded.tokenizer, wanted, out, job.report, dtype=rounded)

    emit(run_job(bench, "Building", work).document(), as_json)
