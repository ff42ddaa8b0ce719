"""The verb `evaluate` of the command line."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from surgery.cli.console import complete, emit, prepare, run_job
from surgery.cli.options import CalibrationOption, JsonOption, ModelOptions, RecipeOption, SpreadOption, TextOptions
from surgery.common.jobs import Context
from surgery.recipe.recipe import Recipe

if TYPE_CHECKING:
    from surgery.structure.structure import Structure


def evaluate(
    source: ModelOptions,
    recipe: RecipeOption = None,
    text: TextOptions = TextOptions(),
    spread: SpreadOption = False,
    calibration: CalibrationOption = None,
    as_json: JsonOption = False,
) -> None:
    """Measure the perplexity of a model, or of what a recipe makes of it, paired against the dense model."""
    wanted = Recipe.load(recipe) if recipe is not None else None
    from surgery.structure.structure import dense
    from surgery.workbench import documents

    bench, opened = prepare(source)
    structure = opened.resolve(wanted) if wanted is not None else dense(opened.architecture)
    cut = opened.windows(text.measured(spread))
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
