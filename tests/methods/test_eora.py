"""Low-rank repair of compressed models, against its definition and for any way in which weights are stored."""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from threading import Event
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from analysis.model.describe import describe
from analysis.model.runner import Runner
from surgery.calibration.sweep import linear_paths
from surgery.errors import Cancelled
from surgery.evaluation.evaluator import Evaluator
from surgery.gguf.types import GgufCodec
from surgery.quantization.eora import low_rank, repair
from surgery.recipe.edits import Eora
from surgery.structure.structure import Structure
from tests import tiny_models
from tests.methods.test_calibrated import EDITS, TEXT, WINDOWS, quantisation, quantised
from tests.reference import runner_of, token_nll
from tests.tiny_models import FAMILIES


@dataclass(frozen=True)
class Coarse:
    """A codec that knows nothing of the formats: multiples of a step."""

    step: float = 0.25

    @property
    def key(self) -> str:
        return f"coarse {self.step}"

    def apply(self, weight: torch.Tensor) -> torch.Tensor:
        return (weight / self.step).round() * self.step


def coarse(family: str, edited: Structure | None = None, step: float = 0.25) -> Structure:
    runner = runner_of(family)
    made = edited or Evaluator(runner).dense
    blocks = []
    for spec in made.blocks:
        stages = linear_paths(runner.architecture.blocks[spec.source], spec)
        blocks.append(replace(spec, codecs=tuple((path, Coarse(step)) for path in sorted(sum(stages, ())))))
    return replace(made, blocks=tuple(blocks))


def repaired(family: str, made: Structure, rank: int) -> Structure:
    wanted = replace(made, eora=Eora(rank=rank, text=TEXT))  # type: ignore[arg-type]
    return repair(runner_of(family), wanted, WINDOWS)


def problem(inputs: int = 24, tokens: int = 200, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(inputs, inputs, generator=generator, dtype=torch.float64) * torch.logspace(0, -2, inputs)
    x = torch.randn(tokens, inputs, generator=generator, dtype=torch.float64) @ mix.T
    return torch.randn(16, inputs, generator=generator, dtype=torch.float64), x


@pytest.mark.parametrize("rank", [1, 3, 8])
def test_no_matrices_of_that_rank_miss_less_on_the_text(rank: int) -> None:
    missing, x = problem()
    up, down = low_rank(missing, x.T @ x / len(x), rank)
    assert up.shape == (16, rank) and down.shape == (rank, 24)

    def error(product: torch.Tensor) -> float:
        return float((x @ (missing - product).T).square().sum())

    # Eckart and Young on the outputs themselves: X dW^T has no better approximation of that rank.
    left, values, right = torch.linalg.svd(x @ missing.T, full_matrices=False)
    assert error(up @ down) == pytest.approx(float(values[rank:].square().sum()), rel=1e-6)
    left, values, right = torch.linalg.svd(missing, full_matrices=False)
    plain = left[:, :rank] * values[:rank] @ right[:rank]
    assert error(up @ down) < 0.9 * error(plain)


def pseudo_inverse(missing: torch.Tensor, covariance: torch.Tensor, rank: int) -> torch.Tensor:
    """EoRA as it is published: a truncated SVD in the eigenspace of the inputs, projected back."""
    values, vectors = torch.linalg.eigh(covariance)
    kept = values > 1e-12 * values[-1]
    roots = values[kept].sqrt()
    left, singular, right = torch.linalg.svd(missing @ vectors[:, kept] * roots, full_matrices=False)
    return (left[:, :rank] * singular[:rank]) @ (right[:rank] / roots) @ vectors[:, kept].T


@pytest.mark.parametrize("shape", [(16, 24), (60, 24)])
@pytest.mark.parametrize("rank", [1, 5, 14])
def test_it_is_the_published_form_wherever_there_are_inputs(rank: int, shape: tuple[int, int]) -> None:
    generator = torch.Generator().manual_seed(3)
    _, x = problem()
    missing = torch.randn(shape, generator=generator, dtype=torch.float64)
    up, down = low_rank(missing, x.T @ x, rank)
    torch.testing.assert_close(up @ down, pseudo_inverse(missing, x.T @ x, rank), atol=1e-6, rtol=0)
    x = x[:, torch.randperm(24, generator=generator)]
    x[:, 20:] = 0
    turned = x @ torch.linalg.qr(torch.randn(24, 24, generator=generator, dtype=torch.float64)).Q  # no axis is free
    up, down = low_rank(missing, turned.T @ turned, rank)
    published = pseudo_inverse(missing, turned.T @ turned, rank)
    torch.testing.assert_close(turned @ (up @ down).T, turned @ published.T, atol=1e-6, rtol=0)


def test_full_rank_recovers_the_weight_and_nothing_missing_gives_zeros() -> None:
    missing, x = problem()
    for covariance in (x.T @ x, torch.zeros(24, 24)):
        up, down = low_rank(missing, covariance, 100)
        assert up.shape == (16, 16) and down.shape == (16, 24)
        torch.testing.assert_close(up @ down, missing)
    up, down = low_rank(torch.zeros_like(missing), x.T @ x, 4)
    assert not (up @ down).any() and up.shape == (16, 4) and torch.isfinite(up).all()


@pytest.mark.parametrize("family", FAMILIES)
def test_full_rank_gives_the_dense_model_back_on_the_text(family: str) -> None:
    runner = runner_of(family)
    evaluator = Evaluator(runner)
    dense = evaluator.token_losses(evaluator.dense, WINDOWS.ids)
    made = repaired(family, coarse(family), 80)
    assert not made.pending and made.key != coarse(family).key
    worst = (evaluator.token_losses(coarse(family), WINDOWS.ids) - dense).abs().mean()
    torch.testing.assert_close(evaluator.token_losses(made, WINDOWS.ids), dense, atol=5e-3, rtol=0)
    assert worst > 5e-2


@pytest.mark.parametrize("family", ["llama", "phi3", "gemma2", "opt", "gpt_neox"])
def test_higher_ranks_are_nearer_to_the_dense_model(family: str) -> None:
    runner = runner_of(family)
    evaluator = Evaluator(runner)
    edited = quantised(family, *EDITS, quantisation("int3", None))
    target = evaluator.token_losses(edited.floating, WINDOWS.ids)
    distances = [
        float((evaluator.token_losses(made, WINDOWS.ids) - target).square().mean())
        for made in (edited, *(repaired(family, edited, rank) for rank in (4, 16, 40)))
    ]
    assert distances == sorted(distances, reverse=True) and distances[-1] < 0.3 * distances[0]


@torch.no_grad()
def test_a_repair_stands_on_what_the_compressed_block_reads_behind_repaired_ones() -> None:
    made = repaired("llama", coarse("llama"), 5)
    model: Any = copy.deepcopy(runner_of("llama").model)
    for index, spec in enumerate(made.blocks):
        layer = model.model.layers[index]
        paths = [path for path, _ in spec.codecs]
        dense = {path: layer.get_submodule(path).weight.clone() for path in paths}
        for path in paths:
            layer.get_submodule(path).weight.data = Coarse().apply(dense[path])
        seen: dict[str, torch.Tensor] = {}

        def note(path: str, seen: dict[str, torch.Tensor] = seen) -> Any:
            return lambda _, args: seen.update({path: args[0].reshape(-1, args[0].shape[-1]).double()})

        handles = [layer.get_submodule(path).register_forward_pre_hook(note(path)) for path in paths]
        model(input_ids=WINDOWS.ids, use_cache=False)
        for handle in handles:
            handle.remove()
        assert spec.repair is not None
        for path in paths:
            weight = layer.get_submodule(path).weight
            up, down = low_rank(dense[path] - weight, seen[path].T @ seen[path] / len(seen[path]), 5)
            product = spec.repair.up[path] @ spec.repair.down[path]
            torch.testing.assert_close(product, (up @ down).float(), atol=2e-3, rtol=0)
            weight.data += product
    live = Evaluator(runner_of("llama")).token_losses(made, WINDOWS.ids).double()
    torch.testing.assert_close(live, token_nll(model, WINDOWS.ids), atol=1e-4, rtol=0)


def test_quantised_embeddings_are_what_the_blocks_read() -> None:
    runner = runner_of("llama")
    evaluator = Evaluator(runner)
    outer = ((runner.architecture.embeddings, Coarse(0.3)),)
    floating = replace(evaluator.dense, outer=outer)
    made = repaired("llama", replace(coarse("llama"), outer=outer), 80)
    target = evaluator.token_losses(floating, WINDOWS.ids)
    torch.testing.assert_close(evaluator.token_losses(made, WINDOWS.ids), target, atol=5e-3, rtol=0)
    assert (target - evaluator.token_losses(evaluator.dense, WINDOWS.ids)).abs().mean() > 5e-2
    low = [repaired("llama", each, 2).blocks[0].repair for each in (made, coarse("llama"))]
    assert low[0] != low[1]  # other inputs, another projection


@pytest.mark.parametrize("type_name", ["Q4_0", "IQ4_NL", "Q8_0"])
def test_gguf_weights_are_repaired_as_well(type_name: str) -> None:
    torch.manual_seed(0)
    wide = {**tiny_models._GQA, "hidden_size": 64, "num_attention_heads": 4, "intermediate_size": 96}
    model = tiny_models._make(LlamaForCausalLM, LlamaConfig, wide)  # rows of whole GGML blocks
    runner = Runner(model, describe(model))
    evaluator = Evaluator(runner)
    blocks = []
    for spec in evaluator.dense.blocks:
        paths = sorted(sum(linear_paths(runner.architecture.blocks[spec.source], spec), ()))
        blocks.append(replace(spec, codecs=tuple((path, GgufCodec(type_name)) for path in paths)))
    made = replace(evaluator.dense, blocks=tuple(blocks))
    wanted = replace(made, eora=Eora(rank=16, text=TEXT))  # type: ignore[arg-type]
    dense = evaluator.token_losses(evaluator.dense, WINDOWS.ids)
    errors = [
        float((evaluator.token_losses(each, WINDOWS.ids) - dense).square().mean())
        for each in (made, repair(runner, wanted, WINDOWS))
    ]
    assert 0 < errors[1] < 0.7 * errors[0]


def test_repairs_repeat_and_blocks_that_are_not_quantised_get_none() -> None:
    made = coarse("llama")
    made = replace(made, blocks=(replace(made.blocks[0], codecs=()), *made.blocks[1:]))
    one, two = repaired("llama", made, 4), repaired("llama", made, 4)
    assert one == two and one.key == two.key and one.blocks[0].repair is None
    assert one.key != repaired("llama", made, 5).key
    assert repair(runner_of("llama"), made, WINDOWS) is made


def test_a_cancel_stops() -> None:
    stop = Event()
    stop.set()
    wanted = replace(coarse("llama"), eora=Eora(rank=2, text=TEXT))  # type: ignore[arg-type]
    with pytest.raises(Cancelled):
        repair(runner_of("llama"), wanted, WINDOWS, stop=stop)
