"""The verb `verify` of the command line."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from surgery.cli.console import run_job, show_verified, unless_failed
from surgery.cli.options import JsonOption
from surgery.common.jobs import Context
from surgery.errors import VerificationFailed
from surgery.recipe.texts import TextChoice


def verify(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A folder that `ship` made.")],
    text: Annotated[
        str | None, typer.Option("--text", help="The text that was measured, if its tokens are not in the folder.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Check the sums of a shipped folder, read its files back, and compare logits and perplexity with the record."""
    from surgery.shipping.verify import verify as verify_folder
    from surgery.workbench.workbench import Workbench

    choice = TextChoice(text) if text is not None else None

    def work(job: Context) -> Any:
        try:
            return verify_folder(folder, choice, job.report, job.stop)
        except VerificationFailed as error:
            return error

    show_verified(unless_failed(run_job(Workbench(), "Verifying", work), as_json).document(), as_json)
