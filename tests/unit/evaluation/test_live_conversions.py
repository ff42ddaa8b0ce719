"""Merged heads, arranged blocks and removed channels, live, against weight-edited copies of the whole model."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

from surgery.evaluation.evaluator import Evaluator
from surgery.recipe.recipe import Recipe
from surgery.structure.resolve import resolve
from surgery.structure.structure import Structure
from tests.reference import layout_of, random_windows, runner_of, token_nll
from tests.tiny_models import FAMILIES, GATED, PLAIN

SCHEMA = "model-surgery/recipe/1"
ORDER = [0, 2, 2, 1, 3, 0]
REMOVED = [3, 9, 17, *range(30, 37)]
MERGEABLE = (*GATED, "phi")


def structure(family: str, *edits: dict[str, Any]) -> Structure:
    recipe = Recipe.read({"schema": SCHEMA, "model": {"id": "tiny"}, "edits": list(edits)})
    assert Recipe.parse(recipe.to_json()) == recipe
    return resolve(runner_of(family).architecture, recipe)


def compare(family: str, edited: nn.Module, *edits: dict[str, Any]) -> None:
    windows = random_windows(count=2)
    runner = runner_of(family)
    found = Evaluator(runner).token_losses(structure(family, *edits), windows.ids)
    torch.testing.assert_close(found.double(), token_nll(edited, windows.ids), atol=1e-4, rtol=0)
    assert (found - token_nll(runner.model, windows.ids)).abs().mean() > 1e-3


def key_value_rows(attention: Any, kv: int) -> list[tuple[torch.Tensor, torch.Tensor | None]]:
    """The rows of keys and of values, (heads, size, hidden), and their biases, as views that can be written to."""
    if hasattr(attention, "qkv_proj"):
        size = attention.head_dim
        start = attention.qkv_proj.weight.shape[0] - 2 * kv * size
        parts = attention.qkv_proj.weight.data[start:].view(2, kv, size, -1)
        return [(parts[0], None), (parts[1], None)]
    found = []
    for linear in (attention.k_proj, attention.v_proj):
        bias = None if linear.bias is None else linear.bias.data.view(kv, -1)
        found.append((linear.weight.data.view(kv, linear.weight.shape[0] // kv, -1), bias))
    norm = getattr(attention, "k_norm", None)
    if norm is not None and norm.weight.numel() != attention.head_dim:  # over all heads together (OLMo 2)
        found.append((norm.weight.data.view(kv, -1), None))
    return found


@torch.no_grad()
def merged(family: str, blocks: list[int], heads: int, how: str) -> nn.Module:
    """Every key/value head of a merged run set to the run's mean or first: the same function as fewer heads."""
    new = copy.deepcopy(runner_of(family).model)
    kv = runner_of(family).architecture.blocks[0].attention.kv_heads  # type: ignore[union-attr]
    for index in blocks:
        attention = list(new.get_submodule(layout_of(family).blocks))[index].get_submodule(layout_of(family).attention)
        for weight, bias in key_value_rows(attention, kv):
            for rows in [weight] if bias is None else [weight, bias]:
                for start in range(0, kv, kv // heads):
                    run = rows[start : start + kv // heads]
                    run.copy_((run.mean(dim=0) if how == "mean" else run[0]).expand_as(run).clone())
    return new


@pytest.mark.parametrize("how", ["mean", "first"])
@pytest.mark.parametrize("family", MERGEABLE)
def test_merged_heads(family: str, how: str) -> None:
    edit = {"op": "merge_kv_heads", "blocks": "0,2-3", "kv_heads": 1, "how": how}
    compare(family, merged(family, [0, 2, 3], 1, how), edit)


def test_merging_some_heads_of_many() -> None:
    edit = {"op": "merge_kv_heads", "blocks": "1", "kv_heads": 2}
    compare("qwen2_mha", merged("qwen2_mha", [1], 2, "mean"), edit)


@pytest.mark.parametrize("family", ["qwen2_mha", "llama"])
def test_one_head_a_group_is_the_identity(family: str) -> None:
    whole = runner_of(family).architecture.blocks[0].attention.kv_heads  # type: ignore[union-attr]
    evaluator = Evaluator(runner_of(family))
    same = structure(family, {"op": "merge_kv_heads", "blocks": "0-3", "kv_heads": whole})
    assert same.key == evaluator.dense.key and same.parameters == evaluator.dense.parameters


@torch.no_grad()
def arranged(family: str) -> Any:
    """Blocks in another order, repeated ones as copies."""
    new: Any = copy.deepcopy(runner_of(family).model)
    path = layout_of(family).blocks
    parent, _, name = path.rpartition(".")
    blocks = list(new.get_submodule(path))
    setattr(new.get_submodule(parent), name, nn.ModuleList(copy.deepcopy(blocks[index]) for index in ORDER))
    if getattr(new.config, "layer_types", None):
        new.config.layer_types = [new.config.layer_types[index] for index in ORDER]
    new.config.num_hidden_layers = len(ORDER)
    return new


@pytest.mark.parametrize("family", FAMILIES)
def test_arranged_blocks(family: str) -> None:
    compare(family, arranged(family), {"op": "arrange_blocks", "order": ORDER})


@torch.no_grad()
def without_channels(family: str) -> nn.Module:
    """Zeros in the removed channels, and norms that average as if those channels were not there."""
    new: Any = copy.deepcopy(runner_of(family).model)
    width = new.config.hidden_size
    share = (width - len(REMOVED)) / width
    new.get_input_embeddings().weight[:, REMOVED] = 0
    if family.startswith("gemma"):
        new.get_input_embeddings().embed_scale *= share**0.5
    layout = layout_of(family)
    for block in new.get_submodule(layout.blocks):
        for path in (layout.output, layout.down):
            linear = block.get_submodule(path)
            linear.weight[REMOVED] = 0
            if linear.bias is not None:
                linear.bias[REMOVED] = 0
        norms = [child for name, child in block.named_children() if "norm" in name]
        for norm in norms:
            scaled(norm, share, family)
    scaled(new.get_submodule(layout.blocks.rpartition(".")[0]).norm, share, family)
    return new


def scaled(norm: Any, share: float, family: str) -> None:
    offset = 1.0 if family.startswith("gemma") else 0.0  # Gemma's gain is 1 + weight
    norm.weight.data = (norm.weight.data + offset) * share**0.5 - offset
    name = "variance_epsilon" if hasattr(norm, "variance_epsilon") else "eps"
    setattr(norm, name, getattr(norm, name) * share)


@pytest.mark.parametrize("family", GATED)
def test_removed_channels(family: str) -> None:
    edit = {"op": "prune_hidden", "removed": ",".join(map(str, REMOVED))}
    narrower = structure(family, edit)
    assert narrower.architecture.hidden_size == 48 - len(REMOVED) + 24 * (family == "smollm")
    compare(family, without_channels(family), edit)


@pytest.mark.parametrize("family", [name for name in PLAIN if name != "phi"])
def test_heads_that_are_sized_by_the_hidden_size_are_refused(family: str) -> None:
    for edit in ({"op": "prune_hidden", "removed": "3"}, {"op": "merge_kv_heads", "blocks": "0", "kv_heads": 1}):
        with pytest.raises(ValueError, match=layout_of(family).attention.split(".")[-1]):
            structure(family, edit)


def test_edits_of_every_kind_together() -> None:
    """An arrangement over blocks that are narrowed, merged and cut: each repetition is edited alike."""
    family = "llama"
    new = arranged(family)
    with torch.no_grad():
        for position, index in enumerate(ORDER):
            block = new.model.layers[position]
            if index == 2:
                block.self_attn.o_proj.weight.zero_()
            if index == 0:
                block.mlp.down_proj.weight[:, [1, 5]] = 0
            if index == 3:
                for weight, _ in key_value_rows(block.self_attn, 2):
                    weight.copy_(weight.mean(dim=0).expand_as(weight).clone())
    compare(
        family,
        new,
        {"op": "remove_attention", "blocks": "2"},
        {"op": "prune_neurons", "removed": {"0": "1,5"}},
        {"op": "merge_kv_heads", "blocks": "3", "kv_heads": 1},
        {"op": "arrange_blocks", "order": ORDER},
    )
