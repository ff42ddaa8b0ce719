"""The verb `methods` of the command line."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

from surgery.cli.console import emit, shown
from surgery.cli.options import JsonOption


def methods(as_json: JsonOption = False) -> None:
    """List the importance methods, and the procedures that choose by measuring."""
    from surgery.pruning import catalogue

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
