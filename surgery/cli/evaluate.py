"""The verb `evaluate` of the command line."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from surgery.cli.console import (
    CalibrationOption,
    JsonOption,
    ModelArgument,
    RecipeOption,
    RevisionOption,
    SpreadOption,
    TextOption,
    TrustOption,
    WindowOption,
    WindowsOption,
    complete,
    emit,
    open_model,
    run_job,
)
from surgery.common.jobs import Context
from surgery.recipe.recipe import Recipe
from surgery.recipe.texts import TextChoice
from surgery.structure.structure import Structure, dense
from surgery.workbench import documents
from surgery.workbench.workbench import Workbench


def evaluate(
    model: ModelArgument,
    recipe: RecipeOption = None,
    text: TextOption = "embedded",
    window: WindowOption = 256,
    windows: WindowsOption = 4,
    spread: SpreadOption = False,
    calibration: CalibrationOption = None,
    revision: RevisionOption = None,
    trust: TrustOption = False,
    as_json: JsonOption = False,
) -> None:
    """Measure the perplexity of a model, or of what a recipe makes of it, paired against the dense model."""
    wanted = Recipe.load(recipe) if recipe is not None else None
    bench = Workbench()
    opened = open_model(bench, model, revision, trust)
    structure = opened.resolve(wanted) if wanted is not None else dense(opened.architecture)
    cut = opened.windows(TextChoice(text, window, windows, spread=spread))
    completed = complete(bench, opened, structure, calibration, recipe)

    def work(job: Context, measured: Structure) -> Any:
        last = None
        for last in opened.evaluator.evaluate(measured, cut, job.stop):
            job.report(last.windows / last.of_windows, f"Perplexity {last.perplexity:.3f} after {last.windows} windows")
        return last

    estimate = run_job(bench, "Measuring", lambda job: work(job, completed.structure))
    document = documents.evaluation(opened, completed.structure, cut, estimate, wanted)
    if structure.compensations and structure.healing is None:
        plain = replace(structure, compensations=())
        without = run_job(bench, "Measuring without compensation", lambda job: work(job, plain))
        document |= {"compensation": completed.document(), "perplexity_without_compensation": without.perplexity}
    emit(document, as_json, {key: value for key, value in document.items() if not isinstance(value, dict)})
