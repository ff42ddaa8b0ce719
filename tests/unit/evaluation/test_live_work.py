"""How much work live evaluation does, how it stops, and the arithmetic of its estimates."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from threading import Barrier, Event, Thread
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from analysis.model import runner as execution
from analysis.model.describe import describe
from analysis.model.runner import HEAD_CHUNK, BlockCall, Prepared, Runner
from surgery.errors import Cancelled
from surgery.evaluation.estimate import Estimate
from surgery.evaluation.evaluator import Evaluator, chunks
from surgery.structure.structure import dense
from tests.reference import Plan, edited, random_windows, runner_of, structure_of, token_nll
from tests.tiny_models import build

CHUNKS = 2
"""Chunks of the three random windows: the first alone, then the rest."""


class Spy(Runner):
    """Counts what it computes; slow enough that threads overlap."""

    def __init__(self, family: str = "llama", pause: float = 0.0) -> None:
        runner = runner_of(family)
        super().__init__(runner.model, runner.architecture)
        self.pause = pause
        self.after_run: Callable[[], None] = lambda: None
        self.reset()

    def reset(self) -> None:
        self.runs = self.heads = self.preparations = 0

    def prepare(self, ids: torch.Tensor) -> Prepared:
        self.preparations += 1
        time.sleep(self.pause)
        return super().prepare(ids)

    def run(self, block: nn.Module, state: torch.Tensor, call: BlockCall) -> torch.Tensor:
        self.runs += 1
        time.sleep(self.pause)
        out = super().run(block, state, call)
        self.after_run()
        return out

    def losses(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        self.heads += 1
        time.sleep(self.pause)
        return super().losses(*args, **kwargs)


@pytest.mark.parametrize(
    ("plan", "blocks"),
    [
        ({"prune_neurons": {0: [1]}}, 4),
        ({"prune_neurons": {2: [1]}}, 2),
        ({"remove_mlp": [3]}, 1),
        ({"remove_blocks": [1]}, 2),  # blocks 2 and 3 on another state
        ({"remove_blocks": [3]}, 0),  # the state is known: the head alone is left to do
        ({"remove_attention": [2], "remove_mlp": [2]}, 1),  # block 2 passes its state on
    ],
)
def test_an_edit_runs_only_what_comes_after_it_and_undo_nothing(plan: Plan, blocks: int) -> None:
    spy, windows = Spy(), random_windows()
    evaluator = Evaluator(spy)
    whole, structure = dense(spy.architecture), structure_of("llama", plan)
    first = evaluator.measure(whole, windows)
    assert (spy.preparations, spy.runs, spy.heads) == (CHUNKS, 4 * CHUNKS, CHUNKS)
    spy.reset()
    done = evaluator.measure(structure, windows)
    assert (spy.preparations, spy.runs, spy.heads) == (0, blocks * CHUNKS, CHUNKS)
    spy.reset()
    undone, redone = evaluator.measure(whole, windows), evaluator.measure(structure, windows)
    assert (spy.preparations, spy.runs, spy.heads) == (0, 0, 0)
    assert (undone.nll, redone.nll) == (first.nll, done.nll)


def test_a_later_edit_keeps_the_states_of_an_earlier_one() -> None:
    spy, windows = Spy(), random_windows()
    evaluator = Evaluator(spy)
    evaluator.measure(structure_of("llama", {"prune_neurons": {1: [1]}}), windows)
    spy.reset()
    evaluator.measure(structure_of("llama", {"prune_neurons": {1: [1]}, "remove_mlp": [3]}), windows)
    assert spy.runs == CHUNKS
    spy.reset()
    evaluator.measure(structure_of("llama", {"remove_mlp": [3]}), windows)
    assert spy.runs == CHUNKS, "the dense states up to block 3 are known too"


def test_the_deepest_known_state_is_enough() -> None:
    spy, windows = Spy(), random_windows(count=1)
    evaluator = Evaluator(spy, state_budget=2 * 24 * 48 * 4)  # the states leaving blocks 2 and 3 stay
    evaluator.measure(evaluator.dense, windows)
    spy.reset()
    evaluator.measure(structure_of("llama", {"remove_mlp": [3]}), windows)
    assert spy.runs == 1


def test_other_tokens_are_computed_anew() -> None:
    spy = Spy()
    evaluator = Evaluator(spy)
    first = evaluator.measure(evaluator.dense, random_windows(seed=1))
    second = evaluator.measure(evaluator.dense, random_windows(seed=2))
    assert spy.runs == 2 * 4 * CHUNKS
    assert first.nll != second.nll


def test_identical_requests_at_once_are_computed_once() -> None:
    spy, windows = Spy(pause=0.005), random_windows()
    evaluator, start = Evaluator(spy), Barrier(4)
    structure = structure_of("llama", {"prune_neurons": {2: [1, 2]}})
    found: list[float] = []

    def work() -> None:
        start.wait()
        found.append(evaluator.measure(structure, windows).nll)

    threads = [Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 4 and len(set(found)) == 1
    assert (spy.preparations, spy.runs, spy.heads) == (CHUNKS, CHUNKS * (4 + 2), CHUNKS * 2)


@pytest.mark.parametrize("after", [0, 1, 6, 9])
def test_a_stop_is_honoured_within_one_block_and_leaves_nothing_wrong(after: int) -> None:
    spy, windows, stop = Spy(), random_windows(), Event()
    evaluator, structure = Evaluator(spy), structure_of("llama", {"prune_neurons": {0: [1]}})

    def count_down() -> None:
        if spy.runs == after:
            stop.set()

    spy.after_run = count_down
    count_down()
    with pytest.raises(Cancelled):
        evaluator.measure(structure, windows, stop)
    assert spy.runs == after
    spy.after_run = lambda: None
    expected = Evaluator(runner_of("llama")).measure(structure, windows)
    assert evaluator.measure(structure, windows).nll == expected.nll
    assert spy.runs == CHUNKS * 8, "what was computed before the stop is not computed again"


@pytest.mark.parametrize("family", ["gemma2", "granite"])
def test_logits_exist_for_few_positions_and_a_stop_between_them_is_honoured(family: str) -> None:
    model = build(family)
    seen: list[int] = []
    stop = Event()
    runner = Runner(model, describe(model))
    assert not runner.head_is_linear
    head = model.get_output_embeddings()
    head.register_forward_hook(lambda module, args, out: seen.append(out.numel() // out.shape[-1]))
    evaluator = Evaluator(runner)
    windows = random_windows(count=4, tokens=100)
    evaluator.measure(evaluator.dense, windows)
    assert max(seen) <= HEAD_CHUNK
    assert sum(seen) == windows.predictions
    seen.clear()
    head.register_forward_hook(lambda module, args, out: stop.set())
    with pytest.raises(Cancelled):
        evaluator.measure(structure_of(family, {"remove_blocks": [3]}), windows, stop)
    assert len(seen) == 1


class LargestLogits(TorchDispatchMode):
    """Notes the widest matrix that is computed."""

    def __init__(self) -> None:
        super().__init__()
        self.widest = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if "mm" in str(func) and isinstance(out, torch.Tensor):
            self.widest = max(self.widest, out.shape[-1])
        return out


@pytest.mark.parametrize("family", ["llama", "phi", "gpt2"])
def test_a_linear_head_never_makes_all_logits_and_stops_between_chunks(
    family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(execution, "VOCABULARY_CHUNK", 40)  # the vocabulary of 128 is no multiple
    runner = runner_of(family)
    assert runner.head_is_linear
    ids = random_windows(count=2, tokens=24).ids
    state = runner.prepare(ids).state
    with LargestLogits() as spy:
        losses = runner.losses(state, ids)
    assert spy.widest == 40
    with torch.inference_mode():
        logits = runner.own_logits(runner.normalised(state).flatten(0, 1)).view(2, 24, -1)
    expected = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten(), reduction="none")
    torch.testing.assert_close(losses.flatten(), expected, atol=1e-5, rtol=0)
    checks: list[int] = []

    def check() -> None:
        checks.append(1)
        if len(checks) == 2:
            raise Cancelled("stop")

    with pytest.raises(Cancelled):
        runner.losses(state, ids, check)
    assert len(checks) == 2


def test_estimates_follow_the_naive_formulas() -> None:
    windows, plan = random_windows(count=5), {"prune_neurons": {1: list(range(40))}}
    runner = runner_of("llama")
    changed, base = token_nll(edited(runner.model, "llama", plan), windows.ids), token_nll(runner.model, windows.ids)
    estimates = list(Evaluator(runner).evaluate(structure_of("llama", plan), windows))
    assert [estimate.windows for estimate in estimates] == [1, 5]
    assert [estimate.complete for estimate in estimates] == [False, True]
    for estimate in estimates:
        count = estimate.windows
        losses = [sum(row.tolist()) / 23 for row in changed[:count]]
        dense_losses = [sum(row.tolist()) / 23 for row in base[:count]]
        differences = [a - b for a, b in zip(losses, dense_losses, strict=True)]
        nll = sum(losses) / count
        assert (estimate.of_windows, estimate.tokens) == (5, 23 * count)
        assert estimate.nll == pytest.approx(nll, abs=1e-5)
        assert estimate.perplexity == pytest.approx(math.exp(nll), rel=1e-5)
        assert estimate.dense_perplexity == pytest.approx(math.exp(sum(dense_losses) / count), rel=1e-5)
        assert estimate.difference == pytest.approx(sum(differences) / count, abs=1e-5)
        if count == 1:
            assert estimate.standard_error is estimate.nll_standard_error is estimate.difference_standard_error is None
            continue
        assert estimate.nll_standard_error == pytest.approx(_error(losses), abs=1e-5)
        assert estimate.standard_error == pytest.approx(math.exp(nll) * _error(losses), rel=1e-4)
        assert estimate.difference_standard_error == pytest.approx(_error(differences), abs=1e-5)
        assert _error(differences) != pytest.approx(_error(losses), abs=1e-3), "paired and unpaired would be the same"


def _error(values: list[float]) -> float:
    """Standard error of a mean, with the sample's own variance."""
    mean = sum(values) / len(values)
    variance = sum((value - mean) ** 2 for value in values) / (len(values) - 1)
    return math.sqrt(variance / len(values))


@pytest.mark.parametrize(("count", "length"), [(1, 24), (3, 24), (7, 512), (5, 4096), (60, 128)])
def test_chunks_cover_every_window_once_and_begin_with_one(count: int, length: int) -> None:
    found = chunks(count, length)
    assert [window for start, end in found for window in range(start, end)] == list(range(count))
    assert found[0] == (0, 1)
    assert all((end - start) * length <= 1024 or end - start == 1 for start, end in found)


def test_an_overflowing_perplexity_is_inf_and_prints_as_a_string() -> None:
    model = build("llama")
    with torch.no_grad():
        model.lm_head.weight.mul_(1e4)
    evaluator = Evaluator(Runner(model, describe(model)))
    estimate = evaluator.measure(evaluator.dense, random_windows())
    assert estimate.nll > 710 and estimate.perplexity == math.inf
    document = json.loads(json.dumps(estimate.document(), allow_nan=False))
    assert document["perplexity"] == document["dense_perplexity"] == "inf"
    assert document["nll"] == pytest.approx(estimate.nll)


def test_a_document_holds_no_number_that_json_lacks() -> None:
    estimate = Estimate(math.inf, math.nan, None, -math.inf, 2.0, 0.5, None, 1, 2, 23, 0.1)
    document = estimate.document()
    json.dumps(document, allow_nan=False)
    assert (document["perplexity"], document["nll"], document["nll_standard_error"]) == ("inf", "nan", "-inf")
    assert (document["standard_error"], document["dense_perplexity"], document["windows"]) == (None, 2.0, 1)
