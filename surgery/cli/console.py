"""What the verbs of the command line share: their options, jobs with progress, and output for people or as JSON."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from surgery.common.jobs import Context, Job
from surgery.compensation.compensator import Compensated
from surgery.errors import InputError
from surgery.recipe.recipe import Recipe
from surgery.recipe.texts import TextChoice
from surgery.structure.structure import Structure
from surgery.workbench import documents
from surgery.workbench.open_model import OpenModel
from surgery.workbench.workbench import Workbench

ModelArgument = Annotated[str, typer.Argument(metavar="MODEL", help="default, a Hub id, a folder or a .gguf file.")]
JsonOption = Annotated[bool, typer.Option("--json", help="One JSON object on standard output and nothing else there.")]
TextOption = Annotated[
    str, typer.Option("--text", help="embedded, wikitext-2, hub:owner/name, or a .txt, .jsonl or .parquet file.")
]
WindowOption = Annotated[int, typer.Option("--window", min=2, help="Tokens in a window.")]
SpreadOption = Annotated[
    bool, typer.Option("--spread", help="Windows evenly spaced over the whole text instead of its first ones.")
]
WindowsOption = Annotated[int, typer.Option("--windows", min=1, help="Number of windows.")]
RevisionOption = Annotated[str | None, typer.Option("--revision", help="Branch, tag or commit of a Hub model.")]
TrustOption = Annotated[bool, typer.Option("--trust-remote-code", help="Run the checkpoint's own Python code.")]
RecipeOption = Annotated[Path | None, typer.Option("--recipe", help="A recipe file.")]
CalibrationOption = Annotated[
    str | None,
    typer.Option("--calibration", help="The text on which the recipe's compensations are computed, if not embedded."),
]
RecipeArgument = Annotated[Path, typer.Argument(metavar="RECIPE", help="A recipe file.")]
SourceOption = Annotated[str | None, typer.Option("--model", help="The source model, if not where the recipe says.")]
OutOption = Annotated[Path | None, typer.Option("--out", help="A file to write.")]


def run_job(bench: Workbench, title: str, work: Callable[[Context], Any], visible: bool = True) -> Any:
    """Run work as a job, with its progress on standard error.

    Raises:
        InputError: the job's own, when it is one that the person can put right.
        RuntimeError: the job failed otherwise.
    """
    job = bench.jobs.submit(title, work)
    try:
        _follow(job, visible)
    except KeyboardInterrupt:
        bench.jobs.cancel(job.id)
        job.wait()
        raise
    if job.state == "done":
        return job.result
    if job.bad_input:
        raise InputError(job.error)
    if job.details:
        print(job.details, file=sys.stderr)
    raise RuntimeError(job.error)


def _follow(job: Job, visible: bool) -> None:
    columns = (TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn())
    console = Console(stderr=True)
    with Progress(*columns, console=console, transient=True, disable=not (visible and console.is_terminal)) as bar:
        task = bar.add_task(job.title, total=1.0)
        while not job.over:
            job.wait(0.1)
            bar.update(task, completed=job.progress, description=job.message or job.title)


def emit(document: Any, as_json: bool, rows: dict[str, Any] | None = None) -> None:
    """Print a document as JSON, or as a small table for people."""
    if as_json:
        print(json.dumps(documents.plain(document), ensure_ascii=False, allow_nan=False))
        return
    table = Table(show_header=False, box=None)
    for name, value in (rows if rows is not None else document).items():
        table.add_row(name.replace("_", " "), shown(value))
    Console().print(table)


def shown(value: Any) -> str:
    """A value as people read it."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:,.4f}"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, list) and len(value) > 1 and len({str(item) for item in value}) == 1:
        return f"{shown(value[0])} in each of {len(value)} blocks"
    return str(value)


def open_model(bench: Workbench, model: str, revision: str | None, trust: bool) -> OpenModel:
    """Load a model as a job."""
    return run_job(bench, "Loading", lambda job: bench.open(model, revision, job.report, trust))


def open_source(bench: Workbench, recipe: Recipe, model: str | None, trust: bool) -> OpenModel:
    """Load, as a job, the model that a recipe names, or the one that is given instead."""
    if model:
        return open_model(bench, model, None, trust)
    return open_model(bench, recipe.model.id, recipe.model.revision, trust)


def complete(
    bench: Workbench, model: OpenModel, structure: Structure, calibration: str | None, recipe: Path | None = None
) -> Compensated:
    """Compute a structure's compensations as a job; a healing's result may lie beside the recipe's file."""
    texts = [TextChoice(calibration, purpose="calibration")] if calibration is not None else []
    results = [recipe.parent] if recipe is not None else []
    return run_job(bench, "Completing", lambda job: model.complete(structure, texts, job.report, job.stop, results))
