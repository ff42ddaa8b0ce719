"""Suggestions: a method, a budget and rules make a recipe. A method only suggests; the measurement decides."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from threading import Event
from typing import Any

from pydantic import JsonValue

from analysis.importance import registry, similarity
from analysis.importance.registry import Method
from analysis.text import Windows
from surgery.common.progress import Report
from surgery.errors import InputError
from surgery.pruning import catalogue, greedy
from surgery.pruning import heads as head_selection
from surgery.pruning.allocation import Layer, allocate, nearest, standardised
from surgery.pruning.blocks import Goal, least_distant_run, lowest_parts
from surgery.pruning.budget import AMOUNTS, Budget, Rules, parameter_target
from surgery.pruning.catalogue import Procedure
from surgery.pruning.neurons import WidthBudget, lowest, narrow_to
from surgery.recipe.base import ChosenBy
from surgery.recipe.edits import MergeKvHeads, PruneHidden, RemoveAttention, RemoveBlocks, RemoveMlp
from surgery.recipe.recipe import Recipe
from surgery.recipe.texts import text_reference
from surgery.structure.removal import Removal, RemovalKind, sizes
from surgery.workbench.open_model import OpenModel


def suggest(
    model: OpenModel,
    name: str,
    budget: Budget,
    rules: Rules = Rules(),
    windows: Windows | None = None,
    stop: Event | None = None,
    report: Report = lambda fraction, message: None,
) -> Recipe:
    """A recipe that meets a budget with one method.

    Args:
        model: an open model.
        name: a method of the registry, or a procedure of the catalogue.
        budget: how much should go.
        rules: by which rules.
        windows: calibration text, for what needs it: analysed here where that has not been done, and recorded.
        stop: ends the work.
        report: progress; may raise to stop the work.

    Raises:
        InputError: unknown method, a budget or a rule that does not go with it or with the model, or text missing.
        Cancelled: `stop` was set.
    """
    item = catalogue.entry(name)
    amount = budget.given()
    blocks = len(model.architecture.blocks)
    if rules.protect_blocks and max(rules.protect_blocks) >= blocks:
        raise InputError(f"Block {max(rules.protect_blocks)} cannot be protected: the model has {blocks} blocks.")
    if amount not in catalogue.BUDGETS[item.kind]:
        known = " or ".join(AMOUNTS[unit] for unit in catalogue.BUDGETS[item.kind])
        raise InputError(f"The method {name!r} {catalogue.DOES[item.kind]}: its budget is {known}.")
    note: dict[str, JsonValue] = {amount: getattr(budget, amount), **rules.note(name, catalogue.rules_of(item))}
    if item.kind in ("neurons", "hidden"):
        note["divisor"] = budget.divisor
    elif budget.divisor != 1:
        raise InputError(f"The option --divisor does not go with the method {name!r}.")
    needs_text = item.needs_text or rules.allocation == "cfsp"
    if needs_text and windows is None:
        raise InputError(f"The method {name!r} needs text here: name a calibration text.")
    text = text_reference(windows).model_dump() if needs_text and windows is not None else None
    origin = ChosenBy.model_validate({"method": name, "budget": note, "text": text})
    if item.kind == "hidden":  # a model that cannot lose a single channel is refused before the work
        model.resolve(model.recipe(PruneHidden(removed=(0,))))
    request = _Request(model, item, budget, rules, windows, origin, stop, report)
    request.gather()
    recipe = model.recipe(*CHOICES[item.kind](request))
    model.resolve(recipe)
    return recipe


@dataclass(frozen=True)
class _Request:
    """All that one suggestion depends on."""

    model: OpenModel
    item: Method | Procedure
    budget: Budget
    rules: Rules
    windows: Windows | None
    origin: ChosenBy
    stop: Event | None
    report: Report

    def gather(self) -> None:
        """Analyse the text where the method or the allocation needs it."""
        if self.windows is None:
            return
        if self.item.needs_statistics or self.rules.allocation == "cfsp":
            self.model.statistics(self.windows, self.report)
        if self.item.needs_gradients:
            self.model.gradients(self.windows, self.report)

    @property
    def method(self) -> Method:
        assert isinstance(self.item, Method)  # procedures have kinds or names of their own
        return self.item

    @property
    def evidence(self) -> registry.Evidence:
        return self.model.evidence(self.windows, self.rules.seed)

    @property
    def excess(self) -> int:
        """Parameters that should go."""
        parameters = self.model.architecture.parameters
        assert self.budget.params is not None  # asked only of parameter budgets
        return parameters - parameter_target(self.budget.params, parameters)

    @property
    def goal(self) -> Goal:
        return Goal(count=self.budget.blocks) if self.budget.blocks is not None else Goal(excess=self.excess)

    def allocated(self, layers: Sequence[Layer], kept: float) -> dict[int, int]:
        """Units that stay in each layer."""
        importance = None
        if self.rules.allocation == "cfsp":
            statistics = self.evidence.statistics
            assert statistics is not None  # gathered
            importance = dict(enumerate(similarity.coarse_importance(statistics.similarities).tolist()))
        return allocate(layers, kept, self.budget.divisor, self.rules, importance)


def _depth(request: _Request) -> list[Any]:
    """Blocks, attentions or MLPs by their scores; whole blocks also by measuring."""
    if isinstance(request.item, Procedure):
        return _measured(request)
    kind: RemovalKind = request.method.kind  # type: ignore[assignment]
    parts = sizes(request.model.architecture, kind)
    if request.method.name == "angular_distance":
        statistics = request.evidence.statistics
        assert statistics is not None  # gathered
        distances = similarity.angular_triangle(statistics.similarities)
        going = least_distant_run(distances, parts, request.goal, request.rules)
    else:
        scores = registry.score_blocks(request.method, request.evidence)
        going = lowest_parts(scores, parts, request.goal, request.rules, kind)
    return _removals([Removal(kind, block) for block in going], request.origin)


def _measured(request: _Request) -> list[Any]:
    """What is chosen by measured losses."""
    assert request.windows is not None  # suggest has checked
    task = (request.goal, request.rules, request.stop, request.report)
    if request.item.name == "perplexity_scan":
        parts = greedy.one_shot(request.model, request.windows, *task)
    else:
        kinds: tuple[RemovalKind, ...] = ("blocks",) if request.item.kind == "blocks" else ("attention", "mlp")
        parts = greedy.step_by_step(request.model, request.windows, kinds, *task)
    return _removals(parts, request.origin)


def _removals(parts: Sequence[Removal], origin: ChosenBy) -> list[Any]:
    """Edits that remove the parts; a block that loses both sublayers goes as a whole."""
    gone = {kind: {part.block for part in parts if part.kind == kind} for kind in ("blocks", "attention", "mlp")}
    both = gone["attention"] & gone["mlp"]
    chosen = (
        (RemoveBlocks, gone["blocks"] | both),
        (RemoveAttention, gone["attention"] - both),
        (RemoveMlp, gone["mlp"] - both),
    )
    return [edit(blocks=tuple(sorted(blocks)), chosen_by=origin) for edit, blocks in chosen if blocks]


def _neurons(request: _Request) -> list[Any]:
    """Narrower MLPs."""
    source, budget, rules = request.model.architecture, request.budget, request.rules
    mlps = {
        block.index: block.mlp
        for block in source.blocks
        if block.mlp is not None and not rules.protects(block.index, len(source.blocks))
    }
    if not mlps:
        raise InputError("No unprotected block has an MLP to narrow: protect fewer blocks.")
    unit = "width" if budget.params is not None else budget.given()
    value = min(mlp.width for mlp in mlps.values()) if budget.params is not None else getattr(budget, unit)
    each = WidthBudget(unit, value, budget.divisor)  # type: ignore[arg-type]
    wanted = {block: min(each.wanted(mlp), mlp.width) for block, mlp in mlps.items()}  # refuses senseless numbers
    scores = request.model.neuron_scores(request.method, request.windows, rules.seed, request.stop)
    if budget.params is None and rules.allocation == "uniform":
        widths = {block: each.width(mlp) for block, mlp in mlps.items()}
    else:
        scale = (lambda values: values) if rules.allocation == "raw" else standardised
        layers = [Layer(block, mlp.per_neuron, scale(scores[block]).sort().values) for block, mlp in mlps.items()]
        if budget.params is not None:
            kept = float(sum(mlp.width * mlp.per_neuron for mlp in mlps.values()) - request.excess)
        else:
            kept = sum(wanted[block] * mlp.per_neuron for block, mlp in mlps.items())
        widths = request.allocated(layers, kept)
    edit = narrow_to(scores, widths, request.origin)
    return [edit] if edit else []


def _heads(request: _Request) -> list[Any]:
    """Fewer KV groups, or fewer query heads in each."""
    source, budget, rules = request.model.architecture, request.budget, request.rules
    attentions = head_selection.movable(source, rules)
    count = head_selection.parameters_in_step if budget.params is not None else head_selection.heads_in_step
    costs = {block: count(attention, rules.unit) for block, attention in attentions.items()}
    scores = {block: registry.score_heads(request.method, request.evidence, block) for block in attentions}
    layers = [
        head_selection.layer(block, attention, scores[block], rules, costs[block])
        for block, attention in attentions.items()
    ]
    there = sum(layer.count * layer.cost for layer in layers)
    if budget.percent is not None:
        if not 0 <= budget.percent < 100:
            raise InputError(f"{budget.percent:g} is not a percentage of heads that can go: give 0 to 99.")
        kept = there * (1 - budget.percent / 100)
    else:
        kept = float(there - (request.excess if budget.params is not None else (budget.heads or 0)))
    stay = request.allocated(layers, kept)
    going = {layer.block: layer.count - stay[layer.block] for layer in layers}
    prune = head_selection.prune_kv_groups if rules.unit == "kv_groups" else head_selection.prune_heads
    edit = prune(source, scores, going, request.origin)
    return [edit] if edit else []


def _merged(request: _Request) -> list[Any]:
    """Fewer key/value heads by merging (GQA and MQA conversion)."""
    blocks, wanted = request.model.architecture.blocks, request.budget.kv_heads
    found = [
        block
        for block in blocks
        if block.attention is not None and not request.rules.protects(block.index, len(blocks))
    ]
    assert wanted is not None  # suggest has checked
    if wanted < 1:
        raise InputError("At least one key/value head must stay: give --kv-heads 1 or more.")
    for block in found:
        assert block.attention is not None  # filtered above
        if block.attention.kv_heads % wanted:
            raise InputError(
                f"The {block.attention.kv_heads} key/value heads of block {block.index} cannot be merged evenly into "
                f"{wanted}: choose a divisor of {block.attention.kv_heads}."
            )
    going = tuple(block.index for block in found if block.attention and block.attention.kv_heads > wanted)
    how = "mean" if request.item.name == "gqa_mean" else "first"
    return [MergeKvHeads(blocks=going, kv_heads=wanted, how=how, chosen_by=request.origin)] if going else []  # type: ignore[arg-type]


def _hidden(request: _Request) -> list[Any]:
    """A narrower residual stream."""
    source, budget = request.model.architecture, request.budget
    size, divisor = source.hidden_size, budget.divisor
    if not 1 <= divisor <= size:
        raise InputError(f"The divisor must be between 1 and the hidden size ({size}).")
    if budget.params is not None:
        target = source.parameters - request.excess
        counts = {value: source.with_hidden(value).parameters for value in (*range(divisor, size, divisor), size)}
        step = source.parameters - source.with_hidden(max(size - divisor, 1)).parameters
        if target < counts[divisor] - step / 2:
            raise InputError("That budget is more than fewer channels can save: combine methods, or ask for less.")
        width = min(counts, key=lambda value: abs(counts[value] - target))
    else:
        wanted = float(budget.width) if budget.width is not None else size * (1 - (budget.percent or 0) / 100)
        if not 0 < wanted <= size:
            raise InputError(f"The residual stream has {size} channels: between 1 and {size} can stay.")
        width = nearest(size, wanted, divisor)
    scores = registry.score_hidden(request.method, request.evidence)
    going = lowest(scores, size - width)
    return [PruneHidden(removed=tuple(going), chosen_by=request.origin)] if going else []


CHOICES: dict[str, Callable[[_Request], list[Any]]] = {
    "blocks": _depth,
    "attention": _depth,
    "mlp": _depth,
    "sublayers": _measured,
    "neurons": _neurons,
    "heads": _heads,
    "kv_heads": _merged,
    "hidden": _hidden,
}
