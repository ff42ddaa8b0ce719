"""Which blocks or sublayers go: from one score each and a budget to explicit indices."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from surgery.errors import InputError
from surgery.pruning.budget import Rules
from surgery.structure.removal import REMOVALS, RemovalKind


@dataclass(frozen=True)
class Goal:
    """How much should go: that many parts, or about that many parameters."""

    count: int | None = None
    excess: int | None = None


def lowest_parts(
    scores: torch.Tensor, sizes: Mapping[int, int], goal: Goal, rules: Rules, kind: RemovalKind
) -> tuple[int, ...]:
    """The parts with the least sum of scores, ascending; of equal scores the lower index goes first.

    Args:
        scores: one a block, (blocks,).
        sizes: parameters of each part that there is, by block.
        goal: a count, or the parameters that should go: then the count whose sum comes nearest.
        rules: which are protected, and whether neighbours may go.
        kind: what the parts are.

    Raises:
        InputError: the goal cannot be reached.
    """
    blocks = len(scores)
    candidates = [index for index in sizes if not rules.protects(index, blocks)]
    values = {index: float(scores[index]) for index in candidates}
    sets = _apart(candidates, values) if rules.no_neighbours else _prefixes(candidates, values)
    return pick(sets[: _most(kind, sizes) + 1], sizes, goal, REMOVALS[kind])


def least_distant_run(distances: torch.Tensor, sizes: Mapping[int, int], goal: Goal, rules: Rules) -> tuple[int, ...]:
    """The run of consecutive blocks with the smallest distance across it; for a parameter goal of the nearest length.

    Entry (l, n - 1) of `distances` (blocks, blocks) is across the n blocks from l on. The rest is as in `lowest_parts`.
    """
    blocks = len(distances)
    free = [index for index in sizes if not rules.protects(index, blocks)]
    runs: list[tuple[int, ...]] = [()]
    for length in range(1, min(len(free), blocks - 1) + 1):
        starts = [block for block in free if set(range(block, block + length)) <= set(free)]
        if not starts:
            break  # protected blocks stand between
        start = min(starts, key=lambda block: float(distances[block, length - 1]))
        runs.append(tuple(range(start, start + length)))
    return pick(runs, sizes, goal, REMOVALS["blocks"])


def pick(sets: Sequence[tuple[int, ...]], sizes: Mapping[int, int], goal: Goal, what: str) -> tuple[int, ...]:
    """The best set of that count, or the one whose parameters come nearest to what should go.

    `sets` has the best one of each count from 0 on. Raises InputError: the goal is more than the largest set.
    """
    if goal.count is not None:
        if not 0 <= goal.count < len(sets):
            raise InputError(
                f"Between 0 and {len(sets) - 1} {what} can go under these rules, and {goal.count} were asked for."
            )
        return sets[goal.count]
    excess = goal.excess
    assert excess is not None  # a goal is one or the other
    totals = [sum(sizes[index] for index in chosen) for chosen in sets]
    if excess > max(totals) + max(sizes.values(), default=0) / 2:
        raise InputError("That budget is more than these parts hold: combine methods, or ask for less.")
    return min(zip(sets, totals, strict=True), key=lambda pair: abs(pair[1] - excess))[0]


def _most(kind: RemovalKind, sizes: Mapping[int, int]) -> int:
    """One block must stay; sublayers of one kind can all go."""
    return len(sizes) - (kind == "blocks")


def _prefixes(candidates: Sequence[int], values: Mapping[int, float]) -> list[tuple[int, ...]]:
    """The lowest 0, 1, 2, ... candidates."""
    order = sorted(candidates, key=lambda index: (values[index], index))
    return [tuple(sorted(order[:count])) for count in range(len(order) + 1)]


def _apart(candidates: Sequence[int], values: Mapping[int, float]) -> list[tuple[int, ...]]:
    """For each count the candidates with the least sum among those sets in which no two are neighbours.

    Taking the lowest one by one could block a set that is possible: 1 out of 0, 1, 2 leaves no second.
    """
    best: dict[int, tuple[float, tuple[int, ...]]] = {0: (0.0, ())}  # by count, of the candidates so far
    before = best  # the same without the last candidate
    for place, index in enumerate(candidates):
        free = before if place and candidates[place - 1] == index - 1 else best
        before, best = best, dict(best)
        for count, (cost, chosen) in free.items():
            if count + 1 not in best or cost + values[index] < best[count + 1][0]:
                best[count + 1] = (cost + values[index], (*chosen, index))
    return [chosen for _, chosen in best.values()]
