"""Gradient statistics and the methods on them against plain autograd on a gated float64 copy, every family."""

from __future__ import annotations

import copy
import dataclasses
from functools import cache
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from analysis.errors import InputError
from analysis.gradients import states as state_store
from analysis.gradients.collect import Gates, Gradients, collect_gradients
from analysis.importance import heads, registry
from analysis.importance.registry import Evidence
from analysis.model import runner as execution
from analysis.model.runner import Runner
from analysis.text import Windows
from tests.methods.gated import KINDS, head_parts, neuron_parts, truth_of
from tests.reference import heads_of, layout_of, random_windows, runner_of
from tests.tiny_models import FAMILIES, VOCAB

WINDOWS = random_windows(3)
SCORED = 23


@cache
def gathered(family: str) -> Gradients:
    return collect_gradients(runner_of(family), WINDOWS)


def _evidence(family: str) -> Evidence:
    return Evidence(runner_of(family), gradients=gathered(family))


def _close(found: torch.Tensor, expected: torch.Tensor, tolerance: float = 1e-3) -> None:
    """Within a share of the largest expected value: float32 sums against float64."""
    scale = float(expected.abs().max())
    torch.testing.assert_close(found.double(), expected, rtol=tolerance, atol=tolerance * scale)


@pytest.mark.parametrize("family", FAMILIES)
def test_derivatives_are_those_of_explicit_multipliers(family: str) -> None:
    truth, found = truth_of(family), gathered(family)
    assert (found.windows, found.tokens, found.scored) == (3, 3 * SCORED, SCORED)
    assert found.loss == pytest.approx(truth.loss, rel=1e-5)
    for index, block in enumerate(found.blocks):
        for kind in KINDS:
            gates, expected = getattr(block, kind), truth.gates[kind][index]
            _close(gates.mean(), expected.mean(dim=0))
            _close(gates.mean_absolute(), expected.abs().mean(dim=0))
            _close(gates.mean_square(), expected.square().mean(dim=0))
            assert gates.mean().abs().max() > 1e-4, f"{kind} of block {index}: a derivative of zero would prove nothing"


def _neuron_sums(family: str, index: int, neuron: int) -> dict[str, float]:
    """LLM-Pruner's estimates of one neuron, matrix by matrix."""
    sums = dict.fromkeys(("taylor_first", "taylor_vectorized", "taylor_second", "taylor_mixed"), 0.0)
    for path, dimension, offset in neuron_parts(family):
        weights, gradients = truth_of(family).weights[index][path]
        w = weights.select(dimension, offset + neuron)
        per_window = gradients.select(dimension + 1, offset + neuron)
        g, fisher = per_window.mean(dim=0), per_window.square().mean(dim=0)
        sums["taylor_first"] += float((w * g).abs().sum())
        sums["taylor_vectorized"] += abs(float((w * g).sum()))
        sums["taylor_second"] += float((w * w * fisher).sum())
        sums["taylor_mixed"] += float((w * g - 0.5 * w * w * fisher).abs().sum())
    return sums


@pytest.mark.parametrize("family", FAMILIES)
def test_taylor_scores_of_neurons_follow_the_formulas(family: str) -> None:
    for index in (0, 3):
        expected = [_neuron_sums(family, index, neuron) for neuron in range(80)]
        for name in expected[0]:
            found = registry.score_units(registry.method(name), _evidence(family), index)
            _close(found, torch.tensor([sums[name] for sums in expected], dtype=torch.float64))


def _head_sums(family: str, index: int, of_weights: bool) -> tuple[list[float], list[float]]:
    """Sums of |w| or |w g| by query head, and by KV group over the group's own rows and its heads'."""
    query, kv = heads_of(family)
    output, gradients = truth_of(family).weights[index][layout_of(family).output]
    size = max(output.shape if family == "gpt2" else output.shape[1:]) // query
    by_head, by_group = [0.0] * query, [0.0] * kv
    for path, dimension, offset, stride, shared in head_parts(family, size):
        weights, gradients = truth_of(family).weights[index][path]
        values = weights.abs() if of_weights else (weights * gradients.mean(dim=0)).abs()
        for unit in range(kv if shared else query):
            total = float(values.narrow(dimension, offset + unit * stride, size).sum())
            by_group[unit if shared else unit * kv // query] += total
            members = range(unit * (query // kv), (unit + 1) * (query // kv)) if shared else [unit]
            for head in members:
                by_head[head] += total / len(members)
    return by_head, by_group


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", ["taylor_heads", "magnitude_heads"])
def test_heads_carry_their_rows_and_a_share_of_their_groups(family: str, name: str) -> None:
    for index in (0, 3):
        by_head, by_group = _head_sums(family, index, name == "magnitude_heads")
        found = registry.score_units(registry.method(name), _evidence(family), index)
        _close(found, torch.tensor(by_head, dtype=torch.float64))
        _close(heads.group_scores(found, heads_of(family)[1]), torch.tensor(by_group, dtype=torch.float64))


@pytest.mark.parametrize("family", FAMILIES)
def test_michel_is_normalised_in_a_layer(family: str) -> None:
    for index in range(4):
        found = registry.score_units(registry.method("michel"), _evidence(family), index)
        sizes = truth_of(family).gates["heads"][index].abs().mean(dim=0)
        _close(found, sizes / sizes.square().sum().sqrt())


@pytest.mark.parametrize("family", FAMILIES)
def test_depth_scores_sum_over_the_linears(family: str) -> None:
    attention_path = layout_of(family).attention
    expected: dict[str, list[float]] = {name: [] for name in ("taylor_attention", "taylor_mlp", "magnitude_blocks")}
    for block in truth_of(family).weights:
        sums = dict.fromkeys(expected, 0.0)
        for path, (weights, gradients) in block.items():
            part = "taylor_attention" if path.startswith(attention_path) else "taylor_mlp"
            sums[part] += float((weights * gradients.mean(dim=0)).abs().sum())
            sums["magnitude_blocks"] += float(weights.abs().sum())
        for name, value in sums.items():
            expected[name].append(value)
    pairs = zip(expected["taylor_attention"], expected["taylor_mlp"], strict=True)
    expected["taylor_blocks"] = [attention + mlp for attention, mlp in pairs]
    for name, values in expected.items():
        found = registry.score_blocks(registry.method(name), _evidence(family))
        _close(found, torch.tensor(values, dtype=torch.float64))


CHECKED = ("llama", "gemma2", "olmo2", "phi3", "opt", "gpt2", "gpt_neox")


def _part(windows: Windows, start: int, end: int) -> Windows:
    return dataclasses.replace(windows, ids=windows.ids[start:end])


@pytest.mark.parametrize("family", CHECKED)
def test_windows_one_by_one_and_together_give_the_same(family: str) -> None:
    windows, runner = random_windows(8, seed=3), runner_of(family)
    together = collect_gradients(runner, windows)
    singly = [collect_gradients(runner, _part(windows, index, index + 1)) for index in range(8)]
    assert sum(part.loss for part in singly) / 8 == pytest.approx(together.loss, rel=1e-6)
    for index, block in enumerate(together.blocks):
        for kind in KINDS:
            merged: Gates = copy.deepcopy(getattr(singly[0].blocks[index], kind))
            for part in singly[1:]:
                merged.merge(getattr(part.blocks[index], kind))
            for name, value in getattr(block, kind).state().items():
                torch.testing.assert_close(merged.state()[name], value, rtol=1e-6, atol=1e-9)
        for kind in ("head_weights", "neuron_weights"):  # of one window, second is the mean of the squares of the first
            second = torch.stack([getattr(part.blocks[index], kind).second for part in singly]).mean(dim=0)
            torch.testing.assert_close(getattr(block, kind).second, second, rtol=1e-4, atol=0)


def _same(first: Gradients, second: Gradients) -> None:
    pairs = zip(first.blocks, second.blocks, strict=True)
    tensors = [both for one, two in pairs for both in zip(one.tensors(), two.tensors(), strict=True)]
    assert len(tensors) > 100 and first.loss == second.loss
    assert all(torch.equal(one, two) for one, two in tensors)


@pytest.mark.parametrize("memory", [0, 3 * 24 * 48 * 4 * 5 // 3])
def test_states_in_a_file_give_the_same(memory: int, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = gathered("llama")
    monkeypatch.setattr(state_store, "MEMORY", memory)
    _same(collect_gradients(runner_of("llama"), WINDOWS), expected)


def test_a_full_disk_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(**options: Any) -> Any:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(state_store, "MEMORY", 0)
    monkeypatch.setattr(state_store.tempfile, "TemporaryFile", full)
    with pytest.raises(InputError, match=r"No space left on device.*use fewer windows"):
        collect_gradients(runner_of("llama"), WINDOWS)


@pytest.mark.parametrize("frozen", [True, False])
@pytest.mark.parametrize("family", CHECKED)
def test_the_model_is_left_as_it_was(family: str, frozen: bool) -> None:
    shared = runner_of(family)
    model: Any = copy.deepcopy(shared.model).requires_grad_(not frozen)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    addresses = {name: (id(parameter), parameter.data_ptr()) for name, parameter in model.named_parameters()}
    hooks = [(len(part._forward_pre_hooks), len(part._forward_hooks)) for part in model.modules()]
    _same(collect_gradients(Runner(model, shared.architecture), WINDOWS), gathered(family))
    for name, parameter in model.named_parameters():
        assert parameter.grad is None and parameter.requires_grad is not frozen
        assert (id(parameter), parameter.data_ptr()) == addresses[name] and torch.equal(parameter, before[name])
    assert [(len(part._forward_pre_hooks), len(part._forward_hooks)) for part in model.modules()] == hooks


def test_progress_grows_and_a_report_can_stop_it_anywhere() -> None:
    told: list[float] = []
    collect_gradients(runner_of("llama"), WINDOWS, lambda share, message: told.append(share))
    assert told == sorted(told) and told[0] == 0.0 and told[-1] == 1.0
    assert len(told) == 3 * (4 + 1 + 4) + 1, "a report before each block and head, forward and backward, of each window"

    class Stop(Exception):
        pass

    for last in (0, 6, 14, 26):
        seen: list[float] = []

        def stop(share: float, message: str, seen: list[float] = seen, last: int = last) -> None:
            seen.append(share)
            if len(seen) > last:
                raise Stop

        with pytest.raises(Stop):
            collect_gradients(runner_of("llama"), WINDOWS, stop)
    _same(collect_gradients(runner_of("llama"), WINDOWS), gathered("llama"))


class _Widest(TorchDispatchMode):
    """Notes how many positions' logits a tensor holds at most."""

    rows = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = function(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, (tuple, list)) else (out,):
            if isinstance(tensor, torch.Tensor) and tensor.shape[-1:] == (VOCAB,):
                rows = tensor.numel() // VOCAB
                if rows != 48:  # the head's weight, transposed
                    self.rows = max(self.rows, rows)
        return out


@pytest.mark.parametrize("family", ["llama", "gemma2", "granite", "gpt2"])
def test_the_logits_of_a_window_never_exist_together(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = gathered(family)
    monkeypatch.setattr(execution, "HEAD_CHUNK", 4)
    with _Widest() as widest:
        found = collect_gradients(runner_of(family), WINDOWS)
    assert widest.rows == 4
    assert found.loss == pytest.approx(expected.loss, rel=1e-6)
    for one, two in zip(found.blocks, expected.blocks, strict=True):
        for first, second in zip(one.tensors(), two.tensors(), strict=True):
            torch.testing.assert_close(first, second, rtol=1e-3, atol=1e-3 * float(second.abs().max()))


def test_half_precision_weights_have_float32_sums() -> None:
    shared = runner_of("llama")
    model: Any = copy.deepcopy(shared.model).to(torch.bfloat16)
    found = collect_gradients(Runner(model, shared.architecture), WINDOWS)
    for one, two in zip(found.blocks, gathered("llama").blocks, strict=True):
        assert one.neuron_weights is not None and two.neuron_weights is not None
        assert one.neuron_weights.first.dtype == torch.float32
        ratio = float(one.neuron_weights.first.sum() / two.neuron_weights.first.sum())
        assert ratio == pytest.approx(1, abs=0.1)


def test_the_size_counts_every_tensor() -> None:
    units = 3 * (1 + 3) + (6 + 2 + 80) * 3 + 3  # three sums of each unit, and the windows of each of the six kinds
    assert gathered("llama").bytes == 4 * (8 * units + 4 * 4 * (6 + 80))
