"""The verb `inspect` of the command line."""

from __future__ import annotations

from surgery.cli.console import JsonOption, ModelArgument, RevisionOption, TrustOption, emit, open_model
from surgery.workbench import documents
from surgery.workbench.workbench import Workbench


def inspect(
    model: ModelArgument, revision: RevisionOption = None, trust: TrustOption = False, as_json: JsonOption = False
) -> None:
    """Show a model's architecture: blocks, heads, widths, parameters, bytes."""
    document = documents.inspection(open_model(Workbench(), model, revision, trust))
    emit(document, as_json, {key: value for key, value in document.items() if value != ""})
