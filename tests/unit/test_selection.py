"""Budgets to widths, scores to indices, methods and budgets to recipes."""

from types import SimpleNamespace

import pytest
import torch

from analysis.describe import describe
from analysis.text import Windows
from surgery.errors import InputError
from surgery.loading import Loaded, fingerprint
from surgery.selection import (
    WidthBudget,
    count_for,
    lowest,
    nearest_width,
    parameter_target,
    prune_heads,
    prune_kv_groups,
    prune_neurons,
)
from surgery.suggestion import Budget, parse_expansion_ratio, suggest
from surgery.workbench import OpenModel
from tests.tiny_models import build


def opened(family="llama"):
    model = build(family)
    return OpenModel(Loaded("tiny", None, model, None, describe(model), fingerprint(model)))


def analysed(model):
    ids = torch.randint(0, 128, (4, 24), generator=torch.Generator().manual_seed(0))
    windows = Windows(ids, "pasted", "f", False)
    return windows, model.statistics(windows)


MLP = SimpleNamespace(width=80, hidden_size=48)


@pytest.mark.parametrize(
    ("unit", "value", "divisor", "width"),
    [
        ("expansion_ratio", 1.0, 1, 48),
        ("expansion_ratio", 5.0, 1, 80),
        ("width", 50, 1, 50),
        ("width", 50, 8, 48),
        ("width", 52, 8, 56),
        ("width", 3, 8, 8),
        ("width", 79, 64, 64),
        ("percent", 20, 1, 64),
        ("percent", 20, 32, 64),
        ("percent", 100, 8, 8),
        ("percent", 0, 32, 80),
    ],
)
def test_budgets_round_to_the_nearest_multiple_never_below_one(unit, value, divisor, width):
    assert WidthBudget(unit, value, divisor).width(MLP) == width


@pytest.mark.parametrize(
    ("unit", "value", "divisor"),
    [("width", 0, 1), ("width", -1, 1), ("expansion_ratio", float("nan"), 1), ("percent", 101, 1), ("width", 8, 0)],
)
def test_senseless_budgets_are_refused(unit, value, divisor):
    with pytest.raises(InputError):
        WidthBudget(unit, value, divisor).width(MLP)


def test_lowest_scores_go_first_and_ties_by_index():
    assert lowest(torch.tensor([3.0, 1.0, 1.0, 0.5]), 2) == [1, 3]
    assert lowest(torch.tensor([1.0, 1.0, 1.0]), 2) == [0, 1]
    assert lowest(torch.tensor([1.0]), 0) == []


def test_neurons_heads_and_groups_become_edits():
    architecture = describe(build("llama"))
    scores = torch.arange(80.0)
    edit = prune_neurons(architecture, {0: scores, 2: -scores}, WidthBudget("width", 78))
    assert edit.removed == {0: (0, 1), 2: (78, 79)}
    assert prune_neurons(architecture, {0: scores}, WidthBudget("width", 80)) is None
    heads = torch.tensor([3.0, 1.0, 2.0, 1.0, 5.0, 6.0])
    assert prune_heads(architecture, {1: heads}, 1).removed == {1: (1, 3)}
    assert prune_kv_groups(architecture, {1: heads}, 1).removed == {1: (0,)}
    with pytest.raises(InputError):
        prune_heads(architecture, {1: heads}, 3)
    with pytest.raises(InputError):
        prune_kv_groups(architecture, {1: heads}, 2)


def test_parameter_targets():
    assert parameter_target("-20%", 1000) == 800
    assert parameter_target("80%", 1000) == 800
    assert parameter_target("750", 1000) == 750
    for text in ("", "20", "-20", "abc", "-100%", "120%", "2000", "1e3", "nan%"):
        if text == "20":
            assert parameter_target(text, 1000) == 20
            continue
        with pytest.raises(InputError):
            parameter_target(text, 1000)


def test_count_for_comes_nearest():
    assert count_for([10, 10, 10, 10], 14) == 1
    assert count_for([10, 10, 10, 10], 16) == 2
    assert count_for([10, 10, 10, 10], 4) == 0
    with pytest.raises(InputError):
        count_for([10, 10], 100)


def test_expansion_ratios_are_read_in_both_forms():
    assert parse_expansion_ratio("200%") == parse_expansion_ratio("2.0") == 2.0
    for text in ("", "-1", "0", "inf", "nan", "two"):
        with pytest.raises(InputError):
            parse_expansion_ratio(text)


@pytest.mark.parametrize("method", ["maw", "vow", "pon", "l2", "hybrid", "wanda_structured", "minitron", "cfsp_fine"])
def test_neuron_suggestions_meet_their_budget(method):
    model = opened()
    windows, statistics = analysed(model)
    recipe = suggest(model, method, Budget(expansion_ratio=1.0, divisor=8), windows, statistics)
    structure = model.resolve(recipe)
    assert {len(spec.neurons) for spec in structure.blocks} == {48}
    assert recipe.edits[0].chosen_by.method == method
    smaller = model.resolve(suggest(model, method, Budget(params="-20%"), windows, statistics))
    one_each = 4 * model.architecture.blocks[0].mlp.per_neuron
    assert abs(smaller.parameters - 0.8 * model.architecture.parameters) <= one_each


@pytest.mark.parametrize(
    ("method", "op"),
    [
        ("block_influence", "remove_blocks"),
        ("attention_influence", "remove_attention"),
        ("mlp_influence", "remove_mlp"),
    ],
)
def test_depth_suggestions_take_the_lowest(method, op):
    from analysis import registry

    model = opened()
    windows, statistics = analysed(model)
    scores = registry.score_blocks(registry.method(method), model.evidence(windows))
    recipe = suggest(model, method, Budget(blocks=2), windows, statistics)
    assert recipe.edits[0].op == op
    assert set(recipe.edits[0].blocks) == set(scores.argsort()[:2].tolist())


def test_angular_distance_takes_a_run():
    model = opened()
    windows, statistics = analysed(model)
    blocks = suggest(model, "angular_distance", Budget(blocks=2), windows, statistics).edits[0].blocks
    assert blocks[1] == blocks[0] + 1


def test_head_suggestions_keep_groups_equal():
    model = opened()
    windows, statistics = analysed(model)
    structure = model.resolve(suggest(model, "minitron_heads", Budget(params="-12%"), windows, statistics))
    assert {len(spec.query_heads) % len(spec.kv_heads) for spec in structure.blocks} == {0}
    assert structure.parameters < model.architecture.parameters


@pytest.mark.parametrize(
    ("method", "budget"),
    [
        ("maw", Budget(blocks=2)),
        ("block_influence", Budget(width=10)),
        ("block_influence", Budget(blocks=4)),
        ("block_influence", Budget()),
        ("block_influence", Budget(blocks=1, params="-10%")),
        ("minitron_heads", Budget(blocks=1)),
        ("no_such_method", Budget(blocks=1)),
        ("maw", Budget(params="-99%")),
    ],
)
def test_budgets_that_do_not_go_with_a_method_are_refused(method, budget):
    model = opened()
    windows, statistics = analysed(model)
    with pytest.raises(InputError):
        suggest(model, method, budget, windows, statistics)


def test_text_methods_need_an_analysis():
    with pytest.raises(InputError, match="analysis"):
        suggest(opened(), "hybrid", Budget(width=10), None, None)


def test_widths_come_from_what_must_go():
    blocks = describe(build("llama")).blocks
    assert nearest_width(blocks, 10 * 4 * blocks[0].mlp.per_neuron) == 70
    with pytest.raises(InputError):
        nearest_width(blocks, 10**9)
