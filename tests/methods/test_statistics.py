"""One-pass statistics against naive loops over an eager deep copy with hooks of the test's own."""

from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
import torch
from torch import nn

from analysis.importance import similarity
from analysis.model.modules import shallow_copy
from analysis.statistics import attention_probe
from analysis.statistics.collect import Statistics, collect
from analysis.text import Windows
from tests.reference import edited, heads_of, layout_of, random_windows, runner_of
from tests.tiny_models import FAMILIES

CHECKED = ("llama", "gemma2", "gpt_neox", "olmo2", "phi3", "opt", "gpt2")
WINDOWS = random_windows(count=3)
TOKENS = 3 * 24


@dataclasses.dataclass
class Seen:
    """What an eager forward showed: lists by block, tensors (windows, tokens, ...) in float64."""

    states: list[torch.Tensor]  # entering each block, and leaving the last, before the final norm
    middles: list[torch.Tensor]  # leaving each block when its MLP adds nothing
    maps: list[torch.Tensor]  # attention, (windows, heads, tokens, tokens)
    inputs: list[dict[str, torch.Tensor]]  # of every linear by its path


def _linears(block: nn.Module) -> dict[str, nn.Module]:
    return {name: part for name, part in block.named_modules() if type(part).__name__ in ("Linear", "Conv1D")}


def _watched(model: nn.Module, family: str) -> tuple[list[torch.Tensor], list[dict[str, torch.Tensor]], Any]:
    """States, linear inputs and the output of one forward over all windows."""
    blocks = list(model.get_submodule(layout_of(family).blocks))
    states: list[Any] = [None] * 5
    inputs: list[dict[str, torch.Tensor]] = [{} for _ in blocks]

    def entering(index: int) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any, kwargs: Any) -> None:
            states[index] = (args[0] if args else kwargs["hidden_states"]).double()

        return hook

    def leaving(index: int) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            states[index + 1] = (output[0] if isinstance(output, tuple) else output).double()

        return hook

    def linear(index: int, name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any) -> None:
            inputs[index][name] = args[0].double().reshape(3, 24, -1)

        return hook

    for index, block in enumerate(blocks):
        block.register_forward_pre_hook(entering(index), with_kwargs=True)
        if index == 3:
            block.register_forward_hook(leaving(index))
        for name, part in _linears(block).items():
            part.register_forward_pre_hook(linear(index, name))
    with torch.no_grad():
        out = model(input_ids=WINDOWS.ids, use_cache=False, output_attentions=True)
    return states, inputs, out


@cache
def seen(family: str) -> Seen:
    base = copy.deepcopy(runner_of(family).model)
    base.set_attn_implementation("eager")
    states, inputs, out = _watched(copy.deepcopy(base), family)
    middles = [_watched(edited(base, family, {"remove_mlp": [index]}), family)[0][index + 1] for index in range(4)]
    return Seen(states, middles, [attention.double() for attention in out.attentions], inputs)


@cache
def collected(family: str) -> Statistics:
    return collect(runner_of(family), WINDOWS)


def _cosine(first: torch.Tensor, second: torch.Tensor) -> float:
    return float(first @ second / (first.norm() * second.norm()))


def _mean_cosine(first: torch.Tensor, second: torch.Tensor) -> float:
    pairs = zip(first.flatten(0, 1), second.flatten(0, 1), strict=True)
    return math.fsum(_cosine(a, b) for a, b in pairs) / TOKENS


@pytest.mark.parametrize("family", CHECKED)
def test_influences_are_one_minus_the_mean_cosine(family: str) -> None:
    truth, found = seen(family), collected(family).similarities
    influences = (similarity.block_influence, similarity.attention_influence, similarity.mlp_influence)
    blocks, attentions, mlps = (influence(found).tolist() for influence in influences)
    for index in range(4):
        before, middle, after = truth.states[index], truth.middles[index], truth.states[index + 1]
        assert blocks[index] == pytest.approx(1 - _mean_cosine(before, after), abs=1e-5)
        assert attentions[index] == pytest.approx(1 - _mean_cosine(before, middle), abs=1e-5)
        assert mlps[index] == pytest.approx(1 - _mean_cosine(middle, after), abs=1e-5)
    assert min(blocks + attentions + mlps) > 1e-3


@pytest.mark.parametrize("family", CHECKED)
@pytest.mark.parametrize("last", [False, True])
def test_the_angular_triangle_is_the_mean_angle(family: str, last: bool) -> None:
    states = seen(family).states
    found = similarity.angular_triangle(collected(family).similarities, last_token=last)
    positions = [23] if last else range(24)
    for block in range(4):
        for span in range(1, 5):
            if block + span > 4:
                assert found[block, span - 1].isnan()
                continue
            angles = [
                math.acos(min(1.0, max(-1.0, _cosine(states[block][w, t], states[block + span][w, t])))) / math.pi
                for w in range(3)
                for t in positions
            ]
            assert float(found[block, span - 1]) == pytest.approx(math.fsum(angles) / len(angles), abs=1e-5)


@pytest.mark.parametrize("family", CHECKED)
def test_neuron_moments_are_the_naive_sums(family: str) -> None:
    path = layout_of(family).down
    for truth, block in zip(seen(family).inputs, collected(family).blocks, strict=True):
        activations, moments = truth[path], block.neurons
        assert moments is not None
        squares, plain, absolute, sequences = (torch.zeros(80, dtype=torch.float64) for _ in range(4))
        for window in activations:
            mean = torch.zeros(80, dtype=torch.float64)
            for token in window:
                squares += token**2
                plain += token
                absolute += token.abs()
                mean += token.abs() / 24
            sequences += mean**2
        assert (float(moments.tokens), float(moments.sequences)) == (TOKENS, 3)
        assert moments.sum.shape == (80,)
        for found, expected in (
            (moments.sum_squares, squares),
            (moments.sum, plain),
            (moments.sum_absolute, absolute),
            (moments.sequence_squares, sequences),
            (moments.mean_square(), squares / TOKENS),
        ):
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("family", CHECKED)
def test_every_linear_has_the_second_moments_of_its_input(family: str) -> None:
    blocks = runner_of(family).blocks
    for truth, block, module in zip(seen(family).inputs, collected(family).blocks, blocks, strict=True):
        assert set(block.inputs) == set(_linears(module)) == set(truth)
        for path, inputs in truth.items():
            moments = block.inputs[path]
            expected = sum(token**2 for window in inputs for token in window)
            assert float(moments.tokens) == TOKENS
            torch.testing.assert_close(moments.sum_squares, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("rows", [7, 128])
@pytest.mark.parametrize("family", CHECKED)
def test_head_statistics_are_those_of_the_eager_maps(family: str, rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention_probe, "ROWS", rows)
    statistics = collect(runner_of(family), WINDOWS)
    for index, block in enumerate(statistics.blocks):
        assert block.heads is not None
        truth, found = _head_truth(family, index), block.heads.means()
        assert set(found) | {"sequence_squares"} == set(truth)
        assert (float(block.heads.tokens), float(block.heads.sequences)) == (TOKENS, 3)
        for name, values in found.items():
            torch.testing.assert_close(values, truth[name], rtol=1e-4, atol=1e-4, equal_nan=True, msg=name)
        torch.testing.assert_close(
            block.heads.output_norm_sequence_squares, truth["sequence_squares"], rtol=1e-4, atol=1e-4
        )


def _head_truth(family: str, index: int) -> dict[str, torch.Tensor]:
    """Means over all query tokens of one block's heads, by loops."""
    truth = seen(family)
    heads, kv = heads_of(family)
    group = heads // kv
    maps = truth.maps[index]
    outputs = truth.inputs[index][layout_of(family).output].view(3, 24, heads, -1)
    names = ("entropy", "distance", "first_token", "previous_token", "output_norm", "group_similarity")
    sums = {name: torch.zeros(heads, dtype=torch.float64) for name in (*names, "sequence_squares")}
    for head in range(heads):
        siblings = [other for other in range(heads) if other // group == head // group and other != head]
        for window in range(3):
            norms = 0.0
            for token in range(24):
                row = maps[window, head, token].tolist()
                sums["entropy"][head] -= sum(weight * math.log(weight) for weight in row if weight > 0)
                sums["distance"][head] += sum(weight * (token - key) for key, weight in enumerate(row))
                sums["first_token"][head] += row[0]
                sums["previous_token"][head] += row[token - 1] if token else 0.0
                own = outputs[window, token, head]
                norms += float(own.norm())
                cosines = [_cosine(own, outputs[window, token, other]) for other in siblings]
                sums["group_similarity"][head] += sum(cosines) / len(cosines) if cosines else math.nan
            sums["output_norm"][head] += norms
            sums["sequence_squares"][head] += (norms / 24) ** 2
    return {name: values if name == "sequence_squares" else values / TOKENS for name, values in sums.items()}


@pytest.mark.parametrize("family", FAMILIES)
def test_the_probe_computes_the_models_own_attention(family: str) -> None:
    runner = runner_of(family)
    prepared = runner.prepare(WINDOWS.ids)
    state = prepared.state
    before = runner.model.config._attn_implementation
    for block, original, call in zip(runner.architecture.blocks, runner.blocks, prepared.calls, strict=True):
        assert block.attention is not None
        probed, moments = shallow_copy(original), collected(family).blocks[block.index].heads
        assert moments is not None
        attention_probe.install(probed, block.attention.module, copy.deepcopy(moments))
        with torch.inference_mode():
            expected = runner.run(original, state, call)
            torch.testing.assert_close(runner.run(probed, state, call), expected, atol=1e-4, rtol=1e-4)
        state = expected
        assert not hasattr(original.get_submodule(block.attention.module), "head_moments")
        assert original.get_submodule(block.attention.module).config._attn_implementation == before  # type: ignore


def _same(first: Statistics, second: Statistics, tolerance: float = 1e-5) -> None:
    one, two = first.state(), second.state()
    assert one.keys() == two.keys() and len(one) > 30
    for name, value in one.items():
        torch.testing.assert_close(
            value, two[name], rtol=tolerance, atol=tolerance, equal_nan=True, msg=lambda text, name=name: name + text
        )


def _part(windows: Windows, start: int, end: int) -> Windows:
    return dataclasses.replace(windows, ids=windows.ids[start:end])


EIGHT = random_windows(count=9, seed=3)


@pytest.mark.parametrize("family", CHECKED)
def test_the_size_of_a_group_does_not_change_a_statistic(family: str) -> None:
    runner = runner_of(family)
    _same(collect(runner, EIGHT, group=1), collect(runner, EIGHT, group=8))


@pytest.mark.parametrize("family", ["llama", "opt"])
def test_two_halves_merge_into_the_whole(family: str) -> None:
    runner = runner_of(family)
    first, second = (collect(runner, _part(EIGHT, *bounds)) for bounds in ((0, 4), (4, 9)))
    assert not any(value.is_inference() for value in first.state().values()), "others could not add to them"
    before = {name: value.clone() for name, value in second.state().items()}
    first.merge(second)
    assert (first.windows, first.tokens) == (9, 9 * 24)
    _same(first, collect(runner, EIGHT))
    assert all(torch.equal(second.state()[name], value) or value.isnan().any() for name, value in before.items())


@pytest.mark.parametrize("family", ["llama", "opt"])
def test_progress_only_rises(family: str) -> None:
    told: list[float] = []
    collect(runner_of(family), EIGHT, lambda share, message: told.append(share), group=4)
    assert told[0] == 0.0 and told == sorted(told) and told[-1] == 1.0
    assert any(share >= 4 / 9 for share in told[:-1])


def test_a_report_that_raises_leaves_the_model_as_it_was() -> None:
    runner = runner_of("llama")
    hooks = [len(module._forward_pre_hooks) for module in runner.model.modules()]

    def stop(share: float, message: str) -> None:
        if share > 7.3 / 9:
            raise KeyboardInterrupt

    whole = collect(runner, EIGHT)
    with pytest.raises(KeyboardInterrupt):
        collect(runner, EIGHT, stop, group=1)
    assert [len(module._forward_pre_hooks) for module in runner.model.modules()] == hooks
    _same(collect(runner, EIGHT), whole, tolerance=0)
