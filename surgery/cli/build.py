"""The verb `build` of the command line."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from surgery.checkpoints.build import build_model
from surgery.checkpoints.save import save_checkpoint
from surgery.cli.console import (
    CalibrationOption,
    JsonOption,
    RecipeArgument,
    SourceOption,
    TrustOption,
    complete,
    emit,
    open_source,
    run_job,
)
from surgery.common.files import check_free
from surgery.common.jobs import Context
from surgery.recipe.recipe import Recipe
from surgery.workbench.workbench import Workbench


def build(
    recipe: RecipeArgument,
    out: Annotated[Path, typer.Option("--out", help="The folder to make.")],
    model: SourceOption = None,
    calibration: CalibrationOption = None,
    trust: TrustOption = False,
    as_json: JsonOption = False,
) -> None:
    """Make the smaller checkpoint that a recipe describes."""
    wanted = Recipe.load(recipe)
    check_free(out)
    bench = Workbench()
    opened = open_source(bench, wanted, model, trust)
    structure = complete(bench, opened, opened.resolve(wanted), calibration, recipe).structure

    def work(job: Context) -> Any:
        job.report(0.0, "Building the model")
        built = build_model(opened.loaded.model, opened.architecture, structure)
        return save_checkpoint(built, opened.loaded.tokenizer, wanted, out, job.report)

    emit(run_job(bench, "Building", work).document(), as_json)
