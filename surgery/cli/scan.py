"""The verb `scan` of the command line."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

from surgery.cli.console import emit, prepare, run_job
from surgery.cli.options import JsonOption, ModelOptions, OutOption, TextOptions, one_of
from surgery.common.files import write_atomically

if TYPE_CHECKING:
    from surgery.evaluation.estimate import Estimate
    from surgery.evaluation.scan import Scan


def scan(
    source: ModelOptions,
    edits: Annotated[str, typer.Option("--edits", help="What is removed, one at a time.")] = "blocks,attention,mlp",
    text: TextOptions = TextOptions(),
    out: OutOption = None,
    as_json: JsonOption = False,
) -> None:
    """Measure the perplexity without each block, attention or MLP, on the same text as `evaluate`."""
    from surgery.evaluation.scan import KINDS
    from surgery.evaluation.scan import scan as scan_model
    from surgery.workbench import documents

    kinds = [one_of(kind.strip(), KINDS, "--edits") for kind in edits.split(",")]
    bench, opened = prepare(source)
    cut = opened.windows(text.measured())
    found = run_job(bench, "Scanning", lambda job: scan_model(opened.evaluator, cut, kinds, job.stop, job.report))
    document = {
        "model": opened.reference.model_dump(exclude_none=True),
        "text": documents.text_document(cut),
        "window": cut.length,
        **found.document(),
    }
    if out is not None:
        write_atomically(out, json.dumps(documents.plain(document), allow_nan=False) + "\n")
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
