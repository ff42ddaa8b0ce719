"""The verb `read` of the command line."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from surgery.cli.console import complete, emit, prepare, run_job
from surgery.cli.options import CalibrationOption, JsonOption, ModelOptions, RecipeOption
from surgery.common.jobs import Context
from surgery.evaluation.sampling import Sampling
from surgery.recipe.recipe import Recipe

if TYPE_CHECKING:
    from surgery.evaluation.generation import Answer


def read(
    source: ModelOptions,
    prompt: Annotated[str, typer.Option("--prompt", help="What both models are asked.")],
    recipe: RecipeOption = None,
    chat: Annotated[bool, typer.Option("--chat", help="Ask it in a conversation, by the chat template.")] = False,
    tokens: Annotated[int, typer.Option("--tokens", help="That are written at most.")] = Sampling.tokens,
    temperature: Annotated[float, typer.Option("--temperature", help="0: the likeliest token.")] = Sampling.temperature,
    top_p: Annotated[float, typer.Option("--top-p")] = Sampling.top_p,
    seed: Annotated[int, typer.Option("--seed", help="Of the draws, the same in both models.")] = Sampling.seed,
    calibration: CalibrationOption = None,
    as_json: JsonOption = False,
) -> None:
    """Let the dense model, and what a recipe makes of it, answer the same prompt with the same draws."""
    sampling = Sampling(tokens, temperature, top_p, seed)
    wanted = Recipe.load(recipe) if recipe is not None else None
    from surgery.checkpoints.build import readable_model
    from surgery.evaluation.generation import Writer, prompt_ids, side_by_side

    bench, opened = prepare(source)
    loaded = opened.loaded
    ids = prompt_ids(loaded.tokenizer, prompt, chat)
    models = {"dense": loaded.model}
    if wanted is not None:
        done = complete(bench, opened, opened.resolve(wanted), calibration, recipe).structure
        models["cut"] = readable_model(loaded.model, opened.architecture, done)
    writers = tuple(Writer(one, loaded.tokenizer, ids, sampling) for one in models.values())

    def work(job: Context) -> dict[str, Any]:
        for answers in side_by_side(writers, lambda: job.report(writers[0].answer.tokens / tokens, "Writing")):
            found = dict(zip(models, answers, strict=True))
        return {name: _document(answer) for name, answer in found.items()}

    document = run_job(bench, "Reading", work)
    emit(document, as_json, {name: answer["text"] for name, answer in document.items()})


def _document(answer: Answer) -> dict[str, Any]:
    return {"text": answer.text, "tokens": answer.tokens, "tokens_per_second": answer.speed, "ended": answer.ended}
