"""Suggestions: a registry method and a budget make a recipe."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import torch

from analysis import registry, similarity
from analysis.registry import Evidence, Method
from analysis.statistics import Statistics
from analysis.text import Windows
from surgery.errors import InputError
from surgery.recipe import ChosenBy, Recipe, RemoveAttention, RemoveBlocks, RemoveMlp
from surgery.selection import (
    WidthBudget,
    count_for,
    lowest,
    nearest_width,
    parameter_target,
    prune_heads,
    prune_neurons,
)
from surgery.workbench import OpenModel


@dataclass(frozen=True)
class Budget:
    """What a person asked for; exactly one of the first four is set."""

    blocks: int | None = None
    params: str | None = None
    expansion_ratio: float | None = None
    width: int | None = None
    divisor: int = 1

    def given(self) -> str:
        """Name of the one that is set.

        Raises:
            InputError: none or several are.
        """
        names = [name for name in ("blocks", "params", "expansion_ratio", "width") if getattr(self, name) is not None]
        if len(names) != 1:
            raise InputError("Give exactly one budget: --blocks N, --params -20%, --expansion-ratio R or --width N.")
        return names[0]


def parse_expansion_ratio(text: str) -> float:
    """An expansion ratio as a number (2.0) or in percent ("200%").

    Raises:
        InputError: not a positive number.
    """
    stripped = text.strip()
    try:
        value = float(stripped.removesuffix("%")) / (100 if stripped.endswith("%") else 1)
    except ValueError:
        value = -1.0
    if not 0 < value < float("inf"):
        raise InputError(f"{text!r} is not an expansion ratio: write 2.0 or 200%.")
    return value


def suggest(
    model: OpenModel, name: str, budget: Budget, windows: Windows | None, statistics: Statistics | None
) -> Recipe:
    """A recipe that meets a budget with one method.

    Args:
        model: an open model.
        name: a method of the registry.
        budget: how much should go.
        windows: the analysed windows, recorded in the recipe.
        statistics: their analysis; may be None for methods that need no text.

    Raises:
        InputError: unknown method, or a budget that does not go with it.
    """
    method = registry.method(name)
    unit = budget.given()
    text = None
    if method.needs_text and windows is not None:
        text = {
            "source": windows.source,
            "fingerprint": windows.text_fingerprint,
            "window": windows.length,
            "windows": windows.count,
        }
    asked = {unit: getattr(budget, unit)} | ({"divisor": budget.divisor} if method.kind == "neurons" else {})
    chosen_by = ChosenBy.model_validate({"method": name, "budget": asked, "text": text})
    if method.kind == "neurons":
        return _narrowed(model, method, budget, unit, windows, chosen_by)
    evidence = dataclasses.replace(model.evidence(windows), statistics=statistics)
    if method.kind == "heads":
        return _fewer_heads(model, method, budget, unit, evidence, chosen_by)
    if method.kind == "hidden":
        raise InputError(f"The method {name!r} ranks channels of the hidden state, and no budget here is for them.")
    if unit not in ("blocks", "params"):
        raise InputError(f"The method {name!r} removes {_what(method)}: its budget is --blocks N or --params -20%.")
    return _shallower(model, method, budget, evidence, chosen_by)


def _what(method: Method) -> str:
    return {"blocks": "blocks", "attention": "attention sublayers", "mlp": "MLP sublayers"}.get(
        method.kind, method.kind
    )


def _excess(model: OpenModel, params: str) -> int:
    return model.architecture.parameters - parameter_target(params, model.architecture.parameters)


def _narrowed(
    model: OpenModel,
    method: Method,
    budget: Budget,
    unit: str,
    windows: Windows | None,
    chosen_by: ChosenBy,
) -> Recipe:
    if unit == "blocks":
        raise InputError(
            f"The method {method.name!r} narrows MLPs: its budget is an expansion ratio, a width or --params."
        )
    if budget.params is not None:
        width = WidthBudget(
            "width", nearest_width(model.architecture.blocks, _excess(model, budget.params)), budget.divisor
        )
    elif budget.width is not None:
        width = WidthBudget("width", budget.width, budget.divisor)
    else:
        assert budget.expansion_ratio is not None  # Budget.given has checked
        width = WidthBudget("expansion_ratio", budget.expansion_ratio, budget.divisor)
    scores = model.neuron_scores(method, windows)
    edit = prune_neurons(model.architecture, scores, width, chosen_by)
    return model.recipe(*([edit] if edit else []))


def _fewer_heads(
    model: OpenModel, method: Method, budget: Budget, unit: str, evidence: Evidence, chosen_by: ChosenBy
) -> Recipe:
    if budget.params is None:
        raise InputError(f"The method {method.name!r} removes query heads: its budget is --params -5%, not --{unit}.")
    attentions = [block.attention for block in model.architecture.blocks if block.attention is not None]
    one_each = sum(
        attention.kv_heads
        * (attention.per_query_head + (attention.per_kv_head if attention.heads_per_group == 1 else 0))
        for attention in attentions
    )
    if any(attention.heads_per_group == 1 for attention in attentions):
        raise InputError(
            f"The method {method.name!r} ranks query heads inside a KV group, and this model has one head a group: "
            "prune KV groups instead."
        )
    count = round(_excess(model, budget.params) / one_each)
    scores = {
        block.index: registry.score_heads(method, evidence, block.index)
        for block in model.architecture.blocks
        if block.attention is not None
    }
    edit = prune_heads(model.architecture, scores, count, chosen_by)
    return model.recipe(*([edit] if edit else []))


def _shallower(model: OpenModel, method: Method, budget: Budget, evidence: Evidence, chosen_by: ChosenBy) -> Recipe:
    scores = registry.score_blocks(method, evidence)
    blocks = model.architecture.blocks
    candidates = [block.index for block in blocks if method.kind == "blocks" or getattr(block, method.kind) is not None]
    order = [candidates[index] for index in torch.argsort(scores[candidates].double(), stable=True).tolist()]
    if budget.params is not None:
        sizes = [
            blocks[i].parameters if method.kind == "blocks" else blocks[i].sublayer_parameters(method.kind)
            for i in order
        ]
        count = count_for(sizes, _excess(model, budget.params))
    else:
        assert budget.blocks is not None  # Budget.given has checked
        count = budget.blocks
    most = len(candidates) - (method.kind == "blocks")
    if not 0 <= count <= most:
        raise InputError(f"Between 0 and {most} {_what(method)} can go, and {count} were asked for.")
    if count == 0:
        return model.recipe()
    if method.name == "angular_distance":
        assert evidence.statistics is not None  # score_blocks has checked
        going = similarity.least_distant_run(evidence.statistics.similarities, count)
    else:
        going = [candidates[index] for index in lowest(scores[candidates], count)]
    kinds = {"blocks": RemoveBlocks, "attention": RemoveAttention, "mlp": RemoveMlp}
    return model.recipe(kinds[method.kind](blocks=tuple(going), chosen_by=chosen_by))
