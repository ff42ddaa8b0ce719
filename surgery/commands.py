"""The command line: `python -m surgery VERB ...`. Thin: every verb calls the same functions as the page."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from typer.exceptions import TyperException

from analysis import registry
from surgery import documents
from surgery.errors import InputError
from surgery.jobs import Context, Job
from surgery.memory import fit as fit_structure
from surgery.recipe import Recipe
from surgery.structure import dense
from surgery.suggestion import Budget, parse_expansion_ratio
from surgery.suggestion import suggest as suggest_recipe
from surgery.workbench import OpenModel, TextChoice, Workbench

application = typer.Typer(
    name="surgery", no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None
)

ModelArgument = Annotated[str, typer.Argument(metavar="MODEL", help="default, a Hub id, a folder or a .gguf file.")]
JsonOption = Annotated[bool, typer.Option("--json", help="One JSON object on standard output and nothing else there.")]
TextOption = Annotated[
    str, typer.Option("--text", help="embedded, wikitext-2, hub:owner/name, or a .txt, .jsonl or .parquet file.")
]
WindowOption = Annotated[int, typer.Option("--window", min=2, help="Tokens in a window.")]
WindowsOption = Annotated[int, typer.Option("--windows", min=1, help="Number of windows.")]
RevisionOption = Annotated[str | None, typer.Option("--revision", help="Branch, tag or commit of a Hub model.")]
TrustOption = Annotated[bool, typer.Option("--trust-remote-code", help="Run the checkpoint's own Python code.")]
RecipeOption = Annotated[Path | None, typer.Option("--recipe", help="A recipe file.")]
OutOption = Annotated[Path | None, typer.Option("--out", help="A file to write.")]


def main() -> None:
    """Run the command line and exit: 0 done, 2 bad input (one sentence), 1 anything else."""
    try:
        code = application(standalone_mode=False)
    except typer.Exit as exit_request:
        code = exit_request.exit_code
    except InputError as error:
        _fail(str(error), 2)
    except TyperException as error:
        _fail(_usage(error), 2)
    except (typer.Abort, KeyboardInterrupt):
        _fail("Cancelled.", 1)
    except Exception as error:
        _fail(f"Something unforeseen went wrong ({type(error).__name__}: {error}).", 1)
    sys.exit(code or 0)


def _usage(error: Any) -> str:
    """The sentence of a usage error such as an unknown option."""
    return error.format_message() if hasattr(error, "format_message") else str(error)


def _fail(message: str, code: int) -> None:
    print(" ".join(message.split()), file=sys.stderr)
    sys.exit(code)


def run_job(bench: Workbench, title: str, work: Callable[[Context], Any], shown: bool) -> Any:
    """Run work as a job, with its progress on standard error.

    Raises:
        InputError: the job's own, when it is one that the person can put right.
        RuntimeError: the job failed otherwise.
    """
    job = bench.jobs.submit(title, work)
    try:
        _follow(job, shown)
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


def _follow(job: Job, shown: bool) -> None:
    columns = (TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn())
    console = Console(stderr=True)
    with Progress(*columns, console=console, transient=True, disable=not (shown and console.is_terminal)) as bar:
        task = bar.add_task(job.title, total=1.0)
        while not job.over:
            job.wait(0.1)
            bar.update(task, completed=job.progress, description=job.message or job.title)


def _emit(document: Any, as_json: bool, rows: dict[str, Any] | None = None) -> None:
    """Print a document as JSON, or as a small table for people."""
    if as_json:
        print(json.dumps(documents.plain(document), ensure_ascii=False, allow_nan=False))
        return
    table = Table(show_header=False, box=None)
    for name, value in (rows if rows is not None else document).items():
        table.add_row(name.replace("_", " "), _shown(value))
    Console().print(table)


def _shown(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:,.4f}"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, list) and len(value) > 1 and len({str(item) for item in value}) == 1:
        return f"{_shown(value[0])} in each of {len(value)} blocks"
    return str(value)


def _opened(bench: Workbench, model: str, revision: str | None, trust: bool) -> OpenModel:
    return run_job(bench, "Loading", lambda job: bench.open(model, revision, job.report, trust), True)


@application.command()
def inspect(
    model: ModelArgument, revision: RevisionOption = None, trust: TrustOption = False, as_json: JsonOption = False
) -> None:
    """Show a model's architecture: blocks, heads, widths, parameters, bytes."""
    document = documents.inspection(_opened(Workbench(), model, revision, trust))
    _emit(document, as_json, {key: value for key, value in document.items() if value != ""})


@application.command()
def analyze(
    model: ModelArgument,
    text: TextOption = "embedded",
    windows: WindowsOption = 16,
    window: WindowOption = 256,
    gradients: Annotated[
        bool, typer.Option(help="Also predict what each removal costs, from a backward pass (several times slower).")
    ] = False,
    out: OutOption = None,
    revision: RevisionOption = None,
    trust: TrustOption = False,
    as_json: JsonOption = False,
) -> None:
    """One pass over a text: influence of blocks and sublayers, head statistics, neuron scores (in the file)."""
    bench = Workbench()
    opened = _opened(bench, model, revision, trust)
    cut = opened.windows(TextChoice(text, window, windows, "calibration"))
    begun = time.perf_counter()
    run_job(bench, "Analysing", lambda job: opened.statistics(cut, job.report), True)
    if gradients:
        run_job(bench, "Gradients", lambda job: opened.gradients(cut, job.report), True)
    evidence = opened.evidence(cut)
    document = documents.analysis(opened, cut, evidence, time.perf_counter() - begun)
    if out is not None:
        whole = document | documents.score_document(opened, cut, evidence)
        documents.write(out, json.dumps(whole, allow_nan=False) + "\n")
        document["out"] = str(out)
    if as_json:
        _emit(document, True)
        return
    table = Table("block", "block influence", "attention", "MLP", box=None)
    similarity = document["similarity"]
    for index, row in enumerate(
        zip(similarity["block_influence"], similarity["attention"], similarity["mlp"], strict=True)
    ):
        table.add_row(str(index), *(f"{value:.4f}" for value in row))
    Console().print(table)
    Console().print(f"{document['tokens']:,} tokens, {document['seconds']:.1f} s")


@application.command()
def methods(as_json: JsonOption = False) -> None:
    """List the importance methods."""
    listed = [method.listed() for method in registry.METHODS]
    if as_json:
        _emit(listed, True)
        return
    table = Table("name", "kind", "needs text", "needs gradients", "source", box=None)
    for entry in listed:
        table.add_row(
            entry["name"], entry["kind"], _shown(entry["needs_text"]), _shown(entry["needs_gradients"]), entry["source"]
        )
    Console().print(table)


@application.command()
def suggest(
    model: ModelArgument,
    method: Annotated[str, typer.Option("--method", help="A name that `methods` lists.")],
    blocks: Annotated[int | None, typer.Option("--blocks", min=0, help="How many blocks or sublayers go.")] = None,
    params: Annotated[str | None, typer.Option("--params", help="-20%, 80% or a number of parameters.")] = None,
    expansion_ratio: Annotated[str | None, typer.Option("--expansion-ratio", help="2.0 or 200%.")] = None,
    width: Annotated[int | None, typer.Option("--width", min=1, help="Neurons that stay in each MLP.")] = None,
    divisor: Annotated[int, typer.Option("--divisor", min=1, help="Widths are multiples of this.")] = 1,
    text: TextOption = "embedded",
    windows: WindowsOption = 16,
    window: WindowOption = 256,
    out: OutOption = None,
    revision: RevisionOption = None,
    trust: TrustOption = False,
    as_json: JsonOption = False,
) -> None:
    """Make a recipe from a method and a budget."""
    ratio = None if expansion_ratio is None else parse_expansion_ratio(expansion_ratio)
    budget = Budget(blocks, params, ratio, width, divisor)
    budget.given()
    chosen = registry.method(method)
    bench = Workbench()
    opened = _opened(bench, model, revision, trust)
    cut = statistics = None
    if chosen.needs_text:
        cut = opened.windows(TextChoice(text, window, windows, "calibration"))
        if chosen.needs_statistics:
            statistics = run_job(bench, "Analysing", lambda job: opened.statistics(cut, job.report), True)
        if chosen.needs_gradients:
            run_job(bench, "Gradients", lambda job: opened.gradients(cut, job.report), True)
    recipe = suggest_recipe(opened, method, budget, cut, statistics)
    opened.resolve(recipe)
    if out is not None:
        recipe.save(out)
    if as_json or out is None:
        print(json.dumps(recipe.document()) if as_json else recipe.to_json())


@application.command()
def evaluate(
    model: ModelArgument,
    recipe: RecipeOption = None,
    text: TextOption = "embedded",
    window: WindowOption = 256,
    windows: WindowsOption = 4,
    revision: RevisionOption = None,
    trust: TrustOption = False,
    as_json: JsonOption = False,
) -> None:
    """Measure the perplexity of a model, or of what a recipe makes of it, paired against the dense model."""
    wanted = Recipe.load(recipe) if recipe is not None else None
    bench = Workbench()
    opened = _opened(bench, model, revision, trust)
    structure = opened.resolve(wanted) if wanted is not None else dense(opened.architecture)
    cut = opened.windows(TextChoice(text, window, windows))

    def work(job: Context) -> Any:
        last = None
        for last in opened.evaluator.evaluate(structure, cut, job.stop):
            job.report(last.windows / last.of_windows, f"Perplexity {last.perplexity:.3f} after {last.windows} windows")
        return last

    estimate = run_job(bench, "Measuring", work, True)
    document = documents.evaluation(opened, structure, cut, estimate, wanted)
    _emit(document, as_json, {key: value for key, value in document.items() if not isinstance(value, dict)})


@application.command()
def fit(
    model: ModelArgument,
    device: Annotated[str, typer.Option("--device", help="An id of presets/devices, this-computer, or a .json file.")],
    recipe: RecipeOption = None,
    context: Annotated[int, typer.Option("--context", min=1, help="Tokens of context.")] = 2048,
    type_name: Annotated[str, typer.Option("--type", help="F32, F16, Q8_0 or Q4_0.")] = "F16",
    revision: RevisionOption = None,
    trust: TrustOption = False,
    as_json: JsonOption = False,
) -> None:
    """The memory and speed model: does it fit the device, and how fast could it run."""
    wanted = Recipe.load(recipe) if recipe is not None else None
    bench = Workbench()
    chosen = bench.devices.get(device)
    opened = _opened(bench, model, revision, trust)
    structure = opened.resolve(wanted) if wanted is not None else dense(opened.architecture)
    _emit(fit_structure(structure, chosen, context, type_name).document(), as_json)
