"""The command line: `python -m surgery VERB ...`. Thin: every verb calls the same functions as the page."""

from __future__ import annotations

import json
import sys
import time
from dataclasses import replace
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from typer.exceptions import TyperException

from analysis.registry import Evidence
from surgery import (
    build_commands,
    catalogue,
    documents,
    export_commands,
    fit_commands,
    heal_commands,
    quantize_commands,
    read_commands,
    ship_commands,
    suggestion_commands,
)
from surgery.console import (
    CalibrationOption,
    JsonOption,
    ModelArgument,
    OutOption,
    RecipeOption,
    RevisionOption,
    SpreadOption,
    TextOption,
    TrustOption,
    WindowOption,
    WindowsOption,
    complete,
    emit,
    open_model,
    run_job,
    shown,
)
from surgery.errors import InputError
from surgery.jobs import Context
from surgery.recipe import Recipe
from surgery.scan import KINDS
from surgery.scan import scan as scan_model
from surgery.structure import Structure, dense
from surgery.workbench import TextChoice, Workbench

application = typer.Typer(
    name="surgery", no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None
)
application.command()(suggestion_commands.suggest)
application.command()(suggestion_commands.scan)
application.command()(build_commands.build)
application.command()(heal_commands.heal)
application.command()(heal_commands.iterate)
application.command()(export_commands.export)
application.command()(fit_commands.fit)
application.command()(quantize_commands.quantize)
application.command()(read_commands.read)
application.command()(ship_commands.ship)
application.command()(ship_commands.verify)


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


@application.command()
def inspect(
    model: ModelArgument, revision: RevisionOption = None, trust: TrustOption = False, as_json: JsonOption = False
) -> None:
    """Show a model's architecture: blocks, heads, widths, parameters, bytes."""
    document = documents.inspection(open_model(Workbench(), model, revision, trust))
    emit(document, as_json, {key: value for key, value in document.items() if value != ""})


@application.command()
def analyze(
    model: ModelArgument,
    text: TextOption = "embedded",
    windows: WindowsOption = 16,
    window: WindowOption = 256,
    spread: SpreadOption = False,
    gradients: Annotated[
        bool, typer.Option(help="Also predict what each removal costs, from a backward pass (several times slower).")
    ] = False,
    measure: Annotated[bool, typer.Option(help="Also measure each single removal on the same text (minutes).")] = False,
    out: OutOption = None,
    revision: RevisionOption = None,
    trust: TrustOption = False,
    as_json: JsonOption = False,
) -> None:
    """One pass over a text: influence of blocks and sublayers, head statistics, neuron scores (in the file)."""
    bench = Workbench()
    opened = open_model(bench, model, revision, trust)
    cut = opened.windows(TextChoice(text, window, windows, "calibration", spread=spread))
    begun = time.perf_counter()
    statistics = run_job(bench, "Analysing", lambda job: opened.statistics(cut, job.report))
    slopes = run_job(bench, "Gradients", lambda job: opened.gradients(cut, job.report)) if gradients else None
    evidence = Evidence(opened.runner, statistics, slopes)
    document = documents.analysis(opened, cut, evidence, time.perf_counter() - begun)
    if measure:
        found = run_job(bench, "Measuring", lambda job: scan_model(opened, cut, KINDS, job.stop, job.report))
        document |= documents.measured_document(found, evidence)
    if out is not None:
        whole = document | documents.score_document(opened, cut, evidence)
        documents.write(out, json.dumps(whole, allow_nan=False) + "\n")
        document["out"] = str(out)
    if as_json:
        emit(document, True)
        return
    similarity = document["similarity"]
    columns = {"block influence": similarity["block_influence"], "attention": similarity["attention"],
               "MLP": similarity["mlp"]}  # fmt: skip
    if document["predicted"] is not None:
        columns["predicted loss without it"] = document["predicted"]["second"]["blocks"]
    if measure:
        columns["measured"] = document["measured"]["blocks"]
    table = Table("block", *columns, box=None)
    for index, row in enumerate(zip(*columns.values(), strict=True)):
        table.add_row(str(index), *(f"{value:.4f}" for value in row))
    Console().print(table)
    if measure and gradients:
        agreement = document["rank_correlation"]["second"]
        words = ", ".join(f"{part} {value:.2f}" for part, value in agreement.items())
        Console().print(f"Rank correlation of predicted and measured: {words}")
    Console().print(f"{document['tokens']:,} tokens, {document['seconds']:.1f} s")


@application.command()
def methods(as_json: JsonOption = False) -> None:
    """List the importance methods, and the procedures that choose by measuring."""
    listed = catalogue.listed()
    if as_json:
        emit(listed, True)
        return
    table = Table("name", "kind", "needs text", "needs gradients", "source", box=None)
    for entry in listed:
        table.add_row(
            entry["name"], entry["kind"], shown(entry["needs_text"]), shown(entry["needs_gradients"]), entry["source"]
        )
    Console().print(table)


@application.command()
def evaluate(
    model: ModelArgument,
    recipe: RecipeOption = None,
    text: TextOption = "embedded",
    window: WindowOption = 256,
    windows: WindowsOption = 4,
    spread: SpreadOption = False,
    calibration: CalibrationOption = None,
    revision: RevisionOption = None,
    trust: TrustOption = False,
    as_json: JsonOption = False,
) -> None:
    """Measure the perplexity of a model, or of what a recipe makes of it, paired against the dense model."""
    wanted = Recipe.load(recipe) if recipe is not None else None
    bench = Workbench()
    opened = open_model(bench, model, revision, trust)
    structure = opened.resolve(wanted) if wanted is not None else dense(opened.architecture)
    cut = opened.windows(TextChoice(text, window, windows, spread=spread))
    completed = complete(bench, opened, structure, calibration, recipe)

    def work(job: Context, measured: Structure) -> Any:
        last = None
        for last in opened.evaluator.evaluate(measured, cut, job.stop):
            job.report(last.windows / last.of_windows, f"Perplexity {last.perplexity:.3f} after {last.windows} windows")
        return last

    estimate = run_job(bench, "Measuring", lambda job: work(job, completed.structure))
    document = documents.evaluation(opened, completed.structure, cut, estimate, wanted)
    if structure.compensations and structure.healing is None:
        plain = replace(structure, compensations=())
        without = run_job(bench, "Measuring without compensation", lambda job: work(job, plain))
        document |= {"compensation": completed.document(), "perplexity_without_compensation": without.perplexity}
    emit(document, as_json, {key: value for key, value in document.items() if not isinstance(value, dict)})
