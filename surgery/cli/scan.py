"""The verb `scan` of the command line."""

from __future__ import annotations

import json
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from surgery.cli.console import (
    JsonOption,
    ModelArgument,
    OutOption,
    RevisionOption,
    TextOption,
    TrustOption,
    WindowOption,
    WindowsOption,
    emit,
    open_model,
    run_job,
)
from surgery.cli.suggest import _one_of
from surgery.evaluation.estimate import Estimate
from surgery.evaluation.scan import KINDS, Scan
from surgery.evaluation.scan import scan as scan_model
from surgery.recipe.texts import TextChoice
from surgery.workbench import documents
from surgery.workbench.workbench import Workbench


def scan(
    model: ModelArgument,
    edits: Annotated[str, typer.Option("--edits", help="What is removed, one at a time: blocks,attention,mlp.")] = (
        ",".join(KINDS)
    ),
    text: TextOption = "embedded",
    window: WindowOption = 256,
    windows: WindowsOption = 4,
    out: OutOption = None,
    revision: RevisionOption = None,
    trust: TrustOption = False,
    as_json: JsonOption = False,
) -> None:
    """Measure the perplexity without each block, attention or MLP, on the same text as `evaluate`."""
    kinds = [_one_of(kind.strip(), KINDS, "--edits") for kind in edits.split(",")]
    bench = Workbench()
    opened = open_model(bench, model, revision, trust)
    cut = opened.windows(TextChoice(text, window, windows))
    found = run_job(bench, "Scanning", lambda job: scan_model(opened.evaluator, cut, kinds, job.stop, job.report))
    document = {
        "model": opened.reference.model_dump(exclude_none=True),
        "text": documents.text_document(cut),
        "window": cut.length,
        **found.document(),
    }
    if out is not None:
        documents.write(out, json.dumps(documents.plain(document), allow_nan=False) + "\n")
        document["out"] = str(out)
    if as_json:
        emit(document, True)
        return
    _show(found)


def _show(found: Scan) -> None:
    """A table for people: perplexities, and the paired rise of the loss with its standard error."""
    table = Table("block", *found.removals, box=None)
    for block, row in enumerate(zip(*found.removals.values(), strict=True)):
        table.add_row(str(block), *(_cell(estimate) for estimate in row))
    Console().print(table)
    Console().print(
        f"Dense perplexity {found.baseline.perplexity:,.3f} on {found.baseline.tokens:,} tokens; "
        f"in brackets the loss more than the dense model's, nats per token; {found.seconds:.1f} s"
    )


def _cell(estimate: Estimate | None) -> str:
    if estimate is None:
        return "-"
    error = estimate.difference_standard_error
    return f"{estimate.perplexity:,.2f} ({estimate.difference:+.3f}{'' if error is None else f' ± {error:.3f}'})"
