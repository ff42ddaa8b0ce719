"""Each single removal measured: the numbers of separate evaluations, exactly, with the least work."""

from __future__ import annotations

from dataclasses import replace
from threading import Event

import pytest
import torch

from analysis.model.runner import Runner
from surgery.errors import Cancelled, InputError
from surgery.evaluation.evaluator import Evaluator
from surgery.evaluation.scan import KINDS, scan
from surgery.workbench.open_model import OpenModel
from tests.reference import edited, random_windows, recipe_of, token_nll
from tests.tiny_models import FAMILIES
from tests.tiny_workbench import loaded, open_model

OPS = {"blocks": "remove_blocks", "attention": "remove_attention", "mlp": "remove_mlp"}
LONG = random_windows(count=90)
"""More than two chunks of 1,024 tokens."""


class Counting(Runner):
    """Notes every block that is run, and how often losses are computed."""

    def __init__(self, *args):
        super().__init__(*args)
        self.ran, self.heads = [], 0

    def run(self, block, state, call):
        self.ran.append(state.shape[0])
        return super().run(block, state, call)

    def losses(self, *args):
        self.heads += 1
        return super().losses(*args)


def counting_model(family="llama", **budgets):
    model = open_model(family)
    model.runner = Counting(model.loaded.model, model.architecture)
    model.evaluator = Evaluator(model.runner, **budgets)
    return model


def same(found, expected):
    """All of an estimate but its time."""
    assert replace(found, seconds=0.0) == replace(expected, seconds=0.0)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_scan_is_separate_evaluations_exactly(family):
    model, windows = open_model(family), random_windows()
    found = scan(model.evaluator, windows)
    assert list(found.removals) == list(KINDS)
    same(found.baseline, Evaluator(model.runner).measure(model.evaluator.dense, windows))
    for kind, estimates in found.removals.items():
        assert len(estimates) == 4
        for block, estimate in enumerate(estimates):
            structure = model.resolve(model.recipe(*recipe_of({OPS[kind]: [block]}).edits))
            same(estimate, Evaluator(model.runner).measure(structure, windows))
            plain = token_nll(edited(model.loaded.model, family, {OPS[kind]: [block]}), windows.ids)
            assert estimate.nll == pytest.approx(float(plain.mean()), abs=1e-4)


@pytest.mark.parametrize("budget", [0, 20_000, 3 * 42 * 24 * 48 * 4, 10**9])
def test_caches_do_not_change_a_number(budget):
    model = counting_model(state_budget=budget)
    found = scan(model.evaluator, LONG)
    fresh = open_model("llama")
    for kind, estimates in found.removals.items():
        for block, estimate in enumerate(estimates):
            structure = fresh.resolve(fresh.recipe(*recipe_of({OPS[kind]: [block]}).edits))
            same(estimate, fresh.evaluator.measure(structure, LONG))
    assert found.baseline.windows == 90 and found.baseline.tokens == 90 * 23


def test_a_removal_at_block_k_runs_only_what_follows():
    model, windows = counting_model(), random_windows(count=1)
    scan(model.evaluator, windows)
    dense, blocks, sublayers = 4, 3 + 2 + 1 + 0, 2 * (4 + 3 + 2 + 1)
    assert len(model.runner.ran) == dense + blocks + sublayers
    assert model.runner.heads == 1 + 4 + 4 + 4
    scan(model.evaluator, windows)
    assert len(model.runner.ran) == dense + blocks + sublayers, "a second scan is a look-up"


def test_one_state_of_room_is_enough():
    windows = random_windows(count=1)
    model = counting_model(state_budget=2 * 24 * 48 * 4)
    scan(model.evaluator, windows)
    walked_again = 3  # block 0, 1 and 2 once more: their states had left before the removals behind them came
    assert len(model.runner.ran) == 4 + (3 + 2 + 1 + 0) + 2 * (4 + 3 + 2 + 1) + walked_again


def test_states_behind_a_removal_are_not_kept():
    model, windows = counting_model(), random_windows(count=1)
    scan(model.evaluator, windows)
    assert len(model.evaluator.states) == 4


def test_a_missing_sublayer_gives_none():
    source = loaded("llama")
    blocks = list(source.architecture.blocks)
    blocks[1] = replace(blocks[1], attention=None)
    model = OpenModel(replace(source, architecture=replace(source.architecture, blocks=tuple(blocks))))
    found = scan(model.evaluator, random_windows(), ("attention", "mlp"))
    assert [estimate is None for estimate in found.removals["attention"]] == [False, True, False, False]
    assert None not in found.removals["mlp"]
    assert found.document()["attention"][1] is None and found.document()["difference"]["attention"][1] is None


def test_the_only_block_cannot_go():
    source = loaded("llama")
    model = OpenModel(replace(source, architecture=replace(source.architecture, blocks=source.architecture.blocks[:1])))
    found = scan(model.evaluator, random_windows())
    assert found.removals["blocks"] == [None] and found.removals["mlp"] != [None]


def test_the_document_has_the_contracts_keys():
    document = scan(open_model("llama").evaluator, random_windows(), ("mlp", "blocks")).document()
    assert set(document) >= {"baseline", "blocks", "mlp", "seconds"} and "attention" not in document
    assert all(isinstance(value, float) for value in document["blocks"] + document["mlp"])
    assert document["nll"]["mlp"][2] - document["baseline_nll"] == pytest.approx(document["difference"]["mlp"][2])
    assert all(error > 0 for error in document["difference_standard_error"]["blocks"])


@pytest.mark.parametrize("kinds", [(), ("heads",), ("blocks", "blocks")])
def test_unknown_or_repeated_kinds_are_refused(kinds):
    with pytest.raises(InputError, match="blocks, attention, mlp"):
        scan(open_model("llama").evaluator, random_windows(), kinds)


def test_a_stop_ends_it_and_what_was_measured_stays():
    model, stop, seen = counting_model(), Event(), []

    def report(share, message):
        seen.append(share)
        if len(seen) == 6:
            stop.set()

    with pytest.raises(Cancelled):
        scan(model.evaluator, random_windows(count=1), stop=stop, report=report)
    assert len(seen) == 6 and seen == sorted(seen)
    before = model.runner.heads
    assert before == 1 + 5
    scan(model.evaluator, random_windows(count=1))
    assert model.runner.heads == 13


def test_progress_covers_the_whole_text():
    shares = []
    scan(open_model("llama").evaluator, LONG, ("blocks",), report=lambda share, message: shares.append(share))
    assert len(shares) == 4 * 4 and shares[0] == 0 and shares == sorted(shares) and 0.9 < shares[-1] < 1


def test_the_base_model_is_untouched():
    model = open_model("llama")
    before = {name: tensor.clone() for name, tensor in model.loaded.model.state_dict().items()}
    scan(model.evaluator, random_windows())
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.loaded.model.state_dict().items())
