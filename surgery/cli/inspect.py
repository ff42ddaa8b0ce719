"""The verb `inspect` of the command line."""

from __future__ import annotations

from surgery.cli.console import emit, prepare
from surgery.cli.options import JsonOption, ModelOptions


def inspect(source: ModelOptions, as_json: JsonOption = False) -> None:
    """Show a model's architecture: blocks, heads, widths, parameters, bytes."""
    from surgery.workbench import documents

    _, opened = prepare(source)
    document = documents.inspection(opened)
    emit(document, as_json, {key: value for key, value in document.items() if value != ""})
