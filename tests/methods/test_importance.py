"""Importance methods against naive loops written from the published formulas (shared/methods.md)."""

from __future__ import annotations

import copy
import dataclasses
import math
import statistics as stdlib
from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
import torch

from analysis.errors import InputError
from analysis.gradients.collect import collect_gradients
from analysis.importance import heads, registry, similarity
from analysis.importance.neurons import MlpWeights
from analysis.importance.registry import METHODS, Evidence, Method
from analysis.model.runner import Runner
from analysis.statistics.accumulators import NeuronMoments, Similarities
from analysis.statistics.collect import Statistics, collect
from surgery.pruning import catalogue
from surgery.pruning.budget import Rules
from surgery.pruning.parts import Goal, least_distant_run
from tests.reference import heads_of, layout_of, random_windows, runner_of
from tests.tiny_models import FAMILIES, GATED

CHECKED = ("llama", "gemma2", "phi3", "gpt2", "opt", "gpt_neox")
BLOCK = 2
WINDOWS = random_windows(count=3)
PLAIN_INPUTS = {"weights", "statistics"}
NEURON_METHODS = [entry for entry in METHODS if entry.kind == "neurons" and PLAIN_INPUTS.issuperset(entry.takes)]
"""Those of weights and activations; gradients have tests of their own."""
Rows = list[list[float]]


@dataclasses.dataclass
class Neurons:
    """Plain lists: gate rows (None for a plain MLP), up rows, down columns, and activations by window and token."""

    gate: Rows | None
    up: Rows
    down: Rows
    activations: list[Rows]

    def of(self, neuron: int) -> list[float]:
        """The neuron's activation at every token of the text."""
        return [token[neuron] for window in self.activations for token in window]

    @property
    def inputs(self) -> list[Rows]:
        return [self.up] if self.gate is None else [self.gate, self.up]


@cache
def neurons_of(family: str) -> Neurons:
    """One block's MLP, taken out by hand, family by family."""
    model: Any = copy.deepcopy(runner_of(family).model)
    block = model.get_submodule(layout_of(family).blocks)[BLOCK]
    seen: list[torch.Tensor] = []
    down = block.get_submodule(layout_of(family).down)
    down.register_forward_pre_hook(lambda module, args: seen.append(args[0].reshape(3, 24, -1)))
    with torch.no_grad():
        model(input_ids=WINDOWS.ids)
    gate = None
    columns = down.weight.T
    if family == "phi3":
        gate, up = block.mlp.gate_up_proj.weight[:80], block.mlp.gate_up_proj.weight[80:]
    elif family == "gpt2":
        up, columns = block.mlp.c_fc.weight.T, down.weight
    elif family == "opt":
        up = block.fc1.weight
    elif family == "gpt_neox":
        up = block.mlp.dense_h_to_4h.weight
    else:
        gate, up = block.mlp.gate_proj.weight, block.mlp.up_proj.weight
    return Neurons(None if gate is None else gate.tolist(), up.tolist(), columns.tolist(), seen[0].tolist())


@cache
def collected(family: str) -> Statistics:
    return collect(runner_of(family), WINDOWS)


def _norm(values: list[float]) -> float:
    return math.sqrt(math.fsum(value * value for value in values))


def _reach(row: list[float]) -> float:
    return max(row) + abs(min(row))


def _hybrid(mlp: Neurons, i: int) -> float:
    groups = [*mlp.inputs, mlp.down]
    return sum(_reach(rows[i]) / max(map(_reach, rows)) for rows in groups) * _norm(mlp.of(i))


def _minitron(mlp: Neurons, i: int) -> float:
    return _norm([math.fsum(abs(token[i]) for token in window) / len(window) for window in mlp.activations])


@cache
def _row_sums(family: str) -> list[list[float]]:
    """For each matrix and hidden channel, the sum of |W| over the neurons."""
    mlp = neurons_of(family)
    return [[sum(abs(row[channel]) for row in rows) for channel in range(48)] for rows in (*mlp.inputs, mlp.down)]


def _cfsp_share(family: str, i: int) -> float:
    mlp = neurons_of(family)
    shares = [
        sum(abs(weight) / total for weight, total in zip(rows[i], totals, strict=True)) / 48
        for rows, totals in zip((*mlp.inputs, mlp.down), _row_sums(family), strict=True)
    ]
    return sum(shares)


FORMULAS: dict[str, Callable[[Neurons, int], float]] = {
    "maw": lambda mlp, i: sum(_reach(rows[i]) for rows in mlp.inputs),
    "vow": lambda mlp, i: sum(stdlib.variance(rows[i]) for rows in mlp.inputs),
    "pon": lambda mlp, i: math.prod(sum(map(abs, rows[i])) for rows in mlp.inputs),
    "l2": lambda mlp, i: sum(_norm(rows[i]) for rows in mlp.inputs),
    "hybrid": _hybrid,
    "wanda_structured": lambda mlp, i: _norm(mlp.down[i]) * _norm(mlp.of(i)) / math.sqrt(len(mlp.of(i))),
    "minitron": _minitron,
}


def _score(entry: Method, family: str) -> torch.Tensor:
    return registry.score_units(entry, Evidence(runner_of(family), collected(family)), BLOCK)


def test_every_neuron_method_has_a_formula_here() -> None:
    assert {entry.name for entry in NEURON_METHODS} == {*FORMULAS, "cfsp_fine", "flap"}


@pytest.mark.parametrize("family", CHECKED)
@pytest.mark.parametrize("name", FORMULAS)
def test_neuron_scores_follow_the_formula(family: str, name: str) -> None:
    mlp, found = neurons_of(family), _score(registry.method(name, "neurons"), family)
    expected = [FORMULAS[name](mlp, neuron) for neuron in range(80)]
    assert found.dtype == torch.float32 and found.shape == (80,)
    assert found.tolist() == pytest.approx(expected, rel=1e-4)
    assert max(expected) > 1.01 * min(expected)


@pytest.mark.parametrize("family", CHECKED)
def test_cfsp_follows_the_formula_and_its_weight_term_does_not_cancel(family: str) -> None:
    mlp, found = neurons_of(family), _score(registry.method("cfsp_fine"), family)
    shares = [_cfsp_share(family, neuron) for neuron in range(80)]
    expected = [share * _norm(mlp.of(neuron)) for neuron, share in enumerate(shares)]
    assert found.tolist() == pytest.approx(expected, rel=1e-4)
    assert max(shares) > 1.1 * min(shares), "a constant weight term would leave the activations alone"


@pytest.mark.parametrize("family", CHECKED)
def test_flap_is_the_standardised_fluctuation(family: str) -> None:
    mlp, found = neurons_of(family), _score(registry.method("flap"), family)
    raw = [stdlib.pvariance(mlp.of(neuron)) * _norm(mlp.down[neuron]) ** 2 for neuron in range(80)]
    mean, deviation = stdlib.mean(raw), stdlib.stdev(raw)
    assert found.tolist() == pytest.approx([(value - mean) / deviation for value in raw], rel=1e-3, abs=1e-4)


def _random_mlp(gated: bool, seed: int = 0) -> tuple[MlpWeights, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    gate, up = torch.randn(2, 12, 8, generator=generator)
    down = torch.randn(8, 12, generator=generator)
    return MlpWeights(gate if gated else None, up, down), torch.randn(3, 7, 12, generator=generator)


def _apply(entry: Method, weights: MlpWeights, activations: torch.Tensor) -> torch.Tensor:
    if not entry.needs_text:
        return entry.function(weights)
    moments = NeuronMoments.empty(activations.shape[-1])
    moments.update(activations)
    return entry.function(weights, moments)


@pytest.mark.parametrize("gated", [True, False])
@pytest.mark.parametrize("entry", NEURON_METHODS, ids=lambda entry: entry.name)
def test_scores_move_with_their_neurons(entry: Method, gated: bool) -> None:
    weights, activations = _random_mlp(gated)
    order = torch.randperm(12, generator=torch.Generator().manual_seed(5))
    gate = None if weights.gate is None else weights.gate[order]
    moved = _apply(entry, MlpWeights(gate, weights.up[order], weights.down[:, order]), activations[..., order])
    torch.testing.assert_close(moved, _apply(entry, weights, activations)[order], rtol=1e-5, atol=0)


POWERS = {  # of a common factor of the gate and up rows, of the down columns, of the activations
    "maw": (1, 0, 0),
    "vow": (2, 0, 0),
    "pon": (2, 0, 0),
    "l2": (1, 0, 0),
    "hybrid": (0, 0, 1),
    "wanda_structured": (0, 1, 1),
    "minitron": (0, 0, 1),
    "cfsp_fine": (0, 0, 1),
    "flap": (0, 0, 0),  # standardised
}


@pytest.mark.parametrize("entry", NEURON_METHODS, ids=lambda entry: entry.name)
def test_scores_scale_by_the_formulas_powers(entry: Method) -> None:
    weights, activations = _random_mlp(gated=True)
    assert weights.gate is not None
    base = _apply(entry, weights, activations)
    changed = (
        (MlpWeights(weights.gate * 3, weights.up * 3, weights.down), activations),
        (MlpWeights(weights.gate, weights.up, weights.down * 3), activations),
        (weights, activations * 3),
    )
    for power, arguments in zip(POWERS[entry.name], changed, strict=True):
        torch.testing.assert_close(_apply(entry, *arguments), base * 3**power, rtol=1e-5, atol=0)


def test_a_neuron_that_does_nothing_is_the_least_important() -> None:
    weights, activations = _random_mlp(gated=True)
    assert weights.gate is not None
    weights.gate[4], weights.up[4], weights.down[:, 4], activations[..., 4] = 0, 0, 0, 0
    for entry in NEURON_METHODS:
        assert int(_apply(entry, weights, activations).argmin()) == 4, entry.name


@pytest.mark.parametrize("family", ["llama", "gemma2", "smollm", "gpt_neox"])
def test_minitron_heads_follow_the_formula(family: str) -> None:
    model: Any = copy.deepcopy(runner_of(family).model)
    block = model.get_submodule(layout_of(family).blocks)[BLOCK]
    query, kv = heads_of(family)
    seen: list[torch.Tensor] = []
    output = block.get_submodule(layout_of(family).output)
    output.register_forward_pre_hook(lambda module, args: seen.append(args[0].view(3, 24, query, -1)))
    with torch.no_grad():
        model(input_ids=WINDOWS.ids)
    found = registry.score_units(
        registry.method("minitron_heads"), Evidence(runner_of(family), collected(family)), BLOCK
    )
    expected = [
        _norm([math.fsum(_norm(token[head].tolist()) for token in window) / 24 for window in seen[0]])
        for head in range(query)
    ]
    assert found.tolist() == pytest.approx(expected, rel=1e-4)
    size = query // kv
    groups = [sum(expected[group * size + offset] for offset in range(size)) for group in range(kv)]
    assert heads.group_scores(found, kv).tolist() == pytest.approx(groups, rel=1e-4)


def _random_similarities(blocks: int, seed: int) -> Similarities:
    """Of random walks, so that every distance is another."""
    generator = torch.Generator().manual_seed(seed)
    found = Similarities.empty(blocks)
    states = torch.randn(2 * 5, blocks + 1, 16, generator=generator).cumsum(dim=1)
    found.update_states(torch.nn.functional.normalize(states, dim=-1), windows=2)
    return found


@pytest.mark.parametrize("seed", range(5))
def test_the_least_distant_run_is_the_best_of_all_runs(seed: int) -> None:
    blocks = 7
    found, size = _random_similarities(blocks, seed), dict.fromkeys(range(blocks), 1)
    for length in range(1, blocks + 1):
        distances = {start: float(found.angular[start, start + length]) for start in range(blocks - length + 1)}
        best = min(distances, key=lambda start: distances[start])
        if length < blocks:  # one block must stay
            run = least_distant_run(similarity.angular_triangle(found), size, Goal(count=length), Rules())
            assert run == tuple(range(best, best + length))
    single = least_distant_run(similarity.angular_triangle(found), size, Goal(count=1), Rules())
    assert single == (int(similarity.angular_distance(found).argmin()),)


@pytest.mark.parametrize("seed", range(3))
def test_coarse_importance_is_the_mean_angle_of_a_block(seed: int) -> None:
    found = _random_similarities(5, seed)
    generator = torch.Generator().manual_seed(seed)
    states = torch.randn(2 * 5, 6, 16, generator=generator).cumsum(dim=1).double()
    for block, importance in enumerate(similarity.coarse_importance(found).tolist()):
        angles = [
            math.acos(float(token[block] @ token[block + 1] / (token[block].norm() * token[block + 1].norm())))
            for token in states
        ]
        assert importance == pytest.approx(sum(angles) / len(angles) / math.pi, rel=1e-4)


NORMS = {
    "llama": ("input_layernorm", "post_attention_layernorm"),
    "gemma2": (
        "input_layernorm",
        "post_attention_layernorm",
        "pre_feedforward_layernorm",
        "post_feedforward_layernorm",
    ),
    "olmo2": ("post_attention_layernorm", "post_feedforward_layernorm"),
    "phi3": ("input_layernorm", "post_attention_layernorm"),
    "gpt2": ("ln_1", "ln_2"),
    "opt": ("self_attn_layer_norm", "final_layer_norm"),
    "gpt_neox": ("input_layernorm", "post_attention_layernorm"),
    "phi": ("input_layernorm",),
}


@pytest.mark.parametrize("family", NORMS)
def test_minitron_channels_follow_the_formula(family: str) -> None:
    model: Any = copy.deepcopy(runner_of(family).model)
    seen: list[torch.Tensor] = []
    for block in model.get_submodule(layout_of(family).blocks):
        for name in NORMS[family]:
            norm = block.get_submodule(name)
            norm.register_forward_hook(lambda module, args, out: seen.append(out.double().reshape(3, 24, 48)))
    with torch.no_grad():
        model(input_ids=WINDOWS.ids)
    assert len(seen) == 4 * len(NORMS[family])
    expected = [
        sum(_norm([sum(map(abs, window[:, channel].tolist())) / 24 for window in outputs]) for outputs in seen)
        for channel in range(48)
    ]
    found = registry.score_hidden(registry.method("minitron_hidden"), Evidence(runner_of(family), collected(family)))
    assert found.tolist() == pytest.approx(expected, rel=1e-4)


def test_random_scores_depend_on_seed_kind_and_block_alone() -> None:
    controls = [entry for entry in METHODS if entry.needs_seed]
    assert {entry.kind for entry in controls} == {"blocks", "attention", "mlp", "heads", "neurons", "hidden"}
    runner, seen = runner_of("llama"), []
    for entry in controls:
        torch.manual_seed(1)
        first = _scored(entry, Evidence(runner))
        state = torch.get_rng_state()
        again = _scored(entry, Evidence(runner, seed=0))
        assert torch.equal(state, torch.get_rng_state()), "the global generator is not touched"
        assert all(torch.equal(one, two) for one, two in zip(first, again, strict=True))
        seen += [*first, *_scored(entry, Evidence(runner, seed=1))]
    starts = {tuple(scores[:4].tolist()) for scores in seen}
    assert len(starts) == len(seen), "no two blocks, kinds or seeds share their numbers"
    assert all(0 <= value < 1 for scores in seen for value in scores.tolist())


def _scored(entry: Method, evidence: Evidence) -> list[torch.Tensor]:
    """All scores of a method: one tensor a block, or one in all."""
    if entry.kind == "neurons":
        return [registry.score_units(entry, evidence, block) for block in range(4)]
    if entry.kind == "heads":
        return [registry.score_units(entry, evidence, block) for block in range(4)]
    return [
        registry.score_hidden(entry, evidence) if entry.kind == "hidden" else registry.score_blocks(entry, evidence)
    ]


SIGNED = ("flap", *(entry.name for entry in METHODS if entry.name.startswith("predicted_")))
"""Methods whose scores may be negative."""


@pytest.mark.parametrize("family", FAMILIES)
def test_every_score_of_every_family_is_finite(family: str) -> None:
    runner, windows = runner_of(family), random_windows(count=2)
    evidence = Evidence(runner, collect(runner, windows), collect_gradients(runner, windows))
    sizes = {"neurons": 80, "heads": heads_of(family)[0], "hidden": runner.architecture.hidden_size}
    for entry in METHODS:
        for scores in _scored(entry, evidence):
            assert scores.shape == (sizes.get(entry.kind, 4),) and scores.dtype == torch.float32, entry.name
            assert math.isfinite(float(scores.sum())) and len(set(scores.tolist())) > 1, entry.name
            # OPT's ReLU leaves some neurons silent on a short text: their scores may be zero.
            if entry.name not in SIGNED:
                assert bool((scores >= 0).all() if family == "opt" else (scores > 0).all()), entry.name


def test_the_registry_lists_complete_entries() -> None:
    keys = {"name", "kind", "title", "source", "needs_gradients", "needs_text"}
    assert len({(entry.name, entry.kind) for entry in METHODS}) == len(METHODS)
    rows = {row["name"]: row for row in catalogue.listed()}
    for entry in METHODS:
        listed = rows[entry.name]
        assert set(listed) == keys
        assert all(listed[key] for key in ("name", "title", "source"))
        assert listed["kind"] in ("blocks", "attention", "mlp", "heads", "neurons", "hidden")
        assert isinstance(listed["needs_text"], bool) and isinstance(listed["needs_gradients"], bool)
        assert entry.name.isidentifier() and entry.function.__doc__
        assert registry.method(entry.name) is registry.method(entry.name, entry.kind) is entry


def test_unknown_methods_are_refused_with_the_known_names() -> None:
    with pytest.raises(InputError, match=r"'nonsense'.*maw.*cfsp_fine"):
        registry.method("nonsense")
    with pytest.raises(InputError, match="'maw' for heads: use one of minitron_heads"):
        registry.method("maw", "heads")


@pytest.mark.parametrize("entry", METHODS, ids=lambda entry: entry.name)
def test_a_method_says_what_it_lacks(entry: Method) -> None:
    runner = runner_of("llama")
    bare, empty = Evidence(runner), Evidence(runner, Statistics.empty(runner.architecture))
    if not entry.needs_text:
        assert _scored(entry, bare)
        return
    lacking = "gradients" if entry.needs_gradients else "text"
    for nothing in (bare, empty):
        with pytest.raises(InputError, match=f"'{entry.name}' needs {lacking}: run the analysis"):
            _scored(entry, nothing)


def test_a_block_without_the_sublayer_is_refused() -> None:
    whole = runner_of("llama")
    blocks = [dataclasses.replace(block, attention=None, mlp=None) for block in whole.architecture.blocks]
    bare = Runner(whole.model, dataclasses.replace(whole.architecture, blocks=tuple(blocks)))
    for entry in METHODS:
        if entry.kind == "neurons":
            with pytest.raises(InputError, match="Block 1 has no MLP"):
                registry.score_units(entry, Evidence(bare), 1)
        if entry.kind == "heads":
            with pytest.raises(InputError, match="Block 1 has no attention"):
                registry.score_units(entry, Evidence(bare), 1)


def test_plain_mlps_leave_the_gate_out() -> None:
    assert all(neurons_of(family).gate is None for family in CHECKED if family not in GATED)
