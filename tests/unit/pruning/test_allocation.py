"""Budgets over the blocks: the published formula, one ranking, and the sum met within one unit."""

import math
from itertools import product

import pytest
import torch

from analysis.importance.similarity import coarse_importance
from analysis.text import Windows
from surgery.errors import InputError
from surgery.pruning.allocation import Layer, allocate, by_importance, by_ranking, nearest, standardised
from surgery.pruning.budget import CFSP_SHARPNESS, Rules
from tests.reference import random_windows
from tests.tiny_workbench import open_model


def layers_of(counts=(80, 80, 80, 80), costs=(144, 144, 144, 144), seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [
        Layer(3 * index, cost, standardised(torch.rand(count, generator=generator)).sort().values)
        for index, (count, cost) in enumerate(zip(counts, costs, strict=True))
    ]


def whole(layers):
    return sum(layer.count * layer.cost for layer in layers)


IMPORTANCE = {0: 0.4, 3: 0.1, 6: 0.15, 9: 0.3, 12: 0.05}
UNEVEN = {"counts": (80, 100, 40, 81), "costs": (144, 96, 200, 144)}


@pytest.mark.parametrize("shape", [{}, UNEVEN])
@pytest.mark.parametrize(("allocation", "divisor"), list(product(("uniform", "cfsp", "global", "raw"), (1, 8, 32))))
def test_every_budget_is_met_within_one_unit(shape, allocation, divisor):
    layers = layers_of(**shape)
    floor = sum(min(divisor, layer.count) * layer.cost for layer in layers)
    for step in range(41):
        kept = floor + (whole(layers) - floor) * step / 40
        stay = allocate(layers, kept, divisor, Rules(allocation=allocation), IMPORTANCE)
        off = sum(layer.cost * stay[layer.block] for layer in layers) - kept
        assert abs(off) <= divisor * max(layer.cost for layer in layers) * (0.5 if shape == {} else 1)
        for layer in layers:
            width = stay[layer.block]
            assert min(divisor, layer.count) <= width <= layer.count
            assert width % divisor == 0 or width == layer.count


def test_all_or_the_least_can_stay():
    layers = layers_of()
    for allocation in ("uniform", "cfsp", "global"):
        rules = Rules(allocation=allocation)
        assert set(allocate(layers, whole(layers), 8, rules, IMPORTANCE).values()) == {80}
        assert set(allocate(layers, 4 * 8 * 144, 8, rules, IMPORTANCE).values()) == {8}
        with pytest.raises(InputError, match="more than these parts hold"):
            allocate(layers, 3 * 8 * 144, 8, rules, IMPORTANCE)
    with pytest.raises(InputError):
        allocate([], 0.0, 1, Rules())


def test_uniform_takes_the_same_share_of_every_block():
    layers = layers_of(counts=(80, 40, 120, 80))
    assert list(allocate(layers, 0.75 * whole(layers), 1, Rules()).values()) == [60, 30, 90, 60]


def test_what_is_left_over_goes_where_the_rounding_was_worst():
    layers = layers_of(counts=(80, 84, 88, 80))
    kept = 0.5 * whole(layers) - 1 * 144  # wanted 39.76, 41.75, 43.73, 39.76: rounded up, one too many altogether
    assert list(allocate(layers, kept, 1, Rules()).values()) == [40, 42, 43, 40]


def test_of_blocks_rounded_alike_the_lowest_score_goes():
    low = Layer(1, 10, torch.tensor([-3.0, 0.0, 1.0]))
    layers = [Layer(0, 10, torch.tensor([-1.0, 0.0, 1.0])), low, Layer(2, 10, torch.tensor([-2.0, 0.0, 1.0]))]
    assert allocate(layers, 80.0, 1, Rules()) == {0: 3, 1: 2, 2: 3}
    assert allocate(layers, 70.0, 1, Rules()) == {0: 3, 1: 2, 2: 2}


def test_the_same_width_everywhere_if_asked_for():
    layers = layers_of()
    stay = allocate(layers, 0.9 * whole(layers) - 300, 8, Rules(same_width=True))
    assert set(stay.values()) == {72}


def naive_cfsp(importance, pruned, a):
    mean = sum(importance) / len(importance)
    sigmoid = [1 / (1 + math.exp(-a * (value - mean))) for value in importance]
    return [value / (sum(sigmoid) / len(sigmoid)) * (1 - pruned) for value in sigmoid]


@pytest.mark.parametrize("a", [1.0, CFSP_SHARPNESS])
@pytest.mark.parametrize("pruned", [0.3, 0.5, 0.7])
def test_cfsp_is_its_formula(a, pruned):
    importance = [0.12, 0.03, 0.05, 0.09, 0.14]
    layers = layers_of(counts=(1000,) * 5, costs=(7,) * 5)
    shares = naive_cfsp(importance, pruned, a)
    assert max(shares) < 1, "this case does not reach the limits"
    found = by_importance(layers, (1 - pruned) * whole(layers), 1, importance, a)
    assert found == pytest.approx([1000 * share for share in shares], rel=1e-9)


def test_what_the_limits_cut_off_is_spread_over_the_other_blocks():
    importance = [0.12, 0.03, 0.05, 0.09, 0.9]
    layers = layers_of(counts=(1000,) * 5, costs=(7,) * 5)
    shares = naive_cfsp(importance, 0.2, CFSP_SHARPNESS)
    found = by_importance(layers, 0.8 * whole(layers), 100, importance, CFSP_SHARPNESS)
    assert shares[4] > 1 and found[4] == 1000
    assert 7 * sum(found) == pytest.approx(0.8 * whole(layers))
    inside = [index for index in range(4) if 100 < found[index] < 1000]
    assert len(inside) > 1
    ratios = [found[index] / shares[index] for index in inside]
    assert ratios == pytest.approx([ratios[0]] * len(inside))


def test_twice_the_tokens_do_not_change_the_budget():
    model = open_model("llama")
    once = random_windows(4)
    twice = Windows(once.ids.repeat(2, 1), "random", "twice", bos=False)
    layers = layers_of()
    found = []
    for windows in (once, twice):
        importance = coarse_importance(model.statistics(windows).similarities).tolist()
        found.append(by_importance(layers, 0.6 * whole(layers), 1, importance, CFSP_SHARPNESS))
    assert found[0] == pytest.approx(found[1], rel=1e-5)
    assert len({round(value) for value in found[0]}) > 1


@pytest.mark.parametrize("divisor", [1, 8])
@pytest.mark.parametrize("gone", [0, 1, 57, 200, 280])
def test_one_ranking_is_that_of_a_loop(divisor, gone):
    layers = layers_of(seed=5)
    left = {index: layer.count for index, layer in enumerate(layers)}
    everything = sorted(
        (float(score), index, unit) for index, layer in enumerate(layers) for unit, score in enumerate(layer.scores)
    )
    removed = 0
    for _, index, _ in everything:
        if removed < gone and left[index] > divisor:
            left[index] -= 1
            removed += 1
    assert by_ranking(layers, whole(layers) - 144 * gone, divisor) == list(left.values())


def test_standardised_scores():
    values = torch.tensor([1.0, 2.0, 3.0, 6.0])
    found = standardised(values)
    assert float(found.mean()) == pytest.approx(0) and float((found**2).mean()) == pytest.approx(1)
    assert torch.equal(found.argsort(), values.argsort())
    assert standardised(torch.ones(3)).tolist() == [0, 0, 0]


def test_nearest_is_never_below_one_multiple():
    assert [nearest(80, wanted, 32) for wanted in (0, 40, 50, 79, 80, 99)] == [32, 32, 64, 64, 80, 80]
