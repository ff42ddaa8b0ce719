"""Weights that accelerate keeps on disk or in ordinary memory: analysis and live evaluation give the same numbers."""

import pytest
import torch
from accelerate import cpu_offload, disk_offload

from analysis.gradients.collect import collect_gradients
from analysis.importance.registry import METHODS, Evidence, score_blocks, score_units
from analysis.model.describe import describe
from analysis.model.runner import Runner
from analysis.statistics.collect import collect
from analysis.text import Windows
from surgery.evaluation.evaluator import Evaluator
from surgery.recipe.recipe import Recipe
from surgery.structure.resolve import resolve
from tests.tiny_models import build

RECIPE = Recipe.read(
    {
        "schema": "model-surgery/recipe/1",
        "model": {"id": "tiny"},
        "edits": [
            {"op": "remove_blocks", "blocks": "1"},
            {"op": "remove_attention", "blocks": "0"},
            {"op": "prune_neurons", "removed": {"2": "0-10"}},
        ],
    }
)


@pytest.mark.parametrize("place", ["disk", "memory"])
@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_offloaded_model_measures_the_same(place, family, tmp_path):
    windows = Windows(torch.randint(0, 128, (3, 24), generator=torch.Generator().manual_seed(1)), "x", "y", False)
    plain, offloaded = build(family), build(family)
    if place == "disk":
        disk_offload(offloaded, str(tmp_path), execution_device="cpu")
    else:
        cpu_offload(offloaded, execution_device="cpu")
    assert next(offloaded.parameters()).is_meta
    results, scores = [], []
    for model in (plain, offloaded):
        architecture = describe(model)
        runner = Runner(model, architecture)
        estimate = Evaluator(runner).measure(resolve(architecture, RECIPE), windows)
        statistics, gradients = collect(runner, windows), collect_gradients(runner, windows)
        results.append((architecture.parameters, estimate.nll, statistics.similarities.angular))
        evidence = Evidence(runner, statistics, gradients)
        scores.append(
            [score_units(entry, evidence, 1) for entry in METHODS if entry.kind == "neurons"]
            + [score_units(entry, evidence, 1) for entry in METHODS if entry.kind == "heads"]
            + [score_blocks(entry, evidence) for entry in METHODS if entry.kind in ("blocks", "attention", "mlp")]
        )
    assert results[0][0] == results[1][0]
    assert results[0][1] == pytest.approx(results[1][1], abs=1e-6)
    torch.testing.assert_close(results[0][2], results[1][2])
    for one, two in zip(*scores, strict=True):
        torch.testing.assert_close(one, two)
