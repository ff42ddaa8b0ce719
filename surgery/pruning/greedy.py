"""Choosing by measuring: remove what costs the least measured loss, in one shot or step by step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from threading import Event

import torch

from analysis.text import Windows
from surgery.common.progress import Report
from surgery.errors import InputError
from surgery.evaluation.scan import measured, single_removals
from surgery.pruning.budget import Rules
from surgery.pruning.parts import Goal, lowest_parts
from surgery.structure.removal import REMOVALS, Removal, RemovalKind, sizes, without
from surgery.structure.structure import Structure
from surgery.workbench.open_model import OpenModel


def one_shot(
    model: OpenModel, windows: Windows, goal: Goal, rules: Rules, stop: Event | None, report: Report
) -> list[Removal]:
    """The blocks whose single removal costs least. Source: Shortened LLaMA (2402.02834), perplexity criterion."""
    size = sizes(model.architecture, "blocks")
    lowest_parts(torch.zeros(len(size)), size, goal, rules, "blocks")  # an impossible goal is refused before the work
    parts = single_removals(model.architecture, ("blocks",))
    losses = measured(model.evaluator, model.evaluator.dense, parts, windows, stop, report)
    scores = torch.zeros(len(model.architecture.blocks), dtype=torch.float64)
    for part, found in zip(parts, losses, strict=True):
        scores[part.block] = found.double().mean()
    return [Removal("blocks", block) for block in lowest_parts(scores, size, goal, rules, "blocks")]


def step_by_step(
    model: OpenModel,
    windows: Windows,
    kinds: Sequence[RemovalKind],
    goal: Goal,
    rules: Rules,
    stop: Event | None,
    report: Report,
) -> list[Removal]:
    """Remove the part whose absence costs least, measure again, and so on until the goal is met.

    With `rules.keep_candidates` = K a step measures the K parts that cost least when they were last measured (in the
    first step all). With `rules.per_parameter` a step weighs the rise of the loss by the parameters that leave.
    Source: Shortened LLaMA (2402.02834) for blocks; FinerCut (2405.18218) for attentions and MLPs together.

    Returns:
        The parts in the order of their removal.

    Raises:
        InputError: the goal cannot be reached.
    """
    search = _Search(model, kinds, goal, rules)
    search.refuse_impossible()
    rises: dict[Removal, float] = {}
    base = model.evaluator.dense
    chosen: list[Removal] = []
    while candidates := search.candidates(base, chosen):
        if rises and rules.keep_candidates is not None:
            ranked = sorted(candidates, key=lambda part: (rises.get(part, 0.0), part.block, part.kind))
            candidates = [part for part in candidates if part in ranked[: rules.keep_candidates]]
        progress = _within(report, *search.progress(base, chosen), len(chosen) + 1)
        losses = measured(model.evaluator, base, candidates, windows, stop, progress)
        before = model.evaluator.measure(base, windows).nll  # a look-up by now
        for part, found in zip(candidates, losses, strict=True):
            rise = float(found.double().mean()) - before
            rises[part] = rise / search.size(base, part) if rules.per_parameter else rise
        best = min(candidates, key=lambda part: (rises[part], part.block, part.kind))
        chosen.append(best)
        base, _ = without(base, best)
    return chosen


@dataclass(frozen=True)
class _Search:
    """What may be removed next."""

    model: OpenModel
    kinds: Sequence[RemovalKind]
    goal: Goal
    rules: Rules

    @cached_property
    def sizes(self) -> dict[Removal, int]:
        """Parameters of everything that may go, by block."""
        by_kind = {kind: sizes(self.model.architecture, kind) for kind in self.kinds}
        blocks = len(self.model.architecture.blocks)
        free = [block for block in range(blocks) if not self.rules.protects(block, blocks)]
        return {
            Removal(kind, block): by_kind[kind][block]
            for block in free
            for kind in self.kinds
            if block in by_kind[kind]
        }

    def refuse_impossible(self) -> None:
        """Say so before anything is measured."""
        if self._reachable(()):
            return
        if self.goal.count is None:
            raise InputError("That budget is more than these parts hold: combine methods, or ask for less.")
        name = REMOVALS[self.kinds[0]] if len(self.kinds) == 1 else "sublayers"
        most = len(self._room(()))
        raise InputError(f"Between 0 and {most} {name} can go under these rules, and {self.goal.count} were asked for.")

    def size(self, base: Structure, part: Removal) -> int:
        """Parameters that leave with the part now: the last sublayer of a block takes the rest of it along."""
        return base.parameters - without(base, part)[0].parameters

    def progress(self, base: Structure, chosen: Sequence[Removal]) -> tuple[float, float]:
        """Share of the goal that is reached, and that will be after one more small step."""
        if self.goal.count is not None:
            return len(chosen) / self.goal.count, (len(chosen) + 1) / self.goal.count
        gone, excess = self._gone(base), max(self.goal.excess or 0, 1)
        return gone / excess, min(1.0, (gone + min(self.sizes.values())) / excess)

    def candidates(self, base: Structure, chosen: Sequence[Removal]) -> list[Removal]:
        """Parts that may go now, by block: none when the goal is met as closely as it can be."""
        if self.goal.count is not None and len(chosen) >= self.goal.count:
            return []
        found = self._allowed(chosen)
        if self.goal.excess is not None:
            ahead = self.goal.excess - self._gone(base)
            found = [part for part in found if abs(ahead - self.size(base, part)) < ahead]
        if self.rules.no_neighbours:  # a greedy choice must not shut the goal out
            found = [part for part in found if self._reachable((*chosen, part))]
        return found

    def _gone(self, base: Structure) -> int:
        return self.model.architecture.parameters - base.parameters

    def _allowed(self, chosen: Sequence[Removal]) -> list[Removal]:
        taken = set(chosen)
        if len(taken) >= self._total - 1:
            return []
        return [part for part in self.sizes if part not in taken and not (self._neighbours(part) & taken)]

    def _neighbours(self, part: Removal) -> set[Removal]:
        """Parts that may not go together with this one."""
        near = (part.block - 1, part.block + 1) if self.rules.no_neighbours else ()
        return {Removal(part.kind, block) for block in near}

    @cached_property
    def _total(self) -> int:
        """Parts of these kinds in the model: one of them stays."""
        return sum(len(sizes(self.model.architecture, kind)) for kind in self.kinds)

    def _room(self, chosen: Sequence[Removal]) -> list[Removal]:
        """The most parts that can still go. First come is best here: rows of neighbours lose every other one."""
        more = list(chosen)
        for part in self._allowed(chosen):
            if part in self._allowed(more):
                more.append(part)
        return more[len(chosen) :]

    def _reachable(self, chosen: Sequence[Removal]) -> bool:
        room = self._room(chosen)
        if self.goal.count is not None:
            return len(chosen) + len(room) >= self.goal.count
        together = sum(self.sizes[part] for part in (*chosen, *room))
        return together >= (self.goal.excess or 0) - max(self.sizes.values(), default=0) / 2


def _within(report: Report, start: float, end: float, step: int) -> Report:
    """A report of one step's share inside the whole search's."""

    def inner(share: float, message: str) -> None:
        report(start + (end - start) * share, f"Step {step}: {message[0].lower()}{message[1:]}")

    return inner
