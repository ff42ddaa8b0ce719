"""The attention and the norms that a student trains with, against PyTorch's and the models' own."""

from __future__ import annotations

import pytest
import torch

from surgery.training import attention
from surgery.training.attention import causal_attention
from surgery.training.norms import RootMeanSquareNorm
from tests.methods.test_healing import evaluator_of, student_of, trainer_of
from tests.tiny_models import FAMILIES


@pytest.mark.parametrize(("heads", "groups", "tokens"), [(9, 3, 300), (6, 6, 128), (4, 1, 130), (2, 2, 1)])
def test_causal_attention_is_pytorchs(heads: int, groups: int, tokens: int) -> None:
    generator = torch.Generator().manual_seed(0)
    q, k, v = (
        torch.randn(2, tokens, count, 16, generator=generator).transpose(1, 2).requires_grad_()
        for count in (heads, groups, groups)
    )
    slope = torch.randn(2, tokens, heads, 16, generator=generator)
    expected = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True, scale=0.3)
    found, _ = causal_attention(torch.nn.Module(), q, k, v, None, scaling=0.3)
    torch.testing.assert_close(found, expected.transpose(1, 2), atol=1e-5, rtol=1e-4)
    for one, other in zip(
        torch.autograd.grad(found, (q, k, v), slope),
        torch.autograd.grad(expected, (q, k, v), slope.transpose(1, 2)),
        strict=True,
    ):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("family", ["llama", "mistral", "gpt2", "gpt_neox", "phi3", "gemma2"])
def test_the_students_attention_is_its_own_where_it_can_be(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The shared model's attention is left alone; a mask or a soft cap goes to the model's own code."""
    calls: list[int] = []
    original = attention._Causal.apply
    monkeypatch.setattr(attention._Causal, "apply", lambda *args: calls.append(1) or original(*args))
    student = student_of(family, ())
    trainer_of(student)._gradients([[0]], None)
    assert len(calls) == {"mistral": 0, "gemma2": 0}.get(family, 4)
    assert not evaluator_of(family).runner.model.config._attn_implementation.startswith(attention.NAME)
    assert student.runner.blocks[0] is not student.modules[0]


@pytest.mark.parametrize("family", FAMILIES)
def test_the_students_norms_are_the_models(family: str) -> None:
    """Every root-mean-square norm is replaced, no other; values and gradients are those of the model's own."""
    student = student_of(family, ())
    for original, own in zip(student.runner.blocks, student.modules, strict=True):
        for path, norm in original.named_modules():
            new = own.get_submodule(path)
            assert isinstance(new, RootMeanSquareNorm) == ("RMSNorm" in type(norm).__name__), path
            if not isinstance(new, RootMeanSquareNorm):
                continue
            generator = torch.Generator().manual_seed(0)
            x, slope = (3 * torch.randn(2, 7, len(new.scale), generator=generator) for _ in range(2))
            found, expected = new(x.requires_grad_()), norm(x)
            torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
            gradients = [torch.autograd.grad(y, x, slope)[0] for y in (found, expected)]
            torch.testing.assert_close(*gradients, atol=1e-5, rtol=1e-4)
            with torch.no_grad():
                assert torch.equal(new(x), norm(x))
