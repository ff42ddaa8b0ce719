"""Budgets to widths, scores to indices."""

from types import SimpleNamespace

import pytest
import torch

from analysis.model.describe import describe
from surgery.errors import InputError
from surgery.pruning.budget import AMOUNTS, Budget, Rules, parameter_target, parse_expansion_ratio
from surgery.pruning.heads import prune_heads, prune_kv_groups
from surgery.pruning.neurons import WidthBudget, lowest, narrow_to, prune_neurons
from tests.tiny_models import build

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
    assert narrow_to({0: scores, 1: scores}, {0: 79, 1: 80}).removed == {0: (0,)}
    heads = {1: torch.tensor([3.0, 1.0, 2.0, 1.0, 5.0, 6.0]), 2: torch.arange(6.0)}
    assert prune_heads(architecture, heads, {1: 1, 2: 0}).removed == {1: (1, 3)}
    assert prune_heads(architecture, heads, {1: 0}) is None
    assert prune_kv_groups(architecture, heads, {1: 1}).removed == {1: (0,)}
    assert prune_kv_groups(architecture, heads, {1: 0}) is None
    with pytest.raises(InputError, match="3 query heads"):
        prune_heads(architecture, heads, {1: 3})
    with pytest.raises(InputError, match="2 KV groups"):
        prune_kv_groups(architecture, heads, {1: 2})


def test_parameter_targets():
    assert parameter_target("-20%", 1000) == 800
    assert parameter_target("80%", 1000) == 800
    assert parameter_target("750", 1000) == 750
    assert parameter_target("20", 1000) == 20
    for text in ("", "-20", "abc", "-100%", "120%", "2000", "1e3", "nan%"):
        with pytest.raises(InputError):
            parameter_target(text, 1000)


def test_expansion_ratios_are_read_in_both_forms():
    assert parse_expansion_ratio("200%") == parse_expansion_ratio("2.0") == 2.0
    for text in ("", "-1", "0", "inf", "nan", "two"):
        with pytest.raises(InputError):
            parse_expansion_ratio(text)


def test_exactly_one_amount_is_given():
    assert [Budget(**{name: 1}).given() for name in AMOUNTS] == list(AMOUNTS)
    for budget in (Budget(), Budget(divisor=8), Budget(blocks=0, params="-10%"), Budget(heads=1, kv_heads=1)):
        with pytest.raises(InputError, match="exactly one budget"):
            budget.given()


@pytest.mark.parametrize(
    "budget", [Budget(heads=-1), Budget(percent=-5), Budget(percent=float("nan")), Budget(blocks=-1)]
)
def test_amounts_are_not_negative(budget):
    with pytest.raises(InputError, match=r"The budget \(--\w+ \w\) must be a"):
        budget.given()


@pytest.mark.parametrize(
    "rules",
    [
        Rules(protect_first=-1),
        Rules(protect_last=-1),
        Rules(keep_candidates=0),
        Rules(sharpness=5.0),
        Rules(sharpness=float("nan"), allocation="cfsp"),
        Rules(same_width=True, allocation="global"),
    ],
)
def test_senseless_rules_are_refused(rules):
    with pytest.raises(InputError):
        rules.note("any", list(Rules.__dataclass_fields__))


def test_rules_that_do_not_apply_are_refused_by_name():
    with pytest.raises(InputError, match="--no-neighbours does not go with the method 'maw'"):
        Rules(no_neighbours=True).note("maw", ("protect_first",))
    assert Rules(protect_first=4).note("x", ("protect_first", "protect_last")) == {
        "protect_first": 4,
        "protect_last": 0,
    }


def test_named_blocks_are_recorded_last_as_a_range_and_only_where_there_are_any():
    applicable = ("protect_first", "protect_last", "protect_blocks", "seed")
    noted = Rules(protect_blocks=(1, 2, 3, 7), seed=5).note("x", applicable)
    assert list(noted.items()) == [("protect_first", 0), ("protect_last", 0), ("seed", 5), ("protect_blocks", "1-3,7")]
    assert "protect_blocks" not in Rules().note("x", applicable)
    with pytest.raises(InputError, match="'x' changes every block"):
        Rules(protect_blocks=(1,)).note("x", ("seed",))


def test_the_ends_are_protected():
    rules = Rules(protect_first=2, protect_last=1)
    assert [block for block in range(6) if rules.protects(block, 6)] == [0, 1, 5]
