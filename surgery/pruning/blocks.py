"""The kinds that remove whole parts: blocks, attentions, MLPs, and attentions and MLPs in one choice."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

from analysis.importance import registry, similarity
from analysis.importance.registry import Method
from surgery.pruning import greedy
from surgery.pruning.kinds import ENDS, Kind, Procedure
from surgery.pruning.parts import Goal, least_distant_run, lowest_parts
from surgery.pruning.request import Request
from surgery.recipe.base import ChosenBy
from surgery.recipe.edits import RemoveAttention, RemoveBlocks, RemoveMlp
from surgery.structure.removal import Removal, RemovalKind, sizes

RUN = "angular_distance"
"""The method that scores runs of blocks, not single ones."""


def by_scores(kind: RemovalKind, request: Request, method: Method) -> list[Any]:
    """The edits that remove the parts with the lowest scores, or the run of blocks with the least distance."""
    parts, goal = sizes(request.model.architecture, kind), _goal(request)
    if method.name == RUN:
        distances = similarity.angular_triangle(request.statistics.similarities)
        going = least_distant_run(distances, parts, goal, request.rules)
    else:
        scores = registry.score_blocks(method, request.evidence)
        going = lowest_parts(scores, parts, goal, request.rules, kind)
    return _edits([Removal(kind, block) for block in going], request.origin)


def in_one_shot(request: Request) -> list[Any]:
    """The edits that remove the blocks whose single removal costs least."""
    assert request.windows is not None  # suggest has checked
    going = greedy.one_shot(request.model, request.windows, _goal(request), request.rules, request.stop, request.report)
    return _edits(going, request.origin)


def step_by_step(kinds: Sequence[RemovalKind], request: Request) -> list[Any]:
    """The edits that remove, one after the other, the parts of these kinds whose absence costs least."""
    assert request.windows is not None  # suggest has checked
    going = greedy.step_by_step(
        request.model, request.windows, kinds, _goal(request), request.rules, request.stop, request.report
    )
    return _edits(going, request.origin)


def _goal(request: Request) -> Goal:
    count = request.budget.blocks
    return Goal(count=count) if count is not None else Goal(excess=request.excess)


def _edits(parts: Sequence[Removal], origin: ChosenBy) -> list[Any]:
    """Edits that remove the parts; a block that loses both sublayers goes as a whole."""
    gone = {kind: {part.block for part in parts if part.kind == kind} for kind in ("blocks", "attention", "mlp")}
    both = gone["attention"] & gone["mlp"]
    chosen = (
        (RemoveBlocks, gone["blocks"] | both),
        (RemoveAttention, gone["attention"] - both),
        (RemoveMlp, gone["mlp"] - both),
    )
    return [edit(blocks=tuple(sorted(blocks)), chosen_by=origin) for edit, blocks in chosen if blocks]


AMOUNTS = ("blocks", "params")
RULES = (*ENDS, "no_neighbours")
STEPWISE = ("keep_candidates", "per_parameter")
SHORTENED = "Shortened LLaMA, arXiv 2402.02834"

BLOCKS = Kind(
    "blocks",
    title="Blocks",
    does="removes blocks",
    ops={"remove_blocks": "block"},
    budgets=AMOUNTS,
    rules=RULES,
    choose=partial(by_scores, "blocks"),
    procedures=(
        Procedure("perplexity_scan", "blocks", "Perplexity scan, one shot", SHORTENED, True, in_one_shot),
        Procedure(
            "perplexity_greedy",
            "blocks",
            "Perplexity scan, step by step",
            SHORTENED,
            True,
            partial(step_by_step, ("blocks",)),
            STEPWISE,
        ),
    ),
    exempt={RUN: ("no_neighbours",)},  # a run is all neighbours
)
ATTENTION = Kind(
    "attention",
    title="Attention",
    does="removes attention sublayers",
    ops={"remove_attention": "attention part"},
    budgets=AMOUNTS,
    rules=RULES,
    choose=partial(by_scores, "attention"),
)
MLP = Kind(
    "mlp",
    title="MLPs",
    does="removes MLP sublayers",
    ops={"remove_mlp": "MLP"},
    budgets=AMOUNTS,
    rules=RULES,
    choose=partial(by_scores, "mlp"),
)
SUBLAYERS = Kind(
    "sublayers",
    title="Attention and MLPs",
    does="removes attention and MLP sublayers",
    ops={**BLOCKS.ops, **ATTENTION.ops, **MLP.ops},
    budgets=AMOUNTS,
    rules=RULES,
    procedures=(
        Procedure(
            "greedy_sublayers",
            "sublayers",
            "Greedy sublayer removal",
            "FinerCut, arXiv 2405.18218",
            True,
            partial(step_by_step, ("attention", "mlp")),
            STEPWISE,
        ),
    ),
)
