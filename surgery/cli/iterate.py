"""The verb `iterate` of the command line."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from surgery.cli.console import emit, prepare, run_job
from surgery.cli.healing import HealingTextOptions, PrecisionOption, check_edit, edit_of
from surgery.cli.options import FieldsOf, JsonOption, ModelOptions, RevisionOption, TrustOption
from surgery.common.files import check_free
from surgery.errors import InputError
from surgery.pruning.budget import Budget, Rules
from surgery.recipe.base import ModelReference
from surgery.recipe.healing import Heal
from surgery.recipe.recipe import Recipe
from surgery.recipe.texts import HEALING_WINDOW, TextChoice, text_reference

SETTINGS = FieldsOf(Heal, ("rank", "learning_rate", "seed"), {"learning_rate": 1e-3})


def iterate(
    model: Annotated[str, typer.Argument(help="As elsewhere; or a schedule (.json) that an earlier run has left.")],
    out: Annotated[Path, typer.Option("--out", help="The folder to make: a recipe, result and checkpoint a round.")],
    settings: Annotated[dict[str, Any], SETTINGS],
    method: Annotated[
        str | None, typer.Option("--method", help="A name that `methods` lists: what goes in each round.")
    ] = None,
    rounds: Annotated[int | None, typer.Option(min=1, help="How often to cut and heal.")] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="Steps of each healing.")] = None,
    blocks: Annotated[int | None, typer.Option("--blocks", min=1, help="Blocks that go in all rounds.")] = None,
    params: Annotated[str | None, typer.Option("--params", help="-20%, 80% or a number, after all rounds.")] = None,
    divisor: Annotated[int, typer.Option("--divisor", min=1, help="Widths are multiples of this.")] = 1,
    calibration: Annotated[str, typer.Option("--calibration", help="The text that the method sees.")] = "embedded",
    text: HealingTextOptions = HealingTextOptions(),
    calibration_windows: Annotated[int, typer.Option(min=1, help="Windows that the method sees.")] = 8,
    where: Annotated[str, typer.Option(help="all or around (the cuts).")] = "all",
    precision: PrecisionOption = "auto",
    revision: RevisionOption = None,
    trust: TrustOption = False,
    as_json: JsonOption = False,
) -> None:
    """Cut a little, heal, cut again: each round chooses on what the one before it built."""
    check_free(out)
    from surgery.healing.rounds import iterate as run_schedule
    from surgery.healing.rounds import schedule_of
    from surgery.pruning import catalogue
    from surgery.pruning.suggest import check_request

    fields = settings | {"alpha": 2.0 * settings["rank"], "where": where}
    choice = TextChoice(
        calibration, text.window or HEALING_WINDOW, calibration_windows, "calibration", shorten=text.window is None
    )
    asked = {"--method": method, "--rounds": rounds, "--steps": steps}
    if model.endswith(".json"):
        known = [name for name, value in (asked | {"--blocks": blocks, "--params": params}).items() if value]
        if known:
            raise InputError(f"The schedule says what to do already: leave {' and '.join(known)} out.")
        recipe = Recipe.load(Path(model))
        edit = schedule_of(recipe)
        bench, opened = prepare(ModelOptions.of(recipe, None, trust))
        healing_text = text.load_for(opened, edit.heal)
    else:
        if method is None or rounds is None or steps is None:
            missing = [name for name, value in asked.items() if value is None]
            raise InputError(f"Give {' and '.join(missing)}, or a schedule (.json) that an earlier run has left.")
        check_request(method, Budget(blocks, params, divisor=divisor), Rules())
        check_edit(Recipe(model=ModelReference(id=model)), text, precision, fields)
        bench, opened = prepare(ModelOptions(model, revision, trust))
        healing_text = text.load(opened)
        budget = {"blocks": blocks, "params": params, "divisor": divisor}
        recipe = opened.recipe()
        recipe = recipe.with_edits(
            {
                "op": "iterate",
                "method": method,
                "budget": {name: value for name, value in budget.items() if value is not None},
                "rounds": rounds,
                "calibration": text_reference(opened.windows(choice)).model_dump()
                if catalogue.entry(method).needs_text
                else None,
                "heal": edit_of(recipe, opened, healing_text, steps, precision, fields).model_dump(),
            }
        )
    done = run_job(
        bench,
        "Cutting and healing",
        lambda job: run_schedule(bench, opened, recipe, healing_text, [choice], out, job.report, job.stop),
    )
    documents = [one.document() for one in done]
    emit({"rounds": documents}, as_json, {f"round {entry['round']}": entry["after"] for entry in documents})
