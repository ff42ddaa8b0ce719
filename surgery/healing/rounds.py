"""Cut a little, heal, cut again: a schedule in which what goes next is chosen on the healed model.

Each round is an ordinary recipe over the checkpoint that the round before it built, in that checkpoint's own numbering:
scores of later rounds are those of weights that have been trained, which no single recipe over the first model could
name. The teacher of a distillation is the model that the round's recipe edits. Source of the idea: Han et al. 2015
(1506.02626), section 3; Minitron (2407.14679), best practices.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from threading import Event
from typing import Any, TypeVar

from pydantic import JsonValue, TypeAdapter, ValidationError

from surgery.checkpoints.build import build_model, stored_dtype
from surgery.checkpoints.save import save_checkpoint
from surgery.common.files import check_free
from surgery.common.progress import Report, silent
from surgery.errors import Cancelled, InputError, RecipeError
from surgery.healing.healer import Healer, with_heal
from surgery.pruning.budget import Budget, Rules, parameter_target
from surgery.pruning.suggest import suggest
from surgery.recipe.recipe import Iterate, Recipe
from surgery.recipe.texts import TextChoice
from surgery.training import results
from surgery.training.data import HealingText
from surgery.training.trainer import Progress
from surgery.workbench.open_model import OpenModel
from surgery.workbench.workbench import Workbench

T = TypeVar("T", Budget, Rules)


@dataclass(frozen=True)
class Round:
    """What a round reached. Perplexities of its held-out windows: of the fresh cut, and healed."""

    number: int
    recipe: Path
    checkpoint: Path
    parameters: int
    before: float
    after: float

    def document(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {
            "round": self.number,
            "recipe": str(self.recipe),
            "checkpoint": str(self.checkpoint),
            "parameters": self.parameters,
            "before": self.before,
            "after": self.after,
        }


def schedule_of(recipe: Recipe) -> Iterate:
    """The schedule of a recipe that is one. Raises RecipeError: it is not, or there is more in it."""
    edits = recipe.edits
    if len(edits) != 1 or not isinstance(edits[0], Iterate):
        raise RecipeError("The recipe is no schedule: give one whose only edit is iterate.")
    return edits[0]


def budgets(total: Budget, rounds: int, parameters: int) -> list[Budget]:
    """Budgets of the single rounds: equal shares of what goes, in blocks or in parameters of the first model.

    Raises:
        InputError: the budget is of another kind, or smaller than the number of rounds.
    """
    amount = total.given()
    if amount == "blocks":
        blocks = total.blocks or 0
        if blocks < rounds:
            raise InputError(f"{blocks} blocks cannot go in {rounds} rounds: ask for fewer rounds.")
        ends = [blocks * number // rounds for number in range(rounds + 1)]
        return [Budget(blocks=end - start) for start, end in zip(ends, ends[1:], strict=False)]
    if amount == "params":
        gone = parameters - parameter_target(total.params or "", parameters)
        kept = [parameters - gone * number // rounds for number in range(1, rounds + 1)]
        return [Budget(params=str(count), divisor=total.divisor) for count in kept]
    raise InputError("Rounds need a budget that can be shared: give --blocks N or --params -20%.")


def iterate(
    bench: Workbench,
    model: OpenModel,
    recipe: Recipe,
    text: HealingText,
    texts: Sequence[TextChoice],
    out: Path,
    report: Report = silent,
    stop: Event | None = None,
) -> list[Round]:
    """Run a schedule; it leaves `recipe.json`, which is the schedule, and for each round `round-N/healed` (what `heal`
    writes) and `round-N/checkpoint`.

    Args:
        bench: opens the checkpoints.
        recipe: a schedule.
        text: the healing text that the schedule names.
        texts: where the calibration text may be, besides the embedded one.
        stop: ends the work; finished rounds stay.

    Raises:
        RecipeError: the recipe is no schedule, a field of its budget or rules is not one, or a text is another one.
        InputError: as `suggest` and `Healer`.
        Cancelled: `stop` was set.
    """
    check_free(out)
    schedule = schedule_of(recipe)
    rules = _fields(Rules, schedule.rules)
    shares = budgets(_fields(Budget, schedule.budget), schedule.rounds, model.architecture.parameters)
    found: list[Round] = []
    for number, budget in enumerate(shares, 1):
        start = (number - 1) / len(shares)
        report(start, f"Round {number} of {len(shares)}: choosing")
        windows = model.calibration(schedule.calibration, texts) if schedule.calibration is not None else None
        cut = suggest(model, schedule.method, budget, rules, windows, stop)

        def publish(progress: Progress, number: int = number, start: float = start) -> None:
            share = start + progress.step / progress.steps / len(shares)
            report(share, f"Round {number}, step {progress.step} of {progress.steps}: held out {progress.held_out:.2f}")

        done = _round(model, with_heal(cut, schedule.heal), text, number, out / f"round-{number}", publish, stop)
        found.append(done)
        if number == 1:
            recipe.save(out / "recipe.json")
        if number < len(shares):
            model = bench.open(str(done.checkpoint))
    return found


def _round(
    model: OpenModel,
    recipe: Recipe,
    text: HealingText,
    number: int,
    folder: Path,
    publish: Callable[[Progress], None],
    stop: Event | None,
) -> Round:
    healed = Healer(model, recipe, text, stop=stop).run(publish, stop)
    if healed.outcome.ending == "cancelled":
        raise Cancelled("Cancelled.")
    results.save(healed.recipe, healed.adapter, healed.student, healed.report(), folder / "healed")
    dtype = stored_dtype(model.loaded, healed.structure)
    built = build_model(model.loaded.model, model.architecture, healed.structure, dtype)
    saved = save_checkpoint(built, model.loaded.tokenizer, healed.recipe, folder / "checkpoint")
    outcome = healed.outcome
    return Round(number, folder / "healed" / "recipe.json", saved.path, saved.parameters, outcome.before, outcome.after)


def _fields(kind: type[T], given: dict[str, JsonValue]) -> T:
    """A budget or rules from a recipe."""
    unknown = given.keys() - {field.name for field in fields(kind)}
    if unknown:
        raise RecipeError(f"The schedule has an unknown key {min(unknown)[:80]!r} in its {kind.__name__.lower()}.")
    try:
        return TypeAdapter(kind).validate_python(given)
    except ValidationError as error:
        place = error.errors()[0]
        where = ".".join(str(part) for part in place["loc"])
        raise RecipeError(f"The schedule's {kind.__name__.lower()} is not valid at {where}: {place['msg']}.") from None
