"""Suggestions: a method, a budget and rules make a recipe. A method only suggests; the measurement decides."""

from __future__ import annotations

from threading import Event

from pydantic import JsonValue

from analysis.text import Windows
from surgery.common.progress import Report, silent
from surgery.errors import InputError
from surgery.pruning import catalogue
from surgery.pruning.budget import AMOUNTS, Budget, Rules
from surgery.pruning.kinds import Procedure
from surgery.pruning.request import Request
from surgery.recipe.base import ChosenBy
from surgery.recipe.recipe import Recipe
from surgery.recipe.texts import text_reference
from surgery.workbench.open_model import OpenModel


def check_request(name: str, budget: Budget, rules: Rules) -> dict[str, JsonValue]:
    """Refuse what no model could be asked; the budget and rules as a recipe notes them.

    Raises:
        InputError: unknown method, or a budget or a rule that does not go with it or makes no sense.
    """
    item = catalogue.entry(name)
    kind = catalogue.KINDS[item.kind]
    amount = budget.given()
    if amount not in kind.budgets:
        known = " or ".join(AMOUNTS[unit] for unit in kind.budgets)
        raise InputError(f"The method {name!r} {kind.does}: its budget is {known}.")
    note: dict[str, JsonValue] = {amount: getattr(budget, amount), **rules.note(name, kind.rules_of(item))}
    if kind.divisor:
        note["divisor"] = budget.divisor
    elif budget.divisor != 1:
        raise InputError(f"The option --divisor does not go with the method {name!r}.")
    return note


def suggest(
    model: OpenModel,
    name: str,
    budget: Budget,
    rules: Rules = Rules(),
    windows: Windows | None = None,
    stop: Event | None = None,
    report: Report = silent,
) -> Recipe:
    """A recipe that meets a budget with one method.

    Args:
        name: a method of the registry, or a procedure of the catalogue.
        windows: calibration text, for what needs it: analysed here where that has not been done, and recorded.

    Raises:
        InputError: unknown method, a budget or a rule that does not go with it or with the model, or text missing.
        Cancelled: `stop` was set.
    """
    item = catalogue.entry(name)
    kind = catalogue.KINDS[item.kind]
    note = check_request(name, budget, rules)
    blocks = len(model.architecture.blocks)
    if rules.protect_blocks and max(rules.protect_blocks) >= blocks:
        raise InputError(f"Block {max(rules.protect_blocks)} cannot be protected: the model has {blocks} blocks.")
    needs_text = item.needs_text or rules.allocation == "cfsp"
    if needs_text and windows is None:
        raise InputError(f"The method {name!r} needs text here: name a calibration text.")
    text = text_reference(windows).model_dump() if needs_text and windows is not None else None
    origin = ChosenBy.model_validate({"method": name, "budget": note, "text": text})
    if kind.probe is not None:
        model.resolve(model.recipe(kind.probe))
    if windows is not None and (item.needs_statistics or rules.allocation == "cfsp"):
        model.statistics(windows, report)
    if windows is not None and item.needs_gradients:
        model.gradients(windows, report)
    request = Request(model, budget, rules, windows, origin, stop, report)
    if isinstance(item, Procedure):
        edits = item.choose(request)
    else:
        assert kind.choose is not None  # as for every kind that the registry knows
        edits = kind.choose(request, item)
    recipe = model.recipe(*edits)
    model.resolve(recipe)
    return recipe
