"""Live evaluation gives the numbers of a plain forward, for every family and every edit, from whatever cache."""

from __future__ import annotations

import math
import statistics

import pytest
import torch

from surgery.evaluation.estimate import estimate_of
from surgery.evaluation.evaluator import Evaluator
from tests.reference import Plan, edited, heads_of, random_windows, runner_of, structure_of, token_nll
from tests.tiny_models import FAMILIES

NEURONS = {0: [0, 5, 79], 1: list(range(30, 71)), 3: list(range(79))}
"""Three widths side by side: 77, 39 and 1."""


def plans(family: str) -> dict[str, Plan]:
    """One plan for every kind of edit, and some together."""
    query, kv = heads_of(family)
    size = query // kv
    # Within each KV group another head goes, so that the kept heads are not evenly spaced.
    one_each = [group * size + (group % size) for group in range(kv)] if size > 1 else [0, query - 2]
    all_but_one = [head for head in range(query) if head % size != size - 1] if size > 1 else list(range(1, query))
    return {
        "first_block": {"remove_blocks": [0]},
        "last_block": {"remove_blocks": [3]},
        "middle_blocks": {"remove_blocks": [1, 2]},
        "attention": {"remove_attention": [0, 2]},
        "last_attention": {"remove_attention": [3]},
        "mlp": {"remove_mlp": [0, 3]},
        "both_sublayers": {"remove_attention": [1], "remove_mlp": [1]},
        "neurons": {"prune_neurons": NEURONS},
        "kv_groups": {"prune_kv_groups": {0: [0], 3: [kv - 1]}},
        "heads": {"prune_heads": {0: one_each, 2: all_but_one}},
        "heads_and_groups": {
            "prune_kv_groups": {1: [kv - 1]},
            "prune_heads": {1: [group * size for group in range(kv - 1)] if size > 1 else [0]},
        },
        "together": {
            "remove_blocks": [1],
            "remove_attention": [0],
            "remove_mlp": [2],
            "prune_neurons": {0: [1, 2, 60], 3: [0]},
            "prune_kv_groups": {3: [0]},
            "prune_heads": {2: one_each},
        },
    }


CASES = [(family, name) for family in FAMILIES for name in plans(family)]


@pytest.mark.parametrize(("family", "name"), CASES)
def test_losses_are_those_of_an_edited_copy(family: str, name: str) -> None:
    plan, windows = plans(family)[name], random_windows()
    runner = runner_of(family)
    expected = token_nll(edited(runner.model, family, plan), windows.ids)
    found = Evaluator(runner).token_losses(structure_of(family, plan), windows.ids)
    assert found.shape == (3, 23)
    torch.testing.assert_close(found.double(), expected, atol=1e-4, rtol=0)
    dense = token_nll(runner.model, windows.ids)
    assert (found - dense).abs().mean() > 1e-3, "the edit changes nothing, so the comparison would prove nothing"


@pytest.mark.parametrize("family", FAMILIES)
def test_the_base_model_is_never_changed(family: str) -> None:
    runner, windows = runner_of(family), random_windows(count=1)
    names = [name for name, _ in runner.model.named_modules()]
    before = {name: tensor.clone() for name, tensor in runner.model.state_dict().items()}
    config = runner.model.config.to_dict()
    dense = token_nll(runner.model, windows.ids)
    evaluator = Evaluator(runner)
    for plan in plans(family).values():
        evaluator.measure(structure_of(family, plan), windows)
    after = runner.model.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[name], before[name]) for name in before)
    assert [name for name, _ in runner.model.named_modules()] == names
    assert runner.model.config.to_dict() == config
    assert torch.equal(token_nll(runner.model, windows.ids), dense)


@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt2", "gpt_neox", "olmo2", "opt"])
def test_caches_do_not_change_a_number(family: str) -> None:
    runner, windows = runner_of(family), random_windows()
    state = 3 * 24 * 48 * 4
    used = Evaluator(runner)
    starved = Evaluator(runner, state_budget=2 * state, weight_budget=40_000)
    unable = Evaluator(runner, state_budget=0, weight_budget=0)
    for _ in range(2):  # the second round finds everything, something or nothing in the caches
        for plan in plans(family).values():
            structure = structure_of(family, plan)
            fresh = Evaluator(runner).measure(structure, windows)
            for evaluator in (used, starved, unable):
                found = evaluator.measure(structure, windows)
                assert found.nll == pytest.approx(fresh.nll, abs=1e-7)
                assert found.difference == pytest.approx(fresh.difference, abs=1e-7)
                assert evaluator.states.used <= evaluator.states.budget
                assert evaluator.weights.used <= evaluator.weights.budget
    assert 0 < len(starved.states) < len(used.states)
    assert len(unable.states) == unable.weights.used == 0


def test_two_recipes_are_compared_window_by_window() -> None:
    generator = torch.Generator().manual_seed(0)
    first, second, reference = (torch.rand(5, 7, generator=generator) for _ in range(3))
    one, two = (estimate_of(losses, reference, 5, 0.0) for losses in (first, second))
    differences = [float(a.double().mean() - b.double().mean()) for a, b in zip(first, second, strict=True)]
    difference, error = one.against(two)
    assert difference == pytest.approx(statistics.mean(differences))
    assert error == pytest.approx(statistics.stdev(differences) / math.sqrt(5))
    assert one.against(one) == (0, 0) and "window_losses" not in one.document()
    assert (
        estimate_of(first[:1], reference[:1], 5, 0.0).against(estimate_of(second[:1], reference[:1], 5, 0.0))[1] is None
    )
    with pytest.raises(ValueError, match="5 and of 2 windows"):
        one.against(estimate_of(first[:2], reference[:2], 5, 0.0))
