"""Quantising edited models: which numbers are measured, on which states GPTQ is solved, what is refused."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from threading import Event
from typing import Any

import pytest
import torch
from accelerate import cpu_offload
from torch import nn

from analysis.model.modules import weight_of
from analysis.model.runner import Runner
from surgery.checkpoints.build import Built
from surgery.checkpoints.save import Saved
from surgery.errors import Cancelled, InputError
from surgery.evaluation.evaluator import Evaluator
from surgery.formats.table import format_of
from surgery.quantization.eora import repair
from surgery.quantization.gptq import gptq, hessian
from surgery.quantization.grid import Grid, Packed, round_to_nearest
from surgery.quantization.quantizer import quantise
from surgery.recipe.edits import Eora
from surgery.recipe.recipe import Recipe
from surgery.recipe.storage import Quantize
from surgery.structure.narrow import build_block
from surgery.structure.resolve import resolve
from surgery.structure.structure import Structure
from tests.reference import random_windows, runner_of, token_nll
from tests.tiny_models import FAMILIES, build

WINDOWS = random_windows(count=8, seed=5)
TEXT = {"source": "random", "fingerprint": "none", "window": 24, "windows": 8}
LINEAR = [family for family in FAMILIES if family != "gpt2"]
EDITS = [
    {"op": "remove_attention", "blocks": "0"},
    {"op": "prune_neurons", "removed": {"1": "0-39", "3": "0-15"}},
    {"op": "prune_kv_groups", "removed": {"3": "1"}},
]


def quantisation(type_name: str = "int4", group_size: int | None = 8, **more: Any) -> dict[str, Any]:
    made = {"op": "quantize", "format": "compressed-tensors", "type": type_name, "group_size": group_size} | more
    return made | ({"text": TEXT} if made.get("method") == "gptq" else {})


def structure(family: str, *edits: dict[str, Any]) -> Structure:
    recipe = {"schema": "model-surgery/recipe/1", "model": {"id": "tiny"}, "edits": list(edits)}
    return resolve(runner_of(family).architecture, Recipe.read(recipe))


def computed(runner: Runner, wanted: Structure, *rest: Any) -> Structure:
    return quantise(runner, wanted, format_of(wanted.quantize).encoder(wanted.quantize), *rest)


def save_packed(built: Built, made: Structure, tokenizer: Any, recipe: Recipe, out: Path) -> Saved:
    edit = next(edit for edit in recipe.edits if isinstance(edit, Quantize))
    return format_of(edit).save(built, made, tokenizer, recipe, out)


def quantised(family: str, *edits: dict[str, Any]) -> Structure:
    made = computed(runner_of(family), structure(family, *edits), WINDOWS)
    assert not made.pending
    return made


def block_linears(model: nn.Module, family: str) -> dict[str, nn.Linear]:
    inside = runner_of(family).architecture.block_list
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and name.startswith(f"{inside}.")
    }


def module_of(family: str, made: Structure, source: int) -> nn.Module:
    spec = next(spec for spec in made.blocks if spec.source == source)
    return build_block(runner_of(family).blocks[source], runner_of(family).architecture.blocks[source], spec)


@pytest.mark.parametrize("family", LINEAR)
def test_every_linear_of_a_block_is_rounded_and_nothing_else(family: str) -> None:
    made = quantised(family, quantisation("int3", 8))
    model = copy.deepcopy(runner_of(family).model)
    for linear in block_linears(model, family).values():
        linear.weight.data = round_to_nearest(linear.weight, Grid(3, 8)).apply(linear.weight.data)
    live = Evaluator(runner_of(family)).token_losses(made, WINDOWS.ids).double()
    torch.testing.assert_close(live, token_nll(model, WINDOWS.ids), atol=1e-4, rtol=0)
    plain = token_nll(runner_of(family).model, WINDOWS.ids)
    assert (live - plain).abs().mean() > 1e-2


@pytest.mark.parametrize("family", LINEAR)
def test_gptq_runs_on_edited_models_of_every_family_and_repeats(family: str) -> None:
    edits = (*EDITS, quantisation("int3", 8, method="gptq", act_order=True, symmetric=False))
    made = quantised(family, *edits)
    again = quantised(family, *edits)
    assert made.key == again.key and made == again
    count = {spec.source: len(spec.codecs) for spec in made.blocks}
    assert count[0] < count[1] == count[3]
    for spec in made.blocks:
        for path, codec in spec.codecs:
            stored = weight_of(module_of(family, made.floating, spec.source).get_submodule(path))
            assert isinstance(codec, Packed) and codec.codes.shape == stored.shape
    assert torch.isfinite(Evaluator(runner_of(family)).token_losses(made, WINDOWS.ids)).all()


@torch.no_grad()
def caught(model: Any, path: str) -> torch.Tensor:
    """What a module of the model reads, all tokens."""
    seen: list[torch.Tensor] = []
    handle = model.get_submodule(path).register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    model(input_ids=WINDOWS.ids, use_cache=False)
    handle.remove()
    return seen[0].reshape(-1, seen[0].shape[-1]).double()


@pytest.mark.parametrize("true_sequential", [True, False])
def test_each_linear_is_solved_on_what_the_quantised_ones_before_it_give(true_sequential: bool) -> None:
    made = quantised("llama", quantisation(method="gptq", true_sequential=true_sequential))
    model: Any = copy.deepcopy(runner_of("llama").model)
    order = ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj",
             "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"]  # fmt: skip
    stages = [order[:3], order[3:4], order[4:6], order[6:]] if true_sequential else [order]
    for index, spec in enumerate(made.blocks):
        stored = dict(spec.codecs)
        for stage in stages:
            read = {path: caught(model, f"model.layers.{index}.{path}") for path in stage}
            for path in stage:
                linear = model.model.layers[index].get_submodule(path)
                h = hessian(read[path].T @ read[path], len(read[path]))
                codec = stored[path]
                assert isinstance(codec, Packed)
                expected = gptq(linear.weight, h, Grid(4, 8))
                # Moments are summed in float32 there: a code may fall to the other side of a tie.
                assert (codec.codes != expected.codes).float().mean() < 0.01
                linear.weight.data = codec.apply(linear.weight.data)


@pytest.mark.parametrize("type_name", ["int4", "int3"])
def test_gptq_gives_a_model_nearer_to_the_dense_one_than_rounding(type_name: str) -> None:
    runner = runner_of("llama")
    dense = Evaluator(runner).token_losses(Evaluator(runner).dense, WINDOWS.ids)

    def distance(**more: Any) -> float:
        made = quantised("llama", quantisation(type_name, None, **more))
        return float((Evaluator(runner).token_losses(made, WINDOWS.ids) - dense).square().mean())

    nearest = distance()
    for more in ({}, {"act_order": True}, {"true_sequential": False}):
        assert distance(method="gptq", **more) < 0.9 * nearest


@pytest.mark.parametrize(
    ("type_name", "group_size", "symmetric"),
    [("int8", None, True), ("int4", 16, True), ("int4", None, True), ("int4", 16, False)],
)
@pytest.mark.parametrize("family", ["llama_bias", "phi3", "opt", "gpt_neox"])
def test_torchao_numbers_are_those_of_torchao(
    family: str, type_name: str, group_size: int | None, symmetric: bool
) -> None:
    from torchao.quantization import Int8WeightOnlyConfig, IntxWeightOnlyConfig, MappingType, quantize_
    from torchao.quantization.granularity import PerAxis, PerGroup

    made = quantised(family, {"op": "quantize", "format": "torchao", "type": type_name, "group_size": group_size,
                              "symmetric": symmetric})  # fmt: skip
    granularity = PerGroup(group_size) if group_size else PerAxis(0)
    mapping = MappingType.SYMMETRIC if symmetric else MappingType.ASYMMETRIC
    config = Int8WeightOnlyConfig() if type_name == "int8" else IntxWeightOnlyConfig(
        weight_dtype=torch.int4, granularity=granularity, mapping_type=mapping)  # fmt: skip
    model = copy.deepcopy(runner_of(family).model)
    linears = block_linears(model, family)
    quantize_(model, config, lambda module, name: name in linears)
    live = Evaluator(runner_of(family)).token_losses(made, WINDOWS.ids).double()
    torch.testing.assert_close(live, token_nll(model, WINDOWS.ids), atol=1e-4, rtol=0)


def test_channels_may_be_gone_and_blocks_repeated() -> None:
    gone = {"op": "prune_hidden", "removed": "0-7"}
    order = {"op": "arrange_blocks", "order": [0, 1, 1, 3]}
    made = quantised("llama", gone, order, quantisation(method="gptq"))
    assert [dict(spec.codecs)["mlp.up_proj"].codes.shape for spec in made.blocks] == [(80, 40)] * 4  # type: ignore[attr-defined]
    first, second = (dict(spec.codecs)["mlp.up_proj"] for spec in made.blocks[1:3])
    assert first.key != second.key  # solved on other states
    assert torch.isfinite(Evaluator(runner_of("llama")).token_losses(made, WINDOWS.ids)).all()


def test_what_cannot_be_stored_is_refused() -> None:
    with pytest.raises(InputError, match=r"Conv1D.*GGUF"):
        quantised("gpt2", quantisation())
    with pytest.raises(InputError, match="q_proj of block 0 has rows of 48"):
        quantised("llama", quantisation(group_size=32))
    with pytest.raises(InputError, match="down_proj of block 1 has rows of 44"):
        quantised("llama", {"op": "prune_neurons", "removed": {"1": "0-35"}}, quantisation(group_size=8))
    for bad in ({"type": "int8", "group_size": 16}, {"type": "int8", "symmetric": False}):
        with pytest.raises(InputError, match="leave the group size"):
            quantised("llama", {"op": "quantize", "format": "torchao"} | bad)
    with pytest.raises(InputError, match="which groups of 64"):
        quantised("llama", {"op": "quantize", "format": "torchao", "type": "int4", "group_size": 64})
    group = {"op": "prune_kv_groups", "removed": {"2": "0"}}
    for method in ("round_to_nearest", "gptq"):
        with pytest.raises(InputError, match="k_proj of block 2 has only 8 outputs"):
            quantised("llama", group, quantisation(symmetric=False, method=method))
    with pytest.raises(InputError, match="calibration text"):
        computed(runner_of("llama"), structure("llama", quantisation(method="gptq")))


def test_activations_that_are_not_finite_are_refused() -> None:
    model: Any = copy.deepcopy(runner_of("llama").model)
    model.model.layers[1].self_attn.v_proj.weight.data[0] = torch.inf
    runner = Runner(model, runner_of("llama").architecture)
    with pytest.raises(InputError, match="block 1 are not finite"):
        computed(runner, structure("llama", quantisation(method="gptq", group_size=None)), WINDOWS)


def test_a_cancel_stops_and_the_shared_model_is_left_alone() -> None:
    runner = runner_of("llama")
    before = {name: tensor.clone() for name, tensor in runner.model.state_dict().items()}
    stop = Event()
    seen: list[float] = []

    def report(share: float, words: str) -> None:
        seen.append(share)
        if share > 0.4:
            stop.set()

    wanted = structure("llama", quantisation(method="gptq"))
    with pytest.raises(Cancelled):
        computed(runner, wanted, WINDOWS, report, stop)
    assert seen == [0, 0.25, 0.5]
    assert all(torch.equal(tensor, before[name]) for name, tensor in runner.model.state_dict().items())
    assert not any(module._forward_pre_hooks for module in runner.model.modules())
    untouched = Evaluator(runner).dense
    assert quantise(runner, untouched, encode=None) is untouched


@pytest.mark.parametrize("format_name", ["compressed-tensors", "torchao"])
def test_weights_that_accelerate_keeps_elsewhere_are_quantised_alike(format_name: str) -> None:
    model = build("llama")
    cpu_offload(model, execution_device=torch.device("cpu"))
    assert next(model.parameters()).is_meta
    edit = quantisation("int4", None, method="gptq")
    if format_name == "torchao":
        edit = {"op": "quantize", "format": "torchao", "type": "int8"}
    runner = Runner(model, runner_of("llama").architecture)
    made = computed(runner, structure("llama", edit), WINDOWS)
    assert made.key == quantised("llama", edit).key
    repaired = repair(runner, replace(made, eora=Eora(rank=3, text=TEXT)), WINDOWS)  # type: ignore[arg-type]
    losses = [Evaluator(each).token_losses(repaired, WINDOWS.ids).double() for each in (runner, runner_of("llama"))]
    torch.testing.assert_close(losses[0], losses[1], atol=1e-5, rtol=0)
