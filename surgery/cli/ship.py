"""The verb `ship` of the command line."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from surgery.cli.console import prepare, run_job, show_verified, unless_failed
from surgery.cli.options import JsonOption, RecipeOptions, SpreadOption, TextOptions, calibration_texts
from surgery.common.files import check_free, disk_errors, zip_folder
from surgery.common.jobs import Context
from surgery.errors import InputError, VerificationFailed
from surgery.recipe.recipe import Recipe

if TYPE_CHECKING:
    from surgery.shipping.ship_folder import Shipped


def ship(
    given: RecipeOptions,
    out: Annotated[Path, typer.Option("--out", help="The folder to make.")],
    type_name: Annotated[
        str | None,
        typer.Option(
            "--type", help="Type of a GGUF file, or none; if not given, the one that the recipe quantises to."
        ),
    ] = None,
    checkpoint: Annotated[bool, typer.Option(help="Put the floating-point checkpoint in.")] = True,
    text: TextOptions = TextOptions(),
    spread: SpreadOption = False,
    keep_windows: Annotated[
        bool, typer.Option(help="Put the token ids of the measured text in, so that anybody can verify.")
    ] = True,
    zipped: Annotated[bool, typer.Option("--zip", help="Make a zip file of the folder beside it too.")] = False,
    repository: Annotated[
        str | None, typer.Option("--push", help="Upload to this Hub repository; the token is HF_TOKEN's.")
    ] = None,
    public: Annotated[bool, typer.Option("--public", help="Make the repository a public one.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Make a folder to take away: model, recipe, card and sums, read back and compared with what was measured."""
    wanted = Recipe.load(given.recipe)
    check_free(out)
    archive = out.with_name(f"{out.name}.zip")
    if zipped and archive.exists():
        raise InputError(f"{str(archive)!r} is there already: delete it, or choose another folder.")
    from surgery.shipping.hub import check_upload, push
    from surgery.shipping.ship_folder import check_options
    from surgery.shipping.ship_folder import ship as ship_folder
    from surgery.shipping.weights import AS_RECIPE, ShipOptions, gguf_type

    options = ShipOptions(checkpoint, gguf_type(wanted, AS_RECIPE if type_name is None else type_name), keep_windows)
    check_options(wanted, options)
    if repository is not None:
        check_upload(repository)
    bench, opened = prepare(given.source(wanted))
    texts, results = calibration_texts(given.calibration), [given.recipe.parent]

    def work(job: Context) -> Shipped | VerificationFailed:
        try:
            return ship_folder(
                opened, wanted, out, text.measured(spread), options, texts, job.report, job.stop, results
            )
        except VerificationFailed as error:
            return error

    shipped = unless_failed(run_job(bench, "Shipping", work), as_json)
    document = shipped.document()
    if zipped:
        document["zip"] = str(run_job(bench, "Packing", lambda job: _zipped(out, archive, job)))
    if repository is not None:
        sent = run_job(bench, "Uploading", lambda job: push(out, repository, None, not public, job.report, job.stop))
        document["repository"] = sent
    show_verified(document, as_json)


def _zipped(folder: Path, archive: Path, job: Context) -> Path:
    with disk_errors(f"{str(archive)!r} cannot be written", "free some space"):
        zip_folder(folder, archive, lambda share: job.report(share, "Packing the files"))
    return archive
