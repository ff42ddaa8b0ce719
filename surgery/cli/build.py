"""The verb `build` of the command line."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from surgery.cli.console import complete, emit, prepare, run_job
from surgery.cli.options import JsonOption, RecipeOptions
from surgery.common.files import SMALL, check_free, refuse_without_room
from surgery.common.jobs import Context
from surgery.recipe.recipe import Recipe


def build(
    given: RecipeOptions,
    out: Annotated[Path, typer.Option("--out", help="The folder to make.")],
    as_json: JsonOption = False,
) -> None:
    """Make the smaller checkpoint that a recipe describes."""
    wanted = Recipe.load(given.recipe)
    check_free(out)
    from surgery.checkpoints.build import build_model
    from surgery.checkpoints.save import save_checkpoint
    from surgery.shipping.download import checkpoint_bytes

    bench, opened = prepare(given.source(wanted))
    asked = opened.resolve(wanted)
    refuse_without_room(out.parent, checkpoint_bytes(opened, asked), "Building", SMALL)
    structure = complete(bench, opened, asked, given.calibration, given.recipe).structure

    def work(job: Context) -> Any:
        job.report(0.0, "Building the model")
        built = build_model(opened.loaded.model, opened.architecture, structure)
        return save_checkpoint(built, opened.loaded.tokenizer, wanted, out, job.report)

    emit(run_job(bench, "Building", work).document(), as_json)
