"""The verb `analyze` of the command line."""

from __future__ import annotations

import json
import time
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from surgery.cli.console import emit, prepare, run_job
from surgery.cli.options import JsonOption, ModelOptions, OutOption, SpreadOption, TextOptions
from surgery.common.files import write_atomically


def analyze(
    source: ModelOptions,
    text: TextOptions = TextOptions(windows=16),
    spread: SpreadOption = False,
    gradients: Annotated[
        bool, typer.Option(help="Also predict what each removal costs, from a backward pass (several times slower).")
    ] = False,
    measure: Annotated[bool, typer.Option(help="Also measure each single removal on the same text (minutes).")] = False,
    out: OutOption = None,
    as_json: JsonOption = False,
) -> None:
    """One pass over a text: influence of blocks and sublayers, head statistics, neuron scores (in the file)."""
    from analysis.importance.registry import Evidence
    from surgery.evaluation.scan import KINDS
    from surgery.evaluation.scan import scan as scan_model
    from surgery.workbench import documents

    bench, opened = prepare(source)
    cut = opened.windows(text.analysed(spread))
    begun = time.perf_counter()
    statistics = run_job(bench, "Analysing", lambda job: opened.statistics(cut, job.report))
    slopes = run_job(bench, "Gradients", lambda job: opened.gradients(cut, job.report)) if gradients else None
    evidence = Evidence(opened.runner, statistics, slopes)
    document = documents.analysis(opened, cut, evidence, time.perf_counter() - begun)
    if measure:
        found = run_job(bench, "Measuring", lambda job: scan_model(opened.evaluator, cut, KINDS, job.stop, job.report))
        document |= documents.measured_document(found, evidence)
    if out is not None:
        whole = document | documents.score_document(opened, cut, evidence)
        write_atomically(out, json.dumps(whole, allow_nan=False) + "\n")
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
