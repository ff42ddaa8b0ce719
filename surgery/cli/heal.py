"""The verb `heal` of the command line."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from analysis.model.modules import device_of
from surgery.cli.console import (
    CalibrationOption,
    JsonOption,
    SourceOption,
    TrustOption,
    emit,
    open_source,
    run_job,
)
from surgery.common.files import check_free
from surgery.common.jobs import Context
from surgery.errors import InputError
from surgery.healing.healer import Healed, Healer, heal_of, measure_speed, with_heal
from surgery.healing.presets import EVALUATIONS, PRESETS, forecast, timed
from surgery.recipe.healing import Heal
from surgery.recipe.recipe import Recipe
from surgery.recipe.texts import TextChoice, text_reference
from surgery.training import results
from surgery.training import state as checkpoints
from surgery.training.data import HealingText, check_apart, largest_count, load_healing_text
from surgery.training.precision import best_precision
from surgery.training.processes import Processes
from surgery.training.trainer import Progress
from surgery.workbench.open_model import OpenModel
from surgery.workbench.workbench import Workbench

MOST_WINDOWS = 4096
"""Windows that are taken from a text where no number is given."""
PrecisionOption = Annotated[
    str, typer.Option(help="Of the products in training: float32, bfloat16, or auto, what is faster here.")
]


def heal(
    recipe: Annotated[Path, typer.Argument(metavar="RECIPE", help="A recipe file; a heal edit in it is run again.")],
    out: Annotated[Path, typer.Option("--out", help="The folder to make: recipe, adapter and report.")],
    method: Annotated[
        str, typer.Option(help="lora (cross-entropy of the text) or distill (the dense model's).")
    ] = "lora",
    train: Annotated[str, typer.Option(help="lora, dora or weights.")] = "lora",
    preset: Annotated[str | None, typer.Option(help=f"{', '.join(PRESETS)}.")] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="Steps of the optimiser.")] = None,
    minutes: Annotated[float | None, typer.Option(min=0.01, help="Steps for this time, after a measurement.")] = None,
    text: Annotated[
        str, typer.Option("--text", help="The healing text: as elsewhere, hub: sets are streamed.")
    ] = "embedded",
    window: Annotated[int, typer.Option("--window", min=2, help="Tokens in a window.")] = 512,
    windows: Annotated[
        int | None, typer.Option("--windows", min=2, help="Windows; all that there are if absent.")
    ] = None,
    answers_only: Annotated[bool, typer.Option(help="Learn from the answers of conversations alone.")] = False,
    evaluation_text: Annotated[
        str | None, typer.Option(help="Refused if it shares a document with the healing text.")
    ] = None,
    where: Annotated[str | None, typer.Option(help="all, around (the cuts), or blocks like 3-7,12.")] = None,
    linears: Annotated[str | None, typer.Option(help="Roles like query,value,down; all if absent.")] = None,
    rank: Annotated[int | None, typer.Option(min=1)] = None,
    rank_by: Annotated[str, typer.Option(help="uniform or coarse_importance (CFSP).")] = "uniform",
    alpha: Annotated[float | None, typer.Option(help="Twice the rank if absent.")] = None,
    dropout: float = 0.0,
    learning_rate: float | None = None,
    warm_up: Annotated[float, typer.Option(help="Share of the steps.")] = 0.1,
    weight_decay: float = 0.0,
    clip: float = 1.0,
    batch: Annotated[int, typer.Option(min=1, help="Windows in a step.")] = 1,
    micro_batch: Annotated[int, typer.Option(min=1, help="Windows that go through together.")] = 1,
    checkpointing: Annotated[bool, typer.Option(help="Less memory, more time.")] = False,
    held_out: Annotated[int, typer.Option(min=1, help="Windows kept aside.")] = 2,
    evaluate_every: Annotated[int | None, typer.Option(min=1, help="Steps between held-out measurements.")] = None,
    patience: Annotated[
        int | None, typer.Option(min=1, help="Measurements without a better state that end it.")
    ] = None,
    precision: PrecisionOption = "auto",
    base: Annotated[
        str | None, typer.Option("--base", help="Train over weights that are rounded to this GGUF type, as QLoRA does.")
    ] = None,
    seed: int = 0,
    divergence: str = "kl",
    temperature: float = 1.0,
    skew: float = 0.1,
    cross_entropy: Annotated[float, typer.Option(help="Weight beside the distillation loss.")] = 0.0,
    features: Annotated[float, typer.Option(help="Weight of the cosine distance of states.")] = 0.0,
    top_k: Annotated[int | None, typer.Option(min=1, help="Teacher's likeliest words, kept on disk.")] = None,
    model: SourceOption = None,
    calibration: CalibrationOption = None,
    trust: TrustOption = False,
    as_json: JsonOption = False,
) -> None:
    """Repair a cut model by a short training: LoRA, or distillation from the dense model."""
    wanted = Recipe.load(recipe)
    check_free(out)
    processes = Processes()
    bench = Workbench()
    opened = open_source(bench, wanted, model, trust)
    given = wanted.find(Heal)
    if given is not None:
        if steps or minutes or preset:
            raise InputError("The recipe has a heal edit already: leave steps, minutes and preset out, or remove it.")
        healing_text, edit = _load(opened, text, given), given
    else:
        if [steps, minutes, preset].count(None) != 2:
            raise InputError("Say how long to train: --steps N, --minutes M or --preset NAME.")
        chosen = _preset(preset)
        minutes = chosen.minutes if chosen else minutes
        count = windows or largest_count(opened.loaded.tokenizer, text, window, MOST_WINDOWS)
        healing_text = load_healing_text(opened.loaded.tokenizer, text, window, count, answers_only=answers_only)
        settings: dict[str, Any] = {
            "method": method, "train": train, "answers_only": answers_only, "rank_by": rank_by, "dropout": dropout,
            "warm_up": warm_up, "weight_decay": weight_decay, "clip": clip, "batch": batch, "micro_batch": micro_batch,
            "checkpointing": checkpointing, "held_out": held_out, "patience": patience, "seed": seed,
            "precision": _precision(precision, opened, dropout),
            "base": {"op": "quantize", "format": "gguf", "type": base} if base else None,
            "steps": steps or 1, "evaluate_every": evaluate_every or max(1, -(-(steps or 1) // (EVALUATIONS - 1))),
        }  # fmt: skip
        if method == "distill":
            settings["distillation"] = {
                "divergence": divergence, "temperature": temperature, "skew": skew, "cross_entropy": cross_entropy,
                "features": features, "top_k": top_k,
            }  # fmt: skip
        overriding = {
            "rank": rank, "alpha": alpha or (2.0 * rank if rank else None), "learning_rate": learning_rate,
            "linears": linears.split(",") if linears else None, "blocks": where if _is_range(where) else None,
            "where": None if _is_range(where) else where,
        }  # fmt: skip
        settings |= chosen.settings if chosen else {}
        settings |= {name: value for name, value in overriding.items() if value is not None}
        edit = edit_of(wanted, settings, healing_text)
    if evaluation_text is not None:
        check_apart(healing_text.documents, opened.text(TextChoice(evaluation_text)).content)
    texts = [TextChoice(calibration, purpose="calibration")] if calibration is not None else []
    unfinished = out.with_name(f".{out.name}.unfinished")

    def healer_for(edit: Heal, job: Context) -> Healer:
        healed = with_heal(wanted, edit)
        return Healer(opened, healed, healing_text, texts, processes, unfinished, job.report, job.stop)

    def prepare(job: Context) -> Healer:
        made = healer_for(edit, job)
        if minutes is None or given is not None:
            return made
        found = forecast(made, measure_speed(made), minutes)
        if processes.main:
            typer.echo(found.words, err=True)
        return healer_for(timed(edit, found), job)

    healer: Healer = run_job(bench, "Preparing", prepare)
    healed = _trained(bench, healer)
    if processes.main:
        results.save(healed.recipe, healed.adapter, healed.student, healed.report(), out)
        results.remember(healed.recipe, healed.adapter, healed.student, healed.report())
        checkpoints.remove(unfinished)
        emit(healed.document() | {"path": str(out)}, as_json)
    processes.wait()


def _trained(bench: Workbench, healer: Healer) -> Healed:
    """The training as a job; interrupted at the keyboard, it ends with the best state so far."""
    kept: list[Healed] = []

    def work(job: Context) -> None:
        kept.append(healer.run(publisher(job), job.stop))

    try:
        run_job(bench, "Healing", work)
    except KeyboardInterrupt:
        if not kept:
            raise
    return kept[0]


def _precision(asked: str, model: OpenModel, dropout: float = 0.0) -> str:
    """What `auto` stands for here; dropout goes with float32 alone."""
    if asked != "auto":
        return asked
    return "float32" if dropout else best_precision(device_of(model.loaded.model))


def _is_range(where: str | None) -> bool:
    return where is not None and where[:1].isdigit()


def edit_of(recipe: Recipe, settings: dict[str, Any], text: HealingText) -> Heal:
    """A heal edit from loose settings.

    Raises:
        RecipeError: a setting is not valid; the message names it.
    """
    edit = {"op": "heal", "text": text_reference(text.windows).model_dump(), **settings}
    return heal_of(recipe.with_edits(edit))


def publisher(job: Context) -> Callable[[Progress], None]:
    """What tells a job how the training goes; the whole curve is the job's intermediate result."""

    def publish(progress: Progress) -> None:
        job.partial(progress)
        job.report(
            progress.step / progress.steps,
            f"Step {progress.step} of {progress.steps}: loss {progress.loss:.3f}, held out {progress.held_out:.2f}, "
            f"{progress.tokens_per_second:.0f} tokens a second",
        )

    return publish


def _preset(name: str | None) -> Any:
    if name is not None and name not in PRESETS:
        raise InputError(f"There is no preset {name!r}: use one of {', '.join(PRESETS)}.")
    return PRESETS[name] if name is not None else None


def _load(model: OpenModel, source: str, edit: Heal) -> HealingText:
    """The text that a recipe's heal edit names, at the place given."""
    wanted = edit.text
    return load_healing_text(
        model.loaded.tokenizer, source, wanted.window, wanted.windows, wanted.spread, edit.answers_only
    )
