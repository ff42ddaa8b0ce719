"""Shallow copies of modules: new structure around shared weights, so that the base model is never touched."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn


def shallow_copy(module: nn.Module) -> nn.Module:
    """A copy of the module tree whose parameters and buffers are the original tensors.

    Attributes, submodules and hooks can then be replaced on the copy alone. Hooks that accelerate put on a module
    for device placement are left behind, since they call the original; offloaded (meta) weights are fetched through
    them first.
    """
    new = module.__class__.__new__(module.__class__)
    new.__dict__ = dict(module.__dict__)
    new._modules = {name: child and shallow_copy(child) for name, child in module._modules.items()}
    new._parameters = dict(module._parameters)
    new._buffers = dict(module._buffers)
    for hooks in ("_forward_hooks", "_forward_pre_hooks"):
        new.__dict__[hooks] = copy.copy(module.__dict__[hooks])
    hook = new.__dict__.pop("_hf_hook", None)
    if hook is not None:
        new.__dict__.pop("forward", None)
        new.__dict__.pop("_old_forward", None)
        _fetch_offloaded(new, hook)
    return new


def _fetch_offloaded(module: nn.Module, hook: Any) -> None:
    """Bring weights that accelerate keeps on disk or in ordinary memory to the hook's device."""
    weights = getattr(hook, "weights_map", None)
    for name, parameter in list(module._parameters.items()):
        if parameter is not None and parameter.is_meta and weights is not None:
            data = torch.as_tensor(weights[name]).to(hook.execution_device)
            module._parameters[name] = nn.Parameter(data, requires_grad=False)


def device_of(module: nn.Module) -> torch.device:
    """Where a module computes: its weights' device, or its hook's for weights that accelerate keeps elsewhere."""
    for part in module.modules():
        for weight in part._parameters.values():
            if weight is not None:
                return torch.device(part.__dict__["_hf_hook"].execution_device) if weight.is_meta else weight.device
    return torch.device("cpu")


def replace(root: nn.Module, path: str, new: nn.Module) -> None:
    """Put a module at a dotted path; the parent must already be the caller's own copy."""
    parent, _, name = path.rpartition(".")
    root.get_submodule(parent)._modules[name] = new


def is_transposed(linear: nn.Module) -> bool:
    """Whether the weight is stored input-first, as in transformers' Conv1D."""
    return type(linear).__name__ == "Conv1D"


def weight_of(linear: nn.Module) -> torch.Tensor:
    """The weight as (outputs, inputs), a view, detached."""
    weight: torch.Tensor = linear.weight.detach()  # type: ignore[operator]
    return weight.T if is_transposed(linear) else weight
