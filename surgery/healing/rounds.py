"""Cut a little, heal, cut again: a schedule in which what goes next is chosen on the healed model.

Each round is an ordinary recipe over the checkpoint that the round before it built, in that checkpoint's own numbering:
scores of later rounds are those of weights that have been trained, which no single recipe over the first model could
name. The teacher of a distillation is the model that the round's recipe edits. Source of the idea: Han et al. 2015
(1506.02626), section 3; Minitron (2407.14679), best practices.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from threading import Event
from typing import Any

from surgery import catalogue
from surgery.budget import Budget, Rules, parameter_target
from surgery.build import build_model
from surgery.checkpoint import check_free, save_checkpoint
from surgery.errors import Cancelled, InputError
from surgery.healing import results
from surgery.healing.data import load_healing_text
from surgery.healing.run import Healer, Report, heal_of, with_heal
from surgery.suggestion import suggest
from surgery.text_names import text_reference
from surgery.workbench import OpenModel, TextChoice, Workbench


@dataclass(frozen=True)
class Schedule:
    """What every round does."""

    method: str
    """Of the suggestion."""
    budget: Budget
    """For all rounds together: blocks or params."""
    rounds: int
    calibration: TextChoice
    settings: dict[str, Any]
    """Of the heal edit, its text aside; `steps` are those of one round."""
    text: str
    """The healing text."""
    window: int
    windows: int
    rules: Rules = field(default_factory=Rules)


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


def budgets(total: Budget, rounds: int, parameters: int) -> list[Budget]:
    """Budgets of the single rounds: equal shares of what goes, in blocks or in parameters of the first model.

    Args:
        total: for all rounds together.
        rounds: how many.
        parameters: of the first model.

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
    schedule: Schedule,
    out: Path,
    report: Report = lambda fraction, message: None,
    stop: Event | None = None,
) -> list[Round]:
    """Run a schedule; each round leaves `round-N/healed` (what `heal` writes) and `round-N/checkpoint`.

    Args:
        bench: opens the checkpoints.
        model: the first model.
        schedule: what every round does.
        out: a new folder.
        report: progress; may raise to stop.
        stop: ends the work; finished rounds stay.

    Raises:
        InputError: as `suggest` and `Healer`.
        Cancelled: `stop` was set.
    """
    check_free(out)
    shares = budgets(schedule.budget, schedule.rounds, model.architecture.parameters)
    found: list[Round] = []
    for number, budget in enumerate(shares, 1):
        report((number - 1) / len(shares), f"Round {number} of {len(shares)}: choosing")
        done = _round(model, schedule, budget, number, out / f"round-{number}", report, stop)
        found.append(done)
        if number < len(shares):
            model = bench.open(str(done.checkpoint))
    return found


def _round(
    model: OpenModel,
    schedule: Schedule,
    budget: Budget,
    number: int,
    folder: Path,
    report: Report,
    stop: Event | None,
) -> Round:
    item = catalogue.entry(schedule.method)
    windows = model.windows(schedule.calibration) if item.needs_text or schedule.rules.allocation == "cfsp" else None
    recipe = suggest(model, schedule.method, budget, schedule.rules, windows, stop)
    text = load_healing_text(model.loaded.tokenizer, schedule.text, schedule.window, schedule.windows)
    edit = {"op": "heal", "text": text_reference(text.windows).model_dump(), **schedule.settings}
    recipe = with_heal(recipe, heal_of(recipe.with_edits(edit)))
    start = (number - 1) / schedule.rounds

    def publish(progress: Any) -> None:
        share = start + progress.step / progress.steps / schedule.rounds
        report(share, f"Round {number}, step {progress.step} of {progress.steps}: held out {progress.held_out:.2f}")

    healed = Healer(model, recipe, text, stop=stop).run(publish, stop)
    if healed.outcome.ending == "cancelled":
        raise Cancelled("Cancelled.")
    results.save(healed.recipe, healed.adapter, healed.student, healed.report(), folder / "healed")
    built = build_model(model.loaded.model, model.architecture, healed.structure)
    saved = save_checkpoint(built, model.loaded.tokenizer, healed.recipe, folder / "checkpoint")
    outcome = healed.outcome
    return Round(number, folder / "healed" / "recipe.json", saved.path, saved.parameters, outcome.before, outcome.after)
