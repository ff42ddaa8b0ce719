"""Measured choices against brute force: plain forwards of edited copies."""

from __future__ import annotations

from functools import cache
from threading import Event

import pytest

from surgery.errors import Cancelled, InputError
from surgery.pruning import greedy
from surgery.pruning.blocks import Goal
from surgery.pruning.budget import Budget, Rules
from surgery.pruning.suggest import suggest
from surgery.structure.removal import Removal, sizes
from tests.reference import edited, random_windows, token_nll
from tests.tiny_workbench import open_model

WINDOWS = random_windows()
OPS = {"blocks": "remove_blocks", "attention": "remove_attention", "mlp": "remove_mlp"}
FAMILIES = ("llama", "gemma2", "gpt_neox", "opt")


@cache
def model_of(family):
    return open_model(family)


@cache
def loss_of(family, parts):
    """Mean loss without those parts, by a plain forward of an edited copy."""
    plan = {}
    for part in parts:
        plan.setdefault(OPS[part.kind], []).append(part.block)
    return float(token_nll(edited(model_of(family).loaded.model, family, plan), WINDOWS.ids).mean())


def brute_force(family, kinds, count, weigh=lambda part: 1.0):
    """Step by step, everything tried in each step."""
    chosen = ()
    for _ in range(count):
        left = [Removal(kind, block) for block in range(4) for kind in kinds if Removal(kind, block) not in chosen]
        before = loss_of(family, frozenset(chosen))
        chosen += (min(left, key=lambda part: (loss_of(family, frozenset((*chosen, part))) - before) / weigh(part)),)
    return list(chosen)


def search(family, kinds, goal, rules=Rules(), stop=None, report=lambda share, message: None):
    return greedy.step_by_step(model_of(family), WINDOWS, kinds, goal, rules, stop, report)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("kinds", [("blocks",), ("attention", "mlp")])
def test_each_step_is_the_best_of_all(family, kinds):
    expected = brute_force(family, kinds, 3)
    assert search(family, kinds, Goal(count=3)) == expected
    assert search(family, kinds, Goal(count=3)) == expected, "it is deterministic"


@pytest.mark.parametrize("family", FAMILIES)
def test_steps_may_weigh_by_parameters(family):
    size = {
        Removal(kind, b): n
        for kind in ("attention", "mlp")
        for b, n in sizes(model_of(family).architecture, kind).items()
    }
    expected = brute_force(family, ("attention", "mlp"), 3, weigh=lambda part: size[part])
    assert search(family, ("attention", "mlp"), Goal(count=3), Rules(per_parameter=True)) == expected


@pytest.mark.parametrize("family", FAMILIES)
def test_one_shot_takes_the_cheapest_single_removals(family):
    single = sorted(range(4), key=lambda block: loss_of(family, frozenset([Removal("blocks", block)])))
    for count in range(4):
        found = greedy.one_shot(
            model_of(family), WINDOWS, Goal(count=count), Rules(), None, lambda share, message: None
        )
        assert [part.block for part in found] == sorted(single[:count])


def test_kept_candidates_bound_the_work_of_a_step(monkeypatch):
    asked = []
    measured = greedy.measured

    def noting(evaluator, base, parts, *rest):
        asked.append(list(parts))
        return measured(evaluator, base, parts, *rest)

    monkeypatch.setattr(greedy, "measured", noting)
    chosen = search("llama", ("attention", "mlp"), Goal(count=4), Rules(keep_candidates=2))
    assert [len(parts) for parts in asked] == [8, 2, 2, 2]
    first = {part: loss_of("llama", frozenset([part])) for part in asked[0]}
    assert chosen[0] == min(first, key=first.get)
    assert set(asked[1]) == set(sorted((part for part in first if part != chosen[0]), key=first.get)[:2])
    assert len(set(chosen)) == 4


def test_protected_and_neighbouring_parts_stay():
    rules = Rules(protect_first=1, no_neighbours=True)
    found = search("llama", ("attention", "mlp"), Goal(count=4), rules)
    assert sorted((part.kind, part.block) for part in found) == [
        ("attention", 1), ("attention", 3), ("mlp", 1), ("mlp", 3),
    ]  # fmt: skip
    with pytest.raises(InputError, match=r"Between 0 and 4 sublayers .* 5 were asked for"):
        search("llama", ("attention", "mlp"), Goal(count=5), rules)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_choice_never_shuts_the_goal_out(family):
    found = search(family, ("blocks",), Goal(count=2), Rules(no_neighbours=True))
    possible = {frozenset({0, 2}), frozenset({0, 3}), frozenset({1, 3})}
    assert frozenset(part.block for part in found) in possible


def test_one_part_must_stay():
    assert len(search("llama", ("blocks",), Goal(count=3))) == 3
    with pytest.raises(InputError, match="Between 0 and 3 blocks"):
        search("llama", ("blocks",), Goal(count=4))
    with pytest.raises(InputError, match="Between 0 and 7 sublayers"):
        search("llama", ("attention", "mlp"), Goal(count=8))
    with pytest.raises(InputError, match="more than these parts hold"):
        search("llama", ("blocks",), Goal(excess=10**9))


@pytest.mark.parametrize("rules", [Rules(), Rules(no_neighbours=True), Rules(per_parameter=True, keep_candidates=3)])
@pytest.mark.parametrize("kinds", [("blocks",), ("attention", "mlp")])
@pytest.mark.parametrize("share", [0.0, 0.1, 0.3, 0.45])
def test_parameter_goals_are_met_within_one_unit(kinds, rules, share):
    model = model_of("llama")
    size = {kind: sizes(model.architecture, kind)[0] for kind in kinds}
    excess = int(share * sum(4 * value for value in size.values()))
    found = search("llama", kinds, Goal(excess=excess), rules)
    assert abs(sum(size[part.kind] for part in found) - excess) <= max(size.values()) / 2


def test_a_block_that_loses_both_sublayers_goes_as_a_whole():
    recipe = suggest(model_of("llama"), "greedy_sublayers", Budget(blocks=7), Rules(), WINDOWS)
    removed = [block for edit in recipe.edits if edit.op == "remove_blocks" for block in edit.blocks]
    assert len(removed) == 3 and len(recipe.edits) == 2
    assert len(model_of("llama").resolve(recipe).blocks) == 1


def test_a_stop_ends_it():
    stop, seen = Event(), []

    def report(share, message):
        seen.append((share, message))
        if len(seen) == 8:
            stop.set()

    with pytest.raises(Cancelled):
        greedy.step_by_step(open_model("llama"), WINDOWS, ("blocks",), Goal(count=3), Rules(), stop, report)
    assert len(seen) == 8 and seen[-1][1].startswith("Step ")


def test_progress_rises_to_the_end():
    shares = []
    search("opt", ("attention", "mlp"), Goal(excess=30_000), report=lambda share, message: shares.append(share))
    assert shares == sorted(shares) and shares[0] == 0 and shares[-1] <= 1
