"""Low-rank repair of compressed models, against its definition and for any way in which weights are stored."""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from threading import Event
from typing import Any

import pytest
import torch

from surgery.eora import Repairer, low_rank
from surgery.errors import Cancelled
from surgery.live import Evaluator
from surgery.recipe import Eora
from surgery.structure import Structure
from surgery.sweep import linear_paths
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
    return Repairer(runner_of(family)).compute(wanted, WINDOWS)


def problem(inputs: int = 24, tokens: int = 200, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(inputs, inputs, generator=generator, dtype=torch.float64) * torch.logspace(0, -2, inputs)
    x = torch.randn(tokens, inputs, generator=generator, dtype=torch.float64) @ mix.T
    return torch.randn(16, inputs, generator=generator, dtype=torch.float64), x


@pytest.mark.parametrize("rank", [1, 3, 8])
def test_no_matrices_of_that_rank_miss_less_on_the_text(rank: int) -> None:
    missing, x = problem()
    up, down = low_rank(missing, x.T @ x / len(x), rank, tolerance=0)
    assert up.shape == (16, rank) and down.shape == (rank, 24)

    def error(product: torch.Tensor) -> float:
        return float((x @ (missing - product).T).square().sum())

    # Eckart and Young on the outputs themselves: X dW^T has no better approximation of that rank.
    left, values, right = torch.linalg.svd(x @ missing.T, full_matrices=False)
    assert error(up @ down) == pytest.approx(float(values[rank:].square().sum()), rel=1e-6)
    left, values, right = torch.linalg.svd(missing, full_matrices=False)
    plain = left[:, :rank] * values[:rank] @ right[:rank]
    assert error(up @ down) < 0.9 * error(plain)


def test_full_rank_recovers_the_weight_where_inputs_are_and_leaves_the_rest() -> None:
    missing, x = problem()
    up, down = low_rank(missing, x.T @ x, 24, tolerance=0)
    torch.testing.assert_close(up @ down, missing, atol=1e-6, rtol=0)
    x[:, 20:] = 0
    basis = torch.linalg.qr(torch.randn(24, 24, dtype=torch.float64)).Q
    turned = x @ basis.T  # inputs of a subspace that is not along the axes
    up, down = low_rank(missing, turned.T @ turned, 24)
    assert up.shape[1] == 16  # outputs
    torch.testing.assert_close(turned @ (up @ down).T, turned @ missing.T, atol=1e-6, rtol=0)
    torch.testing.assert_close(down @ basis[:, 20:], torch.zeros(16, 4, dtype=torch.float64), atol=1e-6, rtol=0)


def test_nothing_missing_or_no_inputs_give_zeros() -> None:
    missing, x = problem()
    up, down = low_rank(torch.zeros_like(missing), x.T @ x, 4)
    assert not (up @ down).any() and up.shape == (16, 4)
    up, down = low_rank(missing, torch.zeros(24, 24), 4)
    assert not (up @ down).any() and torch.isfinite(up).all() and torch.isfinite(down).all()


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


def test_repairs_repeat_and_blocks_that_are_not_quantised_get_none() -> None:
    made = coarse("llama")
    made = replace(made, blocks=(replace(made.blocks[0], codecs=()), *made.blocks[1:]))
    one, two = repaired("llama", made, 4), repaired("llama", made, 4)
    assert one == two and one.key == two.key and one.blocks[0].repair is None
    assert one.key != repaired("llama", made, 5).key
    assert Repairer(runner_of("llama")).compute(made, WINDOWS) is made


def test_a_cancel_stops() -> None:
    stop = Event()
    stop.set()
    wanted = replace(coarse("llama"), eora=Eora(rank=2, text=TEXT))  # type: ignore[arg-type]
    with pytest.raises(Cancelled):
        Repairer(runner_of("llama")).compute(wanted, WINDOWS, stop=stop)
