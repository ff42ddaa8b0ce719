"""What autograd needs of a block of the shared model: weights that require gradients, and ordinary tensors."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from analysis.model.architecture import Block
from analysis.model.modules import shallow_copy
from analysis.model.runner import BlockCall


def differentiable_copy(original: nn.Module, block: Block) -> tuple[nn.Module, dict[str, nn.Parameter]]:
    """A shallow copy of a block whose linear weights are parameters of its own over the same storage; and these weights
    by the path of the linear."""
    module = shallow_copy(original)
    attention, mlp = block.attention, block.mlp
    projections = [attention.query, attention.key, attention.value, attention.output] if attention else []
    if mlp is not None:
        projections += [*([mlp.gate] if mlp.gate else []), mlp.up, mlp.down]
    weights: dict[str, nn.Parameter] = {}
    for path in dict.fromkeys(projection.module for projection in projections):
        linear = module.get_submodule(path)
        weights[path] = nn.Parameter(linear.weight.detach())  # type: ignore[operator]
        linear._parameters["weight"] = weights[path]
    return module, weights


def ordinary_calls(calls: tuple[BlockCall, ...]) -> tuple[BlockCall, ...]:
    """The calls with tensors that autograd can save, unlike those of inference mode. Shared ones stay shared."""
    known: dict[int, torch.Tensor] = {}

    def ordinary(value: Any) -> Any:
        if isinstance(value, torch.Tensor):
            if id(value) not in known:
                known[id(value)] = value.clone()
            return known[id(value)]
        if isinstance(value, (tuple, list)):
            return type(value)(ordinary(item) for item in value)
        if isinstance(value, dict):
            return {key: ordinary(item) for key, item in value.items()}
        return value

    return tuple(BlockCall(ordinary(call.args), ordinary(call.kwargs)) for call in calls)
