"""Which blocks or sublayers go, against every possible choice."""

from dataclasses import replace
from itertools import combinations

import pytest
import torch

from analysis.model.describe import describe
from surgery.errors import InputError
from surgery.pruning.budget import Rules
from surgery.pruning.parts import Goal, least_distant_run, lowest_parts
from surgery.structure.removal import Removal, sizes, without
from surgery.structure.resolve import resolve
from surgery.structure.structure import dense
from tests.reference import recipe_of
from tests.tiny_models import FAMILIES, build

BLOCKS = 9
OPS = {"blocks": "remove_blocks", "attention": "remove_attention", "mlp": "remove_mlp"}


def scores_of(seed):
    return torch.rand(BLOCKS, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def possible(rules, count, most=BLOCKS):
    free = [block for block in range(BLOCKS) if rules.protect_first <= block < BLOCKS - rules.protect_last]
    return [
        chosen
        for chosen in combinations(free, count)
        if count <= most and not (rules.no_neighbours and any(b + 1 in chosen for b in chosen))
    ]


RULES = [
    Rules(protect_first=first, protect_last=last, no_neighbours=apart)
    for first, last in ((0, 0), (4, 2), (1, 0))
    for apart in (False, True)
]


@pytest.mark.parametrize("rules", RULES)
@pytest.mark.parametrize("seed", range(5))
def test_the_least_sum_of_scores_goes(rules, seed):
    scores, size = scores_of(seed), dict.fromkeys(range(BLOCKS), 10)
    for count in range(BLOCKS + 1):
        choices = possible(rules, count, most=BLOCKS - 1)
        if not choices:
            with pytest.raises(InputError, match=rf"Between 0 and {count - 1} blocks .* {count} were asked for"):
                lowest_parts(scores, size, Goal(count=count), rules, "blocks")
            break
        best = min(choices, key=lambda chosen: sum(scores[list(chosen)].tolist()))
        assert lowest_parts(scores, size, Goal(count=count), rules, "blocks") == best


@pytest.mark.parametrize("seed", range(5))
def test_sets_without_neighbours_are_the_best_also_with_equal_scores(seed):
    dice = torch.Generator().manual_seed(seed)
    scores = torch.randint(-2, 3, (BLOCKS,), generator=dice).double()
    for candidates in combinations(range(BLOCKS), 6):  # blocks that are protected stand between some
        size = dict.fromkeys(candidates, 10)
        for count in range(6):
            sets = [chosen for chosen in combinations(candidates, count) if not any(b + 1 in chosen for b in chosen)]
            if not sets:
                break
            found = lowest_parts(scores, size, Goal(count=count), Rules(no_neighbours=True), "blocks")
            assert found in sets
            assert sum(scores[list(found)].tolist()) == min(sum(scores[list(chosen)].tolist()) for chosen in sets)


@pytest.mark.parametrize("rules", RULES)
def test_a_parameter_goal_is_met_within_half_a_block(rules):
    scores, size = scores_of(0), dict.fromkeys(range(BLOCKS), 10)
    most = 10 * max(count for count in range(BLOCKS) if possible(rules, count, BLOCKS - 1))
    for excess in range(most + 5):
        chosen = lowest_parts(scores, size, Goal(excess=excess), rules, "blocks")
        assert abs(10 * len(chosen) - excess) <= 5
        assert chosen == lowest_parts(scores, size, Goal(count=len(chosen)), rules, "blocks")
    with pytest.raises(InputError, match="more than these parts hold"):
        lowest_parts(scores, size, Goal(excess=most + 6), rules, "blocks")


def test_blocks_without_the_part_are_passed_over():
    scores = torch.zeros(BLOCKS)
    assert lowest_parts(scores, {1: 10, 5: 10}, Goal(count=2), Rules(), "attention") == (1, 5)
    with pytest.raises(InputError, match="Between 0 and 2 attention sublayers"):
        lowest_parts(scores, {1: 10, 5: 10}, Goal(count=3), Rules(), "attention")


def test_uneven_parts_come_nearest_in_the_order_of_the_ranking():
    scores, size = torch.tensor([0.1, 0.2, 0.3, 0.4]), {0: 100, 1: 10, 2: 50, 3: 10}
    assert lowest_parts(scores, size, Goal(excess=112), Rules(), "blocks") == (0, 1)
    assert lowest_parts(scores, size, Goal(excess=149), Rules(), "blocks") == (0, 1, 2)


@pytest.mark.parametrize("rules", [rule for rule in RULES if not rule.no_neighbours])
def test_the_least_distant_run_goes(rules):
    distances = torch.rand(BLOCKS, BLOCKS, generator=torch.Generator().manual_seed(3))
    for start in range(BLOCKS):
        distances[start, BLOCKS - start :] = float("nan")
    size = dict.fromkeys(range(BLOCKS), 10)
    for count in range(1, BLOCKS - rules.protect_first - rules.protect_last + 1):
        if count == BLOCKS:
            continue
        runs = [chosen for chosen in possible(rules, count) if chosen[-1] - chosen[0] == count - 1]
        best = min(runs, key=lambda chosen: float(distances[chosen[0], count - 1]))
        assert least_distant_run(distances, size, Goal(count=count), rules) == best
        assert least_distant_run(distances, size, Goal(excess=10 * count + 4), rules) == best
    assert least_distant_run(distances, size, Goal(count=0), rules) == ()
    with pytest.raises(InputError):
        least_distant_run(distances, size, Goal(count=BLOCKS), rules)


@pytest.mark.parametrize("family", FAMILIES)
def test_sizes_and_structures_are_those_of_the_recipes(family):
    architecture = describe(build(family))
    for kind, op in OPS.items():
        for block, size in sizes(architecture, kind).items():
            edited = resolve(architecture, recipe_of({op: [block]}))
            assert without(dense(architecture), Removal(kind, block)) == (edited, block)
            assert architecture.parameters - edited.parameters == size


def test_the_last_sublayer_takes_its_block_along():
    architecture = describe(build("phi"))  # one norm serves both sublayers
    alone = replace(architecture.blocks[1], attention=None)
    architecture = replace(architecture, blocks=(architecture.blocks[0], alone, *architecture.blocks[2:]))
    assert list(sizes(architecture, "attention")) == [0, 2, 3]
    assert sizes(architecture, "mlp")[1] == alone.parameters
