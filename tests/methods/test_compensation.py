"""Compensation without training, against least squares written out, and its invariants on every family."""

from __future__ import annotations

import copy
from pathlib import Path
from threading import Event
from typing import Any

import pytest
import torch

from analysis.text import Windows
from surgery.checkpoints.build import build_model
from surgery.compensation.compensator import Compensated, Compensator
from surgery.compensation.least_squares import RIDGES, PairMoments, best_refit, refit
from surgery.errors import Cancelled, InputError, RecipeError
from surgery.evaluation.evaluator import Evaluator
from surgery.recipe.recipe import Recipe
from surgery.structure.resolve import resolve
from surgery.structure.structure import Structure
from tests.reference import random_windows, runner_of, token_nll
from tests.tiny_models import FAMILIES

SCHEMA = "model-surgery/recipe/1"
WINDOWS = random_windows(count=8, seed=5)
FIT = WINDOWS.ids[:6]
"""The last quarter is kept aside."""
TEXT = {"source": "random", "fingerprint": "none", "window": 24, "windows": 8}
NARROW = {"op": "prune_neurons", "removed": {"1": "0-39"}}
GROUP = {"op": "prune_kv_groups", "removed": {"2": "1"}}
GONE = {"op": "remove_blocks", "blocks": "2"}
POST_NORM = ("gemma2", "gemma3", "olmo2")


def compensation(how: str, **more: Any) -> dict[str, Any]:
    return {"op": "compensate", "how": how, "text": TEXT, **more}


def structure(family: str, *edits: dict[str, Any]) -> Structure:
    recipe = Recipe.read({"schema": SCHEMA, "model": {"id": "tiny"}, "edits": list(edits)})
    assert Recipe.parse(recipe.to_json()) == recipe
    return resolve(runner_of(family).architecture, recipe)


def computed(family: str, *edits: dict[str, Any]) -> Compensated:
    return Compensator(runner_of(family)).compute(structure(family, *edits), WINDOWS)


def moments_of(x: torch.Tensor, y: torch.Tensor) -> PairMoments:
    made = PairMoments.empty(x.shape[1], y.shape[1])
    for start in range(0, len(x), 7):
        made.update(x[start : start + 7], y[start : start + 7])
    return made


def pair(tokens: int = 200, inputs: int = 12, outputs: int = 5) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(tokens, inputs, generator=generator)
    y = x[:, :4] @ torch.randn(4, outputs, generator=generator) + torch.randn(tokens, outputs, generator=generator)
    return x, y, torch.randn(outputs, inputs, generator=generator).double()


def test_a_refit_is_least_squares_and_a_ridge_pulls_it_towards_the_start() -> None:
    x, y, start = pair()
    moments = moments_of(x, y)
    exact = torch.linalg.lstsq(x.double(), y.double()).solution.T
    torch.testing.assert_close(refit(moments, start, 0.0), exact, atol=1e-5, rtol=0)
    torch.testing.assert_close(refit(moments, start, 1e9), start, atol=1e-5, rtol=0)
    # min |Y - W X|^2 + r |W - W0|^2, solved as one least-squares problem with extra rows
    ridge = 0.3 * float(x.double().square().sum(dim=0).mean())
    rows = torch.cat([x.double(), ridge**0.5 * torch.eye(12, dtype=torch.float64)])
    targets = torch.cat([y.double(), ridge**0.5 * start.T])
    torch.testing.assert_close(
        refit(moments, start, 0.3), torch.linalg.lstsq(rows, targets).solution.T, atol=1e-5, rtol=0
    )


def test_errors_are_shares_of_the_targets_energy() -> None:
    x, y, start = pair()
    moments = moments_of(x, y)
    missed = (y.double() - x.double() @ start.T).square().sum() / y.double().square().sum()
    assert moments.error(start) == pytest.approx(float(missed), rel=1e-5)
    torch.testing.assert_close(
        moments.mean_miss(start), (y.double() - x.double() @ start.T).mean(dim=0), atol=1e-5, rtol=0
    )


def test_the_ridge_is_the_best_aside_and_no_refit_is_taken_that_does_not_help() -> None:
    x, y, start = pair(tokens=14)  # hardly more tokens than inputs: least squares overfits
    generator = torch.Generator().manual_seed(1)
    fresh = torch.randn(300, 12, generator=generator)
    fit, aside = moments_of(x, y), moments_of(fresh, fresh @ start.T.float())
    best = best_refit(fit, aside, start, None)
    assert best.ridge is None and torch.equal(best.weight, start) and best.error_aside == best.plain_error_aside
    forced = best_refit(fit, moments_of(x, y), start, 0.0)
    assert forced.ridge == 0.0 and forced.error < 0.2 * forced.plain_error


@pytest.mark.parametrize("noise", [0.01, 1.0, 30.0, 1e4])
def test_the_walk_finds_the_best_ridge_of_the_list(noise: float) -> None:
    generator = torch.Generator().manual_seed(2)
    truth = torch.randn(5, 12, generator=generator)

    def seen(tokens: int) -> PairMoments:
        x = torch.randn(tokens, 12, generator=generator)
        return moments_of(x, x @ truth.T + noise * torch.randn(tokens, 5, generator=generator))

    fit, aside = seen(20), seen(2000)
    start = truth.double() + 0.1
    errors = {value: aside.error(refit(fit, start, value)) for value in RIDGES}
    found = best_refit(fit, aside, start, None)
    if min(errors.values()) < aside.error(start):
        assert found.ridge == min(errors, key=lambda value: errors[value])
    else:
        assert found.ridge is None


@pytest.mark.parametrize("family", FAMILIES)
def test_on_the_fitted_text_least_squares_is_never_worse_than_slicing(family: str) -> None:
    edits = (NARROW, GROUP, {"op": "prune_neurons", "removed": {"3": "60-79"}})
    entries = computed(family, *edits, compensation("least_squares", ridge=0)).entries
    assert [(entry.block, entry.part) for entry in entries] == [(1, "mlp"), (2, "attention"), (3, "mlp")]
    for entry in entries:
        assert 0 <= entry.error <= entry.plain_error and entry.plain_error > 1e-4
        assert entry.applied and entry.ridge == 0
    for entry in computed(family, *edits, compensation("least_squares")).entries:
        assert entry.applied is (entry.ridge is not None) is (entry.error_aside < entry.plain_error_aside)


@torch.no_grad()
def caught(model: Any, path: str, ids: torch.Tensor) -> torch.Tensor:
    """What a module of the model reads, all tokens."""
    seen: list[torch.Tensor] = []
    handle = model.get_submodule(path).register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    model(input_ids=ids, use_cache=False)
    handle.remove()
    return seen[0].reshape(-1, seen[0].shape[-1]).double()


def test_the_narrowed_mlp_is_the_least_squares_solution_on_the_edited_prefix() -> None:
    """Block 1 is narrowed behind a removed attention of block 0: what it reads is the edited model's."""
    prefix = {"op": "remove_attention", "blocks": "0"}
    found = computed("llama", prefix, NARROW, compensation("least_squares", ridge=0)).structure.blocks[1].refit
    assert found is not None
    model: Any = copy.deepcopy(runner_of("llama").model)
    model.model.layers[0].self_attn.o_proj.weight.data.zero_()
    read = caught(model, "model.layers.1.mlp.down_proj", FIT)
    written = read @ model.model.layers[1].mlp.down_proj.weight.double().T
    expected = torch.linalg.lstsq(read[:, 40:], written).solution.T
    torch.testing.assert_close(found.weights["mlp.down_proj"].double(), expected, atol=2e-3, rtol=0)


def test_a_later_block_is_fitted_on_the_refitted_prefix() -> None:
    both = {"op": "prune_neurons", "removed": {"1": "0-39", "2": "0-39"}}
    blocks = computed("llama", both, compensation("least_squares", ridge=0)).structure.blocks
    model: Any = copy.deepcopy(runner_of("llama").model)
    first = model.model.layers[1].mlp.down_proj.weight.data
    first[:, :40] = 0
    first[:, 40:] = blocks[1].refit.weights["mlp.down_proj"]  # type: ignore[union-attr]
    read = caught(model, "model.layers.2.mlp.down_proj", FIT)
    written = read @ model.model.layers[2].mlp.down_proj.weight.double().T
    expected = torch.linalg.lstsq(read[:, 40:], written).solution.T
    torch.testing.assert_close(
        blocks[2].refit.weights["mlp.down_proj"].double(),
        expected,
        atol=2e-3,
        rtol=0,  # type: ignore[union-attr]
    )


def test_a_narrowed_attention_is_the_least_squares_solution() -> None:
    blocks = computed("llama", GROUP, compensation("least_squares", ridge=0)).structure.blocks
    model: Any = runner_of("llama").model
    read = caught(copy.deepcopy(model), "model.layers.2.self_attn.o_proj", FIT)
    written = read @ model.model.layers[2].self_attn.o_proj.weight.double().T
    expected = torch.linalg.lstsq(read[:, :24], written).solution.T
    torch.testing.assert_close(
        blocks[2].refit.weights["self_attn.o_proj"].double(),
        expected,
        atol=2e-3,
        rtol=0,  # type: ignore[union-attr]
    )


def test_a_bias_is_the_removed_neurons_mean_contribution() -> None:
    made = computed("llama", NARROW, compensation("bias"))
    model: Any = runner_of("llama").model
    read = caught(copy.deepcopy(model), "model.layers.1.mlp.down_proj", FIT)[:, :40].mean(dim=0)
    expected = model.model.layers[1].mlp.down_proj.weight.double()[:, :40] @ read
    refitted = made.structure.blocks[1].refit
    assert refitted is not None and not refitted.weights and list(refitted.biases) == ["mlp.down_proj"]
    torch.testing.assert_close(refitted.biases["mlp.down_proj"].double(), expected, atol=1e-5, rtol=0)
    assert made.structure.parameters == structure("llama", NARROW).parameters + 48
    assert structure("llama", NARROW, compensation("bias")).parameters == made.structure.parameters


@pytest.mark.parametrize(
    ("edits", "block", "path", "missing"),
    [
        ([GONE], 1, "mlp.down_proj", "whole"),
        ([{"op": "remove_attention", "blocks": "2"}], 1, "mlp.down_proj", "attention"),
        ([{"op": "remove_mlp", "blocks": "1"}], 1, "self_attn.o_proj", "mlp"),
    ],
)
def test_a_patch_is_the_least_squares_map_across_the_removed_run(
    edits: list[dict[str, Any]], block: int, path: str, missing: str
) -> None:
    made = computed("llama", *edits, compensation("linear_patch", ridge=0))
    kept = next(spec for spec in made.structure.blocks if spec.source == block)
    assert [(entry.block, entry.part) for entry in made.entries] == [(block, "run")]
    assert made.entries[0].error <= made.entries[0].plain_error
    model: Any = copy.deepcopy(runner_of("llama").model)
    layers = model.model.layers
    before = caught(model, f"model.layers.{block}.post_attention_layernorm", FIT)  # beside the MLP
    if missing == "mlp":
        after = caught(model, f"model.layers.{block + 1}", FIT)
        added = before - caught(model, f"model.layers.{block}", FIT)
        beside = caught(model, f"model.layers.{block}", FIT)
    else:
        added = caught(model, f"model.layers.{block + 1}", FIT) - before
        beside = before
        after = caught(model, f"model.layers.{block + 1}.post_attention_layernorm", FIT)  # behind its attention
        if missing == "whole":
            after = caught(model, f"model.layers.{block + 2}", FIT)
    mapped = torch.linalg.lstsq(added, after - beside).solution.T
    expected = mapped @ layers[block].get_submodule(path).weight.double()
    assert kept.refit is not None
    scale = expected.abs().max()
    torch.testing.assert_close(kept.refit.weights[path].double() / scale, expected / scale, atol=5e-3, rtol=0)


@pytest.mark.parametrize("family", [name for name in FAMILIES if name not in POST_NORM])
def test_patches_and_refits_together_live_and_built(family: str) -> None:
    attention = {"op": "remove_attention", "blocks": "0"}
    edits = (GONE, attention, {**NARROW, "removed": {"1": "0-39", "3": "5"}})
    made = computed(family, *edits, compensation("linear_patch"), compensation("least_squares"))
    runner, windows = runner_of(family), random_windows(count=2)
    live = Evaluator(runner).token_losses(made.structure, windows.ids).double()
    plain = Evaluator(runner).token_losses(structure(family, *edits), windows.ids)
    new = build_model(runner.model, runner.architecture, made.structure)
    torch.testing.assert_close(token_nll(new.model, windows.ids), live, atol=1e-4, rtol=0)
    assert any(entry.applied for entry in made.entries) and (live - plain).abs().mean() > 1e-3
    assert made.structure.parameters == structure(family, *edits).parameters
    assert [entry.part for entry in made.entries].count("run") == 1 and made.entries[0].block == 1


@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma2", "gpt2", "opt", "phi", "granite", "olmo2"])
def test_biases_live_and_built_and_reloaded(family: str, tmp_path: Path) -> None:
    made = computed(family, NARROW, GROUP, compensation("bias"))
    runner, windows = runner_of(family), random_windows(count=2)
    live = Evaluator(runner).token_losses(made.structure, windows.ids).double()
    new = build_model(runner.model, runner.architecture, made.structure)
    torch.testing.assert_close(token_nll(new.model, windows.ids), live, atol=1e-4, rtol=0)
    assert sum(parameter.numel() for parameter in new.model.parameters()) == made.structure.parameters
    new.model.save_pretrained(tmp_path)
    again = type(new.model).from_pretrained(tmp_path)
    torch.testing.assert_close(token_nll(again, windows.ids), live, atol=1e-4, rtol=0)


def test_the_same_recipe_gives_the_same_weights_with_and_without_a_memory() -> None:
    fresh = computed("llama", {**NARROW, "removed": {"1": "0-39", "3": "0-9"}}, compensation("least_squares"))
    used = Compensator(runner_of("llama"))
    used.compute(structure("llama", NARROW, compensation("least_squares")), WINDOWS)
    both = structure("llama", {**NARROW, "removed": {"1": "0-39", "3": "0-9"}}, compensation("least_squares"))
    again = used.compute(both, WINDOWS)
    assert again.structure == fresh.structure and again.structure.key == fresh.structure.key
    for one, other in zip(again.structure.blocks, fresh.structure.blocks, strict=True):
        if one.refit is not None:
            for path, weight in one.refit.weights.items():
                assert torch.equal(weight, other.refit.weights[path])  # type: ignore[union-attr]
    elsewhere = Compensator(runner_of("llama")).compute(both, random_windows(count=8, seed=6))
    assert elsewhere.structure.key != again.structure.key


def test_the_shared_model_is_left_alone_and_nothing_removed_means_nothing_refitted() -> None:
    runner = runner_of("llama")
    before = {name: tensor.clone() for name, tensor in runner.model.state_dict().items()}
    computed(
        "llama", NARROW, GROUP, GONE | {"blocks": "0"}, compensation("least_squares"), compensation("linear_patch")
    )
    assert all(torch.equal(tensor, before[name]) for name, tensor in runner.model.state_dict().items())
    assert not any(module._forward_pre_hooks for module in runner.model.modules())
    untouched = computed("llama", compensation("least_squares"), compensation("linear_patch"))
    assert untouched.entries == () and untouched.structure.key == Evaluator(runner).dense.key


def test_a_run_at_the_very_start_has_nothing_to_fold_into() -> None:
    made = computed("llama", {"op": "remove_blocks", "blocks": "0"}, compensation("linear_patch"))
    assert made.entries == () and all(spec.refit is None for spec in made.structure.blocks)


def test_blocks_can_be_chosen() -> None:
    edits = {"op": "prune_neurons", "removed": {"1": "0-39", "3": "0-39"}}
    entries = computed("llama", edits, compensation("least_squares", blocks="3")).entries
    assert [entry.block for entry in entries] == [3]


def test_a_cancel_stops_and_one_window_is_refused() -> None:
    stop = Event()
    stop.set()
    wanted = structure("llama", NARROW, compensation("least_squares"))
    with pytest.raises(Cancelled):
        Compensator(runner_of("llama")).compute(wanted, WINDOWS, stop=stop)
    with pytest.raises(InputError, match="at least 2"):
        Compensator(runner_of("llama")).compute(wanted, Windows(WINDOWS.ids[:1], "random", "none", False))


@pytest.mark.parametrize(
    ("family", "edits", "word"),
    [
        ("llama", [compensation("least_squares"), NARROW], "come in the order"),
        ("llama", [NARROW, compensation("bias"), compensation("bias")], "two compensations"),
        ("llama", [NARROW, compensation("bias"), compensation("least_squares")], "keep one"),
        ("llama", [compensation("least_squares", blocks="9")], "out of range"),
        ("llama", [{"op": "prune_hidden", "removed": "3"}, compensation("least_squares")], "fewer channels"),
        ("llama", [{"op": "arrange_blocks", "order": [1, 0]}, compensation("linear_patch")], "own order"),
        ("gemma2", [GONE, compensation("linear_patch")], "nothing to fold"),
        (
            "llama",
            [compensation("least_squares"), compensation("linear_patch") | {"text": TEXT | {"windows": 4}}],
            "different texts",
        ),
    ],
)
def test_what_cannot_be_compensated_is_refused(family: str, edits: list[dict[str, Any]], word: str) -> None:
    with pytest.raises(RecipeError, match=word):
        structure(family, *edits)
