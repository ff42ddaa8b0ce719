"""The verb `heal` of the command line."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from surgery.cli.console import emit, prepare, run_job, standard_error
from surgery.cli.healing import HealingTextOptions, PrecisionOption, check_edit, edit_of
from surgery.cli.options import FieldsOf, JsonOption, RecipeOptions, calibration_texts
from surgery.common.files import SMALL, check_free, refuse_without_room
from surgery.common.jobs import Context
from surgery.errors import InputError
from surgery.healing.presets import PRESETS, Preset, forecast, timed
from surgery.recipe.healing import Distillation, Heal
from surgery.recipe.recipe import Recipe
from surgery.recipe.texts import TextChoice

if TYPE_CHECKING:
    from surgery.healing.healer import Healed, Healer
    from surgery.training.trainer import Progress
    from surgery.workbench.workbench import Workbench

MOST_MINUTES = 100_000
"""Of a healing: more than two months."""
OWN_OPTIONS = {"op", "steps", "where", "precision"}
"""Fields of a heal edit that the verb asks for in another way."""
SETTINGS = FieldsOf(
    Heal,
    [name for name in Heal.model_fields if name not in OWN_OPTIONS],
    dict.fromkeys(("rank", "alpha", "learning_rate", "evaluate_every")),
)
"""The rest of them; a preset, or the number of steps, sets the four that have no default here."""
DISTILLATION = FieldsOf(Distillation, ("divergence", "temperature", "skew", "cross_entropy", "features", "top_k"))


def heal(
    given: RecipeOptions,
    out: Annotated[Path, typer.Option("--out", help="The folder to make: recipe, adapter and report.")],
    settings: Annotated[dict[str, Any], SETTINGS],
    distillation: Annotated[dict[str, Any], DISTILLATION],
    preset: Annotated[str | None, typer.Option(help=f"{', '.join(PRESETS)}.")] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="Steps of the optimiser.")] = None,
    minutes: Annotated[
        float | None, typer.Option(min=0.01, max=MOST_MINUTES, help="Steps for this time, after a measurement.")
    ] = None,
    text: HealingTextOptions = HealingTextOptions(),
    evaluation_text: Annotated[
        str | None, typer.Option(help="Refused if it shares a document with the healing text.")
    ] = None,
    where: Annotated[str | None, typer.Option(help="all, around (the cuts), or blocks like 3-7,12.")] = None,
    linears: Annotated[str | None, typer.Option(help="Roles like query,value,down; all if absent.")] = None,
    base: Annotated[
        str | None, typer.Option("--base", help="Train over weights that are rounded to this GGUF type, as QLoRA does.")
    ] = None,
    precision: PrecisionOption = "auto",
    as_json: JsonOption = False,
) -> None:
    """Repair a cut model by a short training: LoRA, or distillation from the dense model.

    A heal edit in the recipe is run again.
    """
    wanted = Recipe.load(given.recipe)
    check_free(out)
    edit = wanted.find(Heal)
    chosen = _preset(steps, minutes, preset, edit is not None)
    if edit is None:
        asked = _asked(settings, distillation, where, linears, base)
        asked = {**chosen.settings, **asked} if chosen else asked
        check_edit(wanted, text, precision, asked)
    from surgery.healing.healer import Healer, with_heal
    from surgery.training.data import check_apart
    from surgery.training.processes import Processes

    processes = Processes()
    bench, opened = prepare(given.source(wanted))
    if edit is not None:
        healing_text = text.load_for(opened, edit)
    else:
        healing_text = text.load(opened, settings["answers_only"])
        edit = edit_of(wanted, opened, healing_text, steps or 1, precision, asked)
    if evaluation_text is not None:
        check_apart(healing_text.documents, opened.text(TextChoice(evaluation_text)).content)
    texts, unfinished = calibration_texts(given.calibration), out.with_name(f".{out.name}.unfinished")

    def healer_of(edit: Heal, job: Context) -> Healer:
        recipe = with_heal(wanted, edit)
        return Healer(opened, recipe, healing_text, texts, processes, unfinished, job.report, job.stop)

    limit = chosen.minutes if chosen else minutes
    healer = run_job(
        bench, "Preparing", lambda job: _planned(edit, limit, lambda edit: healer_of(edit, job), processes.main)
    )
    _check_room(healer, out)
    healed = _trained(bench, healer)
    if processes.main:
        _save(healed, out, unfinished)
        emit(healed.document() | {"path": str(out)}, as_json)
    processes.wait()


def _preset(steps: int | None, minutes: float | None, name: str | None, again: bool) -> Preset | None:
    """The preset, if that says how long to train: exactly one of the three does, none where a healing runs again."""
    if again:
        if steps or minutes or name:
            raise InputError("The recipe has a heal edit already: leave steps, minutes and preset out, or remove it.")
        return None
    if [steps, minutes, name].count(None) != 2:
        raise InputError("Say how long to train: --steps N, --minutes M or --preset NAME.")
    if name is not None and name not in PRESETS:
        raise InputError(f"There is no preset {name!r}: use one of {', '.join(PRESETS)}.")
    return PRESETS[name] if name is not None else None


def _asked(
    settings: dict[str, Any], distillation: dict[str, Any], where: str | None, linears: str | None, base: str | None
) -> dict[str, Any]:
    """The fields of the heal edit that options have set."""
    rank, alpha = settings["rank"], settings["alpha"]
    asked = settings | {
        "alpha": alpha or (2.0 * rank if rank else None),
        "distillation": distillation if settings["method"] == "distill" else None,
        "blocks" if where and where[0].isdigit() else "where": where,
        "linears": linears.split(",") if linears else None,
        "base": {"op": "quantize", "format": "gguf", "type": base} if base else None,
    }
    return {name: value for name, value in asked.items() if value is not None}


def _planned(edit: Heal, minutes: float | None, healer_of: Callable[[Heal], Healer], speaks: bool) -> Healer:
    """What runs the healing; where it is to take some minutes, as many steps as a measurement says."""
    from surgery.healing.healer import measure_speed

    healer = healer_of(edit)
    if minutes is None:
        return healer
    found = forecast(healer, measure_speed(healer), minutes)
    if speaks:
        typer.echo(found.words, file=standard_error())
    return healer_of(timed(edit, found))


def _trained(bench: Workbench, healer: Healer) -> Healed:
    """The training as a job."""
    healed: Healed = run_job(bench, "Healing", lambda job: healer.run(_publisher(job), job.stop))
    return healed


def _check_room(healer: Healer, out: Path) -> None:
    """Refuse a training whose result finds no room, or its state, which holds four numbers for each parameter."""
    from surgery.training.results import results_directory

    values = 4 * healer.student.trainable
    refuse_without_room(out.parent, 5 * values, "Healing", SMALL)
    refuse_without_room(results_directory(), values, "Healing", SMALL)


def _publisher(job: Context) -> Callable[[Progress], None]:
    """What tells a job how the training goes; the whole curve is the job's intermediate result."""

    def publish(progress: Progress) -> None:
        job.partial(progress)
        job.report(
            progress.step / progress.steps,
            f"Step {progress.step} of {progress.steps}: loss {progress.loss:.3f}, held out {progress.held_out:.2f}, "
            f"{progress.tokens_per_second:.0f} tokens a second",
        )

    return publish


def _save(healed: Healed, out: Path, unfinished: Path) -> None:
    """Write the folder, keep the result for recipes that name it, and remove what an interrupted run would need."""
    from surgery.training import results, state

    result = healed.recipe, healed.adapter, healed.student, healed.report()
    results.save(*result, out)
    results.remember(*result)
    state.remove(unfinished)
