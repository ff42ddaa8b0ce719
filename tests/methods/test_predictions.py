"""Predicted changes of the loss against finite differences, the Fisher identity and naive sums; rank correlation."""

from __future__ import annotations

import dataclasses
import itertools
import math
from functools import cache

import pytest
import torch

from analysis.gradients.collect import Gradients, collect_gradients
from analysis.importance import registry
from analysis.importance.predictions import Changes, predicted_changes, rank_correlation
from analysis.importance.registry import Evidence
from analysis.text import Windows
from tests.methods.gated import Gated, truth_of
from tests.reference import random_windows, runner_of
from tests.tiny_models import FAMILIES, PLAIN

WINDOWS = random_windows(3)
PARTS = {"blocks": "block", "attention": "attention", "mlp": "mlp", "kv_groups": "kv_groups", "neurons": "neurons"}
"""Parts of a prediction, and the multipliers they come from."""


@cache
def gathered(family: str) -> Gradients:
    return collect_gradients(runner_of(family), WINDOWS)


def _of(changes: Changes, part: str, block: int) -> torch.Tensor:
    return getattr(changes, part)[block].reshape(-1).double()


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_first_order_is_the_slope_of_the_loss_in_a_multiplier(family: str) -> None:
    gated, first = Gated(family), predicted_changes(gathered(family)).first
    # Root-mean-square norms compute in float32 even here, so a small step would show their rounding; the kinks of
    # OPT's ReLU forbid a large one.
    step = 1e-5 if family in PLAIN else 3e-3
    for part, kind in PARTS.items():
        for block in (0, 3):
            found = _of(first, part, block)
            for unit in (0, len(found) - 1):
                gate, losses = gated.gates[kind][block], []
                for steps in (-2, -1, 1, 2):
                    gate[unit] = 1 + steps * step
                    losses.append(float(gated.loss(WINDOWS.ids)))
                gate[unit] = 1.0
                slope = (losses[0] - 8 * losses[1] + 8 * losses[2] - losses[3]) / (12 * step)
                assert float(found[unit]) == pytest.approx(-slope, rel=2e-3, abs=1e-4), (part, block, unit)


@pytest.mark.parametrize("family", FAMILIES)
def test_second_order_adds_half_the_fisher_term(family: str) -> None:
    second = predicted_changes(gathered(family)).second
    for part, kind in PARTS.items():
        for block in range(4):
            derivatives = truth_of(family).gates[kind][block]  # of three windows' mean losses of 23 tokens
            expected = -derivatives.mean(dim=0) + 23 * derivatives.square().mean(dim=0) / 2
            scale = float(expected.abs().max())
            torch.testing.assert_close(_of(second, part, block), expected, rtol=1e-3, atol=1e-3 * scale)


def test_the_fisher_term_estimates_the_curvature_on_text_of_the_models_own() -> None:
    """E[d2S/dm2] = E[(dS/dm)^2] for windows drawn from the model: the scale by the tokens of a window is right."""
    model, generator = runner_of("llama").model, torch.Generator().manual_seed(0)
    ids = torch.randint(128, (400, 1), generator=generator)
    with torch.no_grad():
        for _ in range(11):
            logits = model(input_ids=ids, use_cache=False).logits[:, -1]
            ids = torch.cat([ids, torch.multinomial(logits.softmax(-1), 1, generator=generator)], dim=1)
    found, gated, step = collect_gradients(runner_of("llama"), Windows(ids, "own", "own", False)), Gated("llama"), 1e-3
    for kind in ("block", "attention", "mlp"):
        for block in (0, 3):
            gate, losses = gated.gates[kind][block], []
            with torch.no_grad():
                for value in (1 - step, 1.0, 1 + step):
                    gate.fill_(value)
                    losses.append(float(gated.loss(ids)))
                gate.fill_(1.0)
            curvature = (losses[0] - 2 * losses[1] + losses[2]) / step**2
            fisher = 11 * float(getattr(found.blocks[block], kind).mean_square())
            assert fisher == pytest.approx(curvature, rel=0.35), (kind, block)


@pytest.mark.parametrize("family", ["llama", "gpt_neox"])
def test_the_methods_are_the_second_order_predictions(family: str) -> None:
    evidence, second = (
        Evidence(runner_of(family), gradients=gathered(family)),
        predicted_changes(gathered(family)).second,
    )
    for name, expected in (("blocks", second.blocks), ("attention", second.attention), ("mlp", second.mlp)):
        assert torch.equal(registry.score_blocks(registry.method(f"predicted_{name}"), evidence), expected)
    for block in range(4):
        found = registry.score_units(registry.method("predicted_neurons"), evidence, block)
        assert torch.equal(found, second.neurons[block])
        derivatives = truth_of(family).gates["heads"][block]
        expected = -derivatives.mean(dim=0) + 23 * derivatives.square().mean(dim=0) / 2
        found = registry.score_units(registry.method("predicted_heads"), evidence, block)
        torch.testing.assert_close(found.double(), expected, rtol=1e-3, atol=1e-3 * float(expected.abs().max()))


def _spearman(first: list[float], second: list[float]) -> float:
    """Pearson's correlation of ranks, each rank counted: values below, and half of the other equal ones."""
    columns = []
    for values in (first, second):
        ranks = [sum(b < a for b in values) + (sum(b == a for b in values) - 1) / 2 for a in values]
        mean = sum(ranks) / len(ranks)
        columns.append([rank - mean for rank in ranks])
    products = [sum(a * b for a, b in zip(one, two, strict=True)) for one, two in itertools.product(columns, columns)]
    return products[1] / math.sqrt(products[0] * products[3])


@pytest.mark.parametrize("ties", [False, True])
def test_rank_correlation_is_spearmans(ties: bool) -> None:
    generator = torch.Generator().manual_seed(int(ties))
    for count in (2, 5, 30):
        if ties and count == 2:
            continue
        pair = [torch.randint(4, (count,), generator=generator).float() if ties
                else torch.randn(count, generator=generator) for _ in range(2)]  # fmt: skip
        assert rank_correlation(*pair) == pytest.approx(_spearman(pair[0].tolist(), pair[1].tolist()))
        assert rank_correlation(pair[0], pair[0].exp()) == pytest.approx(1)
        assert rank_correlation(pair[0], -pair[0]) == pytest.approx(-1)


def test_distinct_ranks_follow_the_closed_form() -> None:
    first, second = torch.tensor([3.0, 1.0, 4.0, 2.0, 5.0]), torch.tensor([2.0, 3.0, 5.0, 1.0, 4.0])
    squares = float((first - second).square().sum())
    assert rank_correlation(first, second) == pytest.approx(1 - 6 * squares / (5 * (25 - 1)))


def test_a_constant_has_no_rank_correlation() -> None:
    assert math.isnan(rank_correlation(torch.ones(4), torch.arange(4.0)))
    assert math.isnan(rank_correlation(torch.ones(1), torch.ones(1)))


def test_sublayers_that_are_missing_change_nothing() -> None:
    found = gathered("llama")
    blocks = list(found.blocks)
    blocks[1] = dataclasses.replace(blocks[1], attention=None, kv_groups=None, heads=None, head_weights=None)
    blocks[2] = dataclasses.replace(blocks[2], mlp=None, neurons=None, neuron_weights=None)
    bare = dataclasses.replace(found, blocks=blocks)
    for changes in vars(predicted_changes(bare)).values():
        assert changes.attention[1] == 0 and changes.mlp[2] == 0 and changes.attention[2] != 0
        assert len(changes.kv_groups[1]) == len(changes.neurons[2]) == 0 and len(changes.neurons[1]) == 80
    for name, block in (("taylor_attention", 1), ("taylor_mlp", 2)):
        scores = registry.score_blocks(registry.method(name), Evidence(runner_of("llama"), gradients=bare))
        assert [index for index, score in enumerate(scores.tolist()) if score == 0] == [block]
