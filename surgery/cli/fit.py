"""The verb `fit` of the command line."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from surgery.cli.console import emit, prepare, run_job
from surgery.cli.options import JsonOption, ModelOptions, RecipeOption, SpreadOption, TextOptions
from surgery.common.numbers import MOST
from surgery.recipe.recipe import Recipe

if TYPE_CHECKING:
    from surgery.fit.fit import Fit
    from surgery.search.make_it_fit import Fitting


def fit(
    source: ModelOptions,
    device: Annotated[str, typer.Option("--device", help="An id of presets/devices, this-computer, or a .json file.")],
    recipe: RecipeOption = None,
    context: Annotated[int, typer.Option("--context", min=1, max=MOST, help="Tokens of context.")] = 2048,
    type_name: Annotated[
        str | None,
        typer.Option("--type", help="F32, F16, Q8_0, Q4_K_M ...; what the recipe says, or F16, if not given."),
    ] = None,
    kv_type: Annotated[str, typer.Option("--kv-type", help="Of the KV cache: F16, Q8_0, Q4_0 or F32.")] = "F16",
    make: Annotated[
        bool, typer.Option("--make-it-fit", help="Also look for types and smaller models that fit, and measure them.")
    ] = False,
    limit: Annotated[int, typer.Option("--limit", min=1, help="Options that are measured.")] = 6,
    text: TextOptions = TextOptions(),
    calibration: Annotated[
        str, typer.Option("--calibration", help="The text that smaller models are chosen and compensated on.")
    ] = "embedded",
    calibration_windows: Annotated[int, typer.Option("--calibration-windows", min=2, help="Windows of it.")] = 16,
    spread: SpreadOption = False,
    as_json: JsonOption = False,
) -> None:
    """The memory and speed model: does it fit the device, how fast could it run, and what could be made to fit."""
    wanted = Recipe.load(recipe) if recipe is not None else None
    from surgery.fit.devices import Devices
    from surgery.fit.fit import fit as fit_structure
    from surgery.fit.kv_cache import check_kv_type
    from surgery.fit.room import room_on
    from surgery.fit.weight_types import type_of_edit, weight_type
    from surgery.search.make_it_fit import FitOptions, make_it_fit

    chosen = Devices().get(device)
    check_kv_type(kv_type)
    if type_name is not None:
        weight_type(type_name)
    bench, opened = prepare(source)
    base = wanted or opened.recipe()
    structure = opened.resolve(base)
    kind = type_of_edit(structure.quantize) if structure.quantize and type_name is None else type_name or "F16"
    found = fit_structure(structure, chosen, context, kind, kv_type)
    document = found.document()
    if not found.fits:
        asked = type_name if type_name is not None or structure.quantize is None else None
        document["room"] = room_on(structure, chosen, context, asked or "F16", kv_type).document()
    fitting = None
    if make:
        measured = opened.windows(text.measured())
        cut = replace(text.analysed(spread), source=calibration, windows=calibration_windows)
        fitting = run_job(
            bench,
            "Making it fit",
            lambda job: make_it_fit(
                opened, base, chosen, context, kv_type, FitOptions(limit=limit), measured, cut, job.report, job.stop
            ),
        )
        document |= fitting.document()
    if as_json:
        emit(document, True)
    else:
        _show(document, found, fitting)


def _show(document: dict[str, Any], found: Fit, fitting: Fitting | None) -> None:
    """For people: the figures, in words how much must go, and the options."""
    left_out = ("weights", "room", "options", "refused", "complete", "notes")
    emit(document, False, {name: value for name, value in document.items() if name not in left_out})
    room = document.get("room")
    for sentence in (*found.notes, *([room["words"]] if room else [])):
        Console().print(sentence)
    if fitting is None:
        return
    table = Table("how", "type", "parameters", "weights, bytes", "to spare, bytes", "perplexity", box=None)
    for option in fitting.options:
        error = option.estimate.standard_error
        table.add_row(
            option.how,
            option.type,
            f"{option.parameters:,}",
            f"{option.fit.weights_bytes:,}",
            f"{option.fit.spare_bytes:,}",
            f"{option.estimate.perplexity:,.2f}" + (f" ± {error:.2f}" if error is not None else ""),
        )
    Console().print(table if fitting.options else "Nothing that was tried fits.")
    for sentence in fitting.refused:
        Console().print(sentence)
