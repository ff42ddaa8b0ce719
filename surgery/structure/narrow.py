"""Building an edited block from a spec: a shallow copy with narrowed weights, the original never touched."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn

from analysis.model.architecture import Attention, Block, HeadNorm, Mlp, Projection
from analysis.model.modules import is_transposed, replace, shallow_copy, weight_of
from surgery.folders.modeling import NoHeads, Zeros
from surgery.structure.structure import BlockSpec, Codec, Refit, narrowed, output_of


def build_block(original: nn.Module, block: Block, spec: BlockSpec) -> nn.Module:
    """The block that `spec` describes; the source block's module itself when nothing is missing."""
    if spec.is_whole(block):
        return original
    new = shallow_copy(original)
    if block.attention is not None:
        if not spec.attention:
            replace(new, block.attention.module, NoHeads())
        elif narrowed(block, spec, "attention"):
            _narrow_attention(new, block.attention, spec)
    if block.mlp is not None:
        if not spec.mlp:
            _remove_mlp(new, block.mlp)
        elif len(spec.neurons) < block.mlp.width:
            _narrow_mlp(new, block.mlp, list(spec.neurons))
    _add_biases(new, block, spec)
    if spec.refit is not None:
        _refit(new, spec.refit)
    for path, codec in spec.codecs:
        store(new, path, codec)
    if spec.repair is not None:
        for path, down in spec.repair.down.items():
            weight = weight_of(new.get_submodule(path))
            _set_weight(new, path, weight + (spec.repair.up[path] @ down).to(weight.device, weight.dtype))
    return new


def store(root: nn.Module, path: str, codec: Codec) -> None:
    """Give a linear or an embedding of one's own the weight that its stored form reads back as."""
    _set_weight(root, path, codec.apply(weight_of(root.get_submodule(path))))


def _set_weight(root: nn.Module, path: str, weight: torch.Tensor) -> None:
    """Set a weight given as (outputs, inputs)."""
    linear: Any = root.get_submodule(path)
    weight = weight.to(linear.weight.device, linear.weight.dtype)
    set_parameter(linear, "weight", weight.T.contiguous() if is_transposed(linear) else weight)


def own_bytes(new: nn.Module, original: nn.Module) -> int:
    """Bytes of the tensors that an edited block does not share with its original."""
    shared = {parameter.data_ptr() for parameter in original.parameters()}
    return sum(p.numel() * p.element_size() for p in new.parameters() if p.data_ptr() not in shared)


def _remove_mlp(new: nn.Module, mlp: Mlp) -> None:
    if mlp.module is not None:
        replace(new, mlp.module, Zeros())
        return
    replace(new, mlp.up.module, nn.Identity())
    replace(new, mlp.down.module, Zeros())


def _narrow_mlp(new: nn.Module, mlp: Mlp, neurons: list[int]) -> None:
    inputs = [projection for projection in (mlp.gate, mlp.up) if projection is not None]
    for module in dict.fromkeys(projection.module for projection in inputs):
        rows = [row for projection in inputs if projection.module == module for row in projection.positions(neurons)]
        narrow_linear(new, module, rows=rows)
    narrow_linear(new, mlp.down.module, columns=mlp.down.positions(neurons))


def _add_biases(new: nn.Module, block: Block, spec: BlockSpec) -> None:
    """A bias of zeros where a compensation will put one: the structure has it before its values are known."""
    for part in spec.biases:
        linear: Any = new.get_submodule(output_of(block, part).module)
        if linear.bias is None:
            outputs = weight_of(linear).shape[0]
            set_parameter(linear, "bias", torch.zeros(outputs, dtype=linear.weight.dtype, device=linear.weight.device))


def _refit(new: nn.Module, refit: Refit) -> None:
    for path in {**refit.weights, **refit.biases}:
        linear: Any = new.get_submodule(path)
        weight, bias = refit.weights.get(path), refit.biases.get(path)
        if weight is not None:
            _set_weight(new, path, weight)
        if bias is not None:
            set_parameter(linear, "bias", bias.to(linear.weight.device, linear.weight.dtype))


def _narrow_attention(new: nn.Module, attention: Attention, spec: BlockSpec) -> None:
    if spec.merged == "mean":
        _average_heads(new, attention, spec.kv_heads)
    roles: list[tuple[Projection, list[int]]] = [
        (attention.query, list(spec.query_heads)),
        (attention.key, list(spec.kv_heads)),
        (attention.value, list(spec.kv_heads)),
    ]
    for module in dict.fromkeys(projection.module for projection, _ in roles):
        rows = [
            row for projection, units in roles if projection.module == module for row in projection.positions(units)
        ]
        if _interleaved(attention):
            rows.sort()
        narrow_linear(new, module, rows=rows)
    narrow_linear(new, attention.output.module, columns=attention.output.positions(list(spec.query_heads)))
    for norm, units in ((attention.query_norm, spec.query_heads), (attention.key_norm, spec.kv_heads)):
        _narrow_head_norm(new, norm, list(units), attention.head_size)
    _set_counts(new.get_submodule(attention.module), attention, spec)


def _average_heads(new: nn.Module, attention: Attention, kept: tuple[int, ...]) -> None:
    """Give the first key/value head of each merged run the mean of the run. Source: GQA (2305.13245), section 2.1."""
    size, run = attention.head_size, attention.kv_heads // len(kept)
    for projection in (attention.key, attention.value):
        linear: Any = new.get_submodule(projection.module)
        # An output of a Conv1D is a column: its transpose is a view, so averaging writes into the copy below it.
        weight = linear.weight.detach().clone()
        bias = None if linear.bias is None else linear.bias.detach().clone()
        for head in kept:
            runs = [projection.positions([member]) for member in range(head, head + run)]
            for rows in (weight.T if is_transposed(linear) else weight, bias):
                if rows is not None:
                    rows[runs[0]] = torch.stack([rows[positions] for positions in runs]).mean(dim=0)
        set_parameter(linear, "weight", weight)
        set_parameter(linear, "bias", bias)
    if attention.key_norm is not None and attention.key_norm.over_all_heads:
        norm: Any = new.get_submodule(attention.key_norm.module)
        gains = norm.weight.detach().clone().view(attention.kv_heads, size)
        for head in kept:
            gains[head] = gains[head : head + run].mean(dim=0)
        set_parameter(norm, "weight", gains.flatten())


def _interleaved(attention: Attention) -> bool:
    """Whether one tensor holds query, key and value head by head (GPT-NeoX): the stored order is the ascending one."""
    return attention.query.fused and attention.query.stride > attention.head_size


def _narrow_head_norm(new: nn.Module, norm: HeadNorm | None, units: list[int], head_size: int) -> None:
    """A norm over all heads together loses the gains of the removed ones (and averages over what is left)."""
    if norm is None or not norm.over_all_heads:
        return
    module: Any = new.get_submodule(norm.module)
    positions = [unit * head_size + row for unit in units for row in range(head_size)]
    set_parameter(module, "weight", module.weight.detach()[positions])


def _set_counts(module: Any, attention: Attention, spec: BlockSpec) -> None:
    """Head counts that the attention classes keep as attributes, or read from their configuration (Phi-3)."""
    query, kv = len(spec.query_heads), len(spec.kv_heads)
    for name, value in {
        "num_key_value_groups": query // kv,
        "num_heads": query,
        "num_attention_heads": query,
        "num_key_value_heads": kv,
        "split_size": query * attention.head_size,
    }.items():
        if name in module.__dict__:
            module.__dict__[name] = value
    if attention.query.fused and getattr(module, "config", None) is not None:
        config = copy.copy(module.config)
        config.num_attention_heads, config.num_key_value_heads = query, kv
        module.__dict__["config"] = config


def narrow_linear(root: nn.Module, path: str, rows: list[int] | None = None, columns: list[int] | None = None) -> None:
    """Keep some outputs (`rows`) or inputs (`columns`) of a linear or Conv1D, in the given order."""
    linear: Any = root.get_submodule(path)
    by_output = (0, rows) if not is_transposed(linear) else (1, rows)
    by_input = (1, columns) if not is_transposed(linear) else (0, columns)
    weight = linear.weight.detach()
    for axis, positions in (by_output, by_input):
        if positions is not None:
            weight = weight.index_select(axis, torch.tensor(positions, device=weight.device))
    set_parameter(linear, "weight", weight)
    if rows is not None:
        set_parameter(linear, "bias", None if linear.bias is None else linear.bias.detach()[rows])
    for name, positions in (("out_features", rows), ("nf", rows), ("in_features", columns), ("nx", columns)):
        if positions is not None and name in linear.__dict__:
            linear.__dict__[name] = len(positions)


def set_parameter(module: nn.Module, name: str, value: torch.Tensor | None) -> None:
    """Give a module of one's own another tensor (or none) as a parameter that needs no gradient."""
    module._parameters[name] = None if value is None else nn.Parameter(value, requires_grad=False)
