"""Training with products of bfloat16 factors: what is rounded, and that nothing else is."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from accelerate import cpu_offload
from torch import nn

from analysis.model.runner import Runner
from surgery.training import precision
from surgery.training.attention import causal_attention
from surgery.training.head import CrossEntropy, Head, loss_and_gradient
from surgery.training.linears import AdaptedLinear, FrozenLinear, TrainedLinear
from surgery.training.losses import kl_and_slope
from surgery.training.targets import linears_of
from surgery.training.teacher import Teacher
from tests.methods.test_healing import WINDOWS, edit_of, evaluator_of, shaken, student_of, trainer_of
from tests.tiny_models import FAMILIES

ROUNDING = 2.0**-8
"""Largest relative error of one rounding to bfloat16."""


def rounded(x: torch.Tensor) -> torch.Tensor:
    return x.detach().bfloat16().double()


def adapted(linear: nn.Linear, **settings: Any) -> AdaptedLinear:
    found = AdaptedLinear(linear, 4, 0.5, torch.Generator().manual_seed(1), precision="bfloat16", **settings)
    with torch.no_grad():
        found.up.normal_(generator=torch.Generator().manual_seed(2))
    found.refresh()
    return found


def test_factors_are_rounded_and_nothing_else() -> None:
    """An adapted linear against its definition in float64, factors rounded to bfloat16 by hand."""
    torch.manual_seed(0)
    linear = nn.Linear(40, 24)
    own = adapted(linear)
    x, slope = torch.randn(2, 9, 40, requires_grad=True), torch.randn(2, 9, 24)
    y = own(x)
    (y * slope).sum().backward()
    merged = rounded(linear.weight.float() + 0.5 * own.up @ own.down)
    bias = linear.bias.detach().double()
    rows, g, down, up = rounded(x).flatten(0, 1), rounded(slope).flatten(0, 1), rounded(own.down), rounded(own.up)
    expected = {
        "y": (y.flatten(0, 1), rows @ merged.T + bias),
        "x": (x.grad.flatten(0, 1), g @ merged),  # type: ignore[union-attr]
        "down": (own.down.grad, 0.5 * (g @ up).T @ rows),
        "up": (own.up.grad, 0.5 * g.T @ (rows @ down.T)),
    }
    for name, (found, exact) in expected.items():
        assert found is not None and found.dtype == torch.float32, name
        error = (found.double() - exact).abs() / (exact.abs() + exact.std())
        assert error.max() < 3 * ROUNDING, name
    with torch.no_grad():
        torch.testing.assert_close(own(x), nn.functional.linear(x, own.weight, linear.bias))


def test_frozen_and_trained_linears_round_their_factors() -> None:
    torch.manual_seed(0)
    linear = nn.Linear(40, 24)
    for own in (FrozenLinear(linear, "bfloat16"), TrainedLinear(linear, "bfloat16")):
        x, slope = torch.randn(9, 40, requires_grad=True), torch.randn(9, 24)
        y = own(x)
        (y * slope).sum().backward()
        exact = rounded(x) @ rounded(linear.weight).T + linear.bias.detach().double()
        assert y.dtype == torch.float32 and (y.double() - exact).abs().max() < 2 * ROUNDING * exact.abs().max()
        assert x.grad is not None
        exact = rounded(slope) @ rounded(linear.weight)
        assert (x.grad.double() - exact).abs().max() < 2 * ROUNDING * exact.abs().max()
        with torch.no_grad():
            torch.testing.assert_close(own(x), linear(x))


@pytest.mark.parametrize("family", FAMILIES)
def test_gradients_are_those_of_float32_but_for_the_rounding(family: str) -> None:
    own, exact = (shaken(student_of(family, precision=kind)) for kind in ("bfloat16", "float32"))
    torch.testing.assert_close(own.losses(WINDOWS.ids), exact.losses(WINDOWS.ids), atol=1e-6, rtol=1e-6)
    losses = [trainer_of(student)._gradients([[0], [1]], None)[0] for student in (own, exact)]
    assert losses[0] == pytest.approx(losses[1], rel=5e-3) and losses[0] != losses[1]
    flat = [torch.cat([p.grad.flatten() for p in student.parameters if p.grad is not None]) for student in (own, exact)]
    error = float((flat[0] - flat[1]).norm() / flat[1].norm())
    assert error < 0.1


@pytest.mark.parametrize("settings", [{}, {"train": "dora"}, {"train": "weights"}, {"blocks": "1"}])
def test_a_training_reaches_the_same_loss(settings: dict[str, Any]) -> None:
    ends = []
    for kind in ("bfloat16", "float32"):
        outcome = trainer_of(student_of("llama", steps=40, learning_rate=1e-2, precision=kind, **settings)).run()
        losses = [entry["loss"] for entry in outcome.history]
        ends.append((outcome.before, sum(losses[:8]) / 8, sum(losses[-8:]) / 8))  # a pass over the eight windows
    (own_before, _, own), (before, start, end) = ends
    assert own_before == pytest.approx(before, rel=1e-6), "held-out losses are float32"
    assert start - end > 0.1 and abs(own - end) < 0.05 * (start - end)


def test_attention_is_pytorchs_but_for_the_rounding() -> None:
    generator = torch.Generator().manual_seed(0)
    q, k, v, slope = (torch.randn(2, heads, 150, 16, generator=generator).requires_grad_() for heads in (6, 2, 2, 6))
    found, _ = causal_attention(nn.Module(), q, k, v, None, scaling=0.3, factors=torch.bfloat16)
    exact = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True, scale=0.3)
    assert found.dtype == torch.bfloat16
    ends = slope.detach().transpose(1, 2)
    pairs = [(found, exact.transpose(1, 2))]
    pairs += zip(
        torch.autograd.grad(found, (q, k, v), ends.bfloat16()),
        torch.autograd.grad(exact, (q, k, v), ends.transpose(1, 2)),
        strict=True,
    )
    for one, other in pairs:
        assert 0 < float((one.float() - other).norm() / other.norm()) < 4 * ROUNDING
    assert all(one.dtype == torch.float32 for one, _ in pairs[1:])


def test_the_heads_products_are_rounded_and_the_loss_is_not() -> None:
    """Against the definition, with logits of the rounded factors; the teacher's rounding is the student's."""
    runner = evaluator_of("llama").runner
    inputs, targets = 3 * torch.randn(9, 48, generator=torch.Generator().manual_seed(0)), torch.arange(9)
    loss, gradient = loss_and_gradient(Head(runner, "bfloat16"), inputs, CrossEntropy(targets))
    weight = rounded(runner.model.get_submodule(runner.architecture.head).get_parameter("weight"))
    logits = rounded(rounded(inputs) @ weight.T).requires_grad_()
    expected = nn.functional.cross_entropy(logits, targets, reduction="sum")
    expected.backward()
    assert loss == pytest.approx(float(expected.detach()), rel=2 * ROUNDING) and gradient.dtype == torch.float32
    assert logits.grad is not None
    back = logits.grad @ weight
    assert (gradient.double() - back).norm() < 3 * ROUNDING * back.norm()
    student, teacher = Head(runner, "bfloat16").logits(inputs), Teacher(runner, Head(runner, "bfloat16")).logits(inputs)
    assert kl_and_slope(student, teacher, 1.0)[0] == 0 and student.abs().max() == 0


def test_a_head_whose_weights_are_offloaded_is_the_heads() -> None:
    runner = evaluator_of("llama").runner
    inputs = torch.randn(9, 48, generator=torch.Generator().manual_seed(0))
    offloaded = cpu_offload(copy.deepcopy(runner.model), torch.device("cpu"))
    assert offloaded.get_parameter(f"{runner.architecture.head}.weight").is_meta
    found = Head(Runner(offloaded, runner.architecture)).logits(inputs)
    assert torch.equal(found, Head(runner).logits(inputs))


@pytest.mark.parametrize("family", FAMILIES)
def test_what_passes_inside_an_mlp_stays_narrow(family: str) -> None:
    """Outputs of gate and up are of the factors' type in training and float32 outside; states are float32 in both."""
    student = student_of(family, precision="bfloat16")
    block = student.structure.architecture.blocks[student.kept[0].source]
    types: dict[str, set[torch.dtype]] = {}
    for path in linears_of(block, student.kept[0], ["gate", "up", "query"]):
        student.modules[0].get_submodule(path).register_forward_hook(
            lambda module, args, out, path=path: types.setdefault(path, set()).add(out.dtype)
        )
    inner = linears_of(block, student.kept[0], ["gate", "up"])
    for gradients, narrow in ((True, torch.bfloat16), (False, torch.float32)):
        types.clear()
        with torch.set_grad_enabled(gradients):
            assert student.normalised(WINDOWS.ids).dtype == torch.float32
        assert types == {path: {narrow if path in inner else torch.float32} for path in types} and types.keys() > {
            *inner
        }


def test_every_linear_behind_the_first_trained_block_is_rounded() -> None:
    student = student_of("llama", blocks="1", linears=["query"], precision="bfloat16")
    kinds = [
        {type(part).__name__ for part in module.modules() if "Linear" in type(part).__name__}
        for module in student.modules
    ]
    assert kinds == [{"Linear"}, {"AdaptedLinear", "FrozenLinear"}, {"FrozenLinear"}]


def test_what_is_faster_here_is_what_the_processor_says(monkeypatch: pytest.MonkeyPatch) -> None:
    device = torch.device("cpu")
    for known, expected in (({"amx_bf16": True}, "bfloat16"), ({"avx512_bf16": True}, "bfloat16"), ({}, "float32")):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda known=known: known)
        assert precision.best_precision(device) == expected


def test_dropout_goes_with_float32() -> None:
    with pytest.raises(ValueError, match="dropout goes with precision float32"):
        edit_of(dropout=0.1, precision="bfloat16")
