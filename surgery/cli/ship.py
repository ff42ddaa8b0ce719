"""The verb `ship` of the command line, and the model card of `export`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from surgery.cli.console import (
    CalibrationOption,
    JsonOption,
    RecipeArgument,
    SourceOption,
    SpreadOption,
    TextOption,
    TrustOption,
    WindowOption,
    WindowsOption,
    emit,
    open_source,
    run_job,
)
from surgery.common.files import check_free, disk_errors, zip_folder
from surgery.common.jobs import Context
from surgery.errors import InputError, VerificationFailed
from surgery.recipe.recipe import Recipe
from surgery.recipe.texts import TextChoice
from surgery.shipping.hub import push
from surgery.shipping.ship_folder import Shipped
from surgery.shipping.ship_folder import ship as ship_folder
from surgery.shipping.weights import AS_RECIPE, ShipOptions, gguf_type
from surgery.workbench.workbench import Workbench


def ship(
    recipe: RecipeArgument,
    out: Annotated[Path, typer.Option("--out", help="The folder to make.")],
    type_name: Annotated[
        str,
        typer.Option(
            "--type", help="Type of a GGUF file, or none; if not given, the one that the recipe quantises to."
        ),
    ] = AS_RECIPE,
    checkpoint: Annotated[bool, typer.Option(help="Put the floating-point checkpoint in.")] = True,
    text: TextOption = "embedded",
    window: WindowOption = 256,
    windows: WindowsOption = 4,
    spread: SpreadOption = False,
    keep_windows: Annotated[
        bool, typer.Option(help="Put the token ids of the measured text in, so that anybody can verify.")
    ] = True,
    zipped: Annotated[bool, typer.Option("--zip", help="Make a zip file of the folder beside it too.")] = False,
    repository: Annotated[
        str | None, typer.Option("--push", help="Upload to this Hub repository; the token is HF_TOKEN's.")
    ] = None,
    public: Annotated[bool, typer.Option("--public", help="Make the repository a public one.")] = False,
    model: SourceOption = None,
    calibration: CalibrationOption = None,
    trust: TrustOption = False,
    as_json: JsonOption = False,
) -> None:
    """Make a folder to take away: model, recipe, card and sums, read back and compared with what was measured."""
    wanted = Recipe.load(recipe)
    check_free(out)
    archive = out.with_name(f"{out.name}.zip")
    if zipped and archive.exists():
        raise InputError(f"{str(archive)!r} is there already: delete it, or choose another folder.")
    options = ShipOptions(checkpoint, gguf_type(wanted, type_name), keep_windows)
    bench = Workbench()
    opened = open_source(bench, wanted, model, trust)
    texts = [TextChoice(calibration, purpose="calibration")] if calibration is not None else []
    choice = TextChoice(text, window, windows, spread=spread)

    def work(job: Context) -> Shipped | VerificationFailed:
        try:
            return ship_folder(opened, wanted, out, choice, options, texts, job.report, job.stop, [recipe.parent])
        except VerificationFailed as error:
            return error

    shipped = _unless_failed(run_job(bench, "Shipping", work), as_json)
    document = shipped.document()
    if zipped:
        document["zip"] = str(run_job(bench, "Packing", lambda job: _zipped(out, archive, job)))
    if repository is not None:
        sent = run_job(bench, "Uploading", lambda job: push(out, repository, None, not public, job.report, job.stop))
        document["repository"] = sent
    _show(document, as_json)


def _zipped(folder: Path, archive: Path, job: Context) -> Path:
    with disk_errors(f"{str(archive)!r} cannot be written", "free some space"):
        zip_folder(folder, archive, lambda share: job.report(share, "Packing the files"))
    return archive


def _unless_failed(found: Any, as_json: bool) -> Any:
    """The result; a failed verification is printed, said in one sentence, and ends the program with 1."""
    if isinstance(found, VerificationFailed):
        if as_json and found.verification is not None:
            emit(found.verification.document(), True)
        print(" ".join(str(found).split()), file=sys.stderr)
        raise typer.Exit(1)
    return found


def _show(document: dict[str, Any], as_json: bool) -> None:
    """Print a document as JSON, or for people: a table, then what is too wide for one."""
    rows = {key: value for key, value in document.items() if not isinstance(value, (dict, list))}
    emit(document, as_json, rows)
    if as_json:
        return
    for kind, found in document["differences"].items():
        print(
            f"{kind}: perplexity {found['perplexity']:.4f} read back, {found['perplexity_recorded']:.4f} recorded; "
            f"logits differ by at most {found['logits_max_absolute']:.3g}, {found['logits_max_relative']:.3g} of the "
            f"largest (tolerance {found['logits_tolerance']:g})"
        )
    for name, digest in document["sha256"].items():
        print(f"{digest}  {name}")
    for note in document.get("notes", []):
        print(note)
