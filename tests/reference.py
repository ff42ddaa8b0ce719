"""Independent statements of what an edit means: plain forwards of deep copies with zeroed or sliced weights.

Nothing here reads the architecture map or calls the code under test, except `recipe_of` (to say the same edit to it)
and `runner_of`.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import nn

from analysis.model.describe import describe
from analysis.model.runner import Runner
from analysis.text import Windows
from surgery.recipe.recipe import Recipe
from surgery.structure.resolve import resolve
from surgery.structure.structure import Structure
from tests.tiny_models import SEQ_LEN, VOCAB, build

Plan = dict[str, Any]
"""Edits by operation: a list of blocks, or indices by block."""


@dataclass(frozen=True)
class Layout:
    """Where a family keeps its parts; written by hand, from the library's source."""

    blocks: str
    attention: str
    output: str
    down: str


_LLAMA = Layout("model.layers", "self_attn", "self_attn.o_proj", "mlp.down_proj")
_NEOX = Layout("gpt_neox.layers", "attention", "attention.dense", "mlp.dense_4h_to_h")
_LAYOUTS = {
    "gpt2": Layout("transformer.h", "attn", "attn.c_proj", "mlp.c_proj"),
    "opt": Layout("model.decoder.layers", "self_attn", "self_attn.out_proj", "fc2"),
    "gpt_neox": _NEOX,
    "gpt_neox_sequential": _NEOX,
    "phi": Layout("model.layers", "self_attn", "self_attn.dense", "mlp.fc2"),
}
HEADS = {"qwen2_mha": (6, 6), "smollm": (9, 3)} | dict.fromkeys(_LAYOUTS, (6, 6))
"""(query, key/value) heads where they are not 6 and 2."""


def layout_of(family: str) -> Layout:
    return _LAYOUTS.get(family, _LLAMA)


def heads_of(family: str) -> tuple[int, int]:
    return HEADS.get(family, (6, 2))


@cache
def runner_of(family: str) -> Runner:
    """One shared model and runner a family; no test may change it (`test_live` checks that none of its own does)."""
    model = build(family)
    return Runner(model, describe(model))


def random_windows(count: int = 3, tokens: int = SEQ_LEN, seed: int = 1) -> Windows:
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(VOCAB, (count, tokens), generator=generator)
    return Windows(ids, "random", "none", bos=False)


def recipe_of(plan: Plan) -> Recipe:
    """The plan as a recipe, through the contract's JSON form."""
    edits: list[dict[str, Any]] = []
    for op, what in plan.items():
        if isinstance(what, dict):
            removed = {str(block): ",".join(map(str, sorted(units))) for block, units in what.items()}
            edits.append({"op": op, "removed": removed})
        else:
            edits.append({"op": op, "blocks": ",".join(map(str, sorted(what)))})
    return Recipe.read({"schema": "model-surgery/recipe/1", "model": {"id": "tiny"}, "edits": edits})


def structure_of(family: str, plan: Plan) -> Structure:
    return resolve(runner_of(family).architecture, recipe_of(plan))


@torch.no_grad()
def token_nll(model: nn.Module, ids: torch.Tensor) -> torch.Tensor:
    """-log p(next token) by the model's own forward, window by window."""
    rows = []
    for window in ids:
        log_probabilities = model(input_ids=window[None], use_cache=False).logits[0].double().log_softmax(-1)
        rows.append(torch.stack([-log_probabilities[t, window[t + 1]] for t in range(len(window) - 1)]))
    return torch.stack(rows)


@torch.no_grad()
def edited(model: nn.Module, family: str, plan: Plan) -> nn.Module:
    """A deep copy of a model with the plan's edits, of the same widths (OLMo 2 heads aside)."""
    new = copy.deepcopy(model)
    layout = layout_of(family)
    blocks = list(new.get_submodule(layout.blocks))
    for index, neurons in plan.get("prune_neurons", {}).items():
        _zero_inputs(blocks[index].get_submodule(layout.down), list(neurons))
    for index, heads in _removed_heads(family, plan).items():
        if family == "olmo2":  # its q/k norms average over all heads: zeros would stay in the average
            _slice_olmo2(blocks[index].self_attn, heads)
        else:
            output = blocks[index].get_submodule(layout.output)
            size = _inputs(output) // heads_of(family)[0]
            _zero_inputs(output, [head * size + row for head in heads for row in range(size)])
    for index in plan.get("remove_attention", ()):
        _silence(blocks[index].get_submodule(layout.output))
    for index in plan.get("remove_mlp", ()):
        _silence(blocks[index].get_submodule(layout.down))
    _delete(new, layout, plan.get("remove_blocks", ()))
    return new


def _removed_heads(family: str, plan: Plan) -> dict[int, list[int]]:
    query, kv = heads_of(family)
    size = query // kv
    heads = {index: list(units) for index, units in plan.get("prune_heads", {}).items()}
    for index, groups in plan.get("prune_kv_groups", {}).items():
        heads.setdefault(index, []).extend(head for head in range(query) if head // size in groups)
    return heads


def _conv1d(linear: nn.Module) -> bool:
    return not isinstance(linear, nn.Linear)


def _inputs(linear: Any) -> int:
    return linear.weight.shape[0 if _conv1d(linear) else 1]


def _zero_inputs(linear: Any, columns: list[int]) -> None:
    if _conv1d(linear):
        linear.weight[columns] = 0
    else:
        linear.weight[:, columns] = 0


def _silence(linear: Any) -> None:
    """A sublayer whose last linear is zero adds nothing (a root-mean-square norm of zeros is zeros)."""
    linear.weight.zero_()
    if linear.bias is not None:
        linear.bias.zero_()


def _slice_olmo2(attention: Any, removed: list[int]) -> None:
    query, kv, size = 6, 2, attention.head_dim
    kept = [head for head in range(query) if head not in removed]
    groups = sorted({head // (query // kv) for head in kept})
    for name, count, units in (("q", query, kept), ("k", kv, groups), ("v", kv, groups)):
        linear = getattr(attention, f"{name}_proj")
        rows = linear.weight.detach().view(count, size, -1)
        linear.weight = nn.Parameter(torch.cat([rows[unit] for unit in units]))
        if name != "v":
            norm = getattr(attention, f"{name}_norm")
            gains = norm.weight.detach().view(count, size)
            norm.weight = nn.Parameter(torch.cat([gains[unit] for unit in units]))
    columns = attention.o_proj.weight.detach().split(size, dim=1)
    attention.o_proj.weight = nn.Parameter(torch.cat([columns[head] for head in kept], dim=1))
    attention.num_key_value_groups = len(kept) // len(groups)


def _delete(model: Any, layout: Layout, removed: Any) -> None:
    old = list(model.get_submodule(layout.blocks))
    kept = [index for index in range(len(old)) if index not in set(removed)]
    parent, _, name = layout.blocks.rpartition(".")
    setattr(model.get_submodule(parent), name, nn.ModuleList(old[index] for index in kept))
    if getattr(model.config, "layer_types", None):
        model.config.layer_types = [model.config.layer_types[index] for index in kept]
    model.config.num_hidden_layers = len(kept)
    for position, index in enumerate(kept):
        for module in old[index].modules():
            if hasattr(module, "layer_idx"):
                module.layer_idx = position
