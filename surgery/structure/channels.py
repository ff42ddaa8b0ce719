"""A model with fewer channels in its residual stream: a shallow copy, the loaded model never touched.

Every matrix that reads the stream loses columns, every one that writes it rows, every norm on it gains; the
embeddings and the head stay tied where they were. What is left computes as a checkpoint of that hidden size does.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn

from analysis.model.architecture import Architecture, Block
from analysis.model.modules import shallow_copy
from surgery.structure.narrow import narrow_linear, set_parameter, store
from surgery.structure.structure import Structure


def with_channels(model: nn.Module, source: Architecture, kept: tuple[int, ...]) -> nn.Module:
    """The model with only these channels of the residual stream, in ascending order."""
    new: Any = shallow_copy(model)
    channels = list(kept)
    new.config = copy.deepcopy(new.config)
    new.config.hidden_size = len(channels)
    embeddings = new.get_submodule(source.embeddings)
    _select(embeddings, "weight", channels, axis=1)
    _rescale(embeddings, source.hidden_size, len(channels))
    head: Any = new.get_submodule(source.head)
    if source.tied:
        head._parameters["weight"] = embeddings._parameters["weight"]
        head.in_features = len(channels)
    else:
        narrow_linear(new, source.head, columns=channels)
    backbone = new.get_submodule(source.backbone)
    blocks = {new.get_submodule(block.module) for block in source.blocks}
    for module in _outside(backbone, blocks):
        if module is not embeddings and getattr(module, "weight", None) is not None:
            _select_all(module, channels, source.hidden_size)
    for block in source.blocks:
        _narrow_block(new.get_submodule(block.module), block, channels, source.hidden_size)
    return new


def _outside(backbone: nn.Module, blocks: set[nn.Module]) -> list[nn.Module]:
    """Modules of the backbone that are in no block: position embeddings, the final norm, norms of the embeddings."""
    inside = {inner for block in blocks for inner in block.modules()}
    return [module for module in backbone.modules() if module not in inside]


def _narrow_block(new: nn.Module, block: Block, channels: list[int], hidden: int) -> None:
    reads, writes = [], []
    if block.attention is not None:
        reads += [block.attention.query, block.attention.key, block.attention.value]
        writes.append(block.attention.output)
    if block.mlp is not None:
        reads += [projection for projection in (block.mlp.gate, block.mlp.up) if projection is not None]
        writes.append(block.mlp.down)
    for path in dict.fromkeys(projection.module for projection in reads):
        narrow_linear(new, path, columns=channels)
    for projection in writes:
        narrow_linear(new, projection.module, rows=channels)
    for norm in block.norms:
        _select_all(new.get_submodule(norm.module), channels, hidden)


def _select_all(module: nn.Module, channels: list[int], hidden: int) -> None:
    """Keep the channels of each parameter whose last dimension is the residual stream's."""
    for name, parameter in list(module._parameters.items()):
        if parameter is not None and parameter.shape[-1] == hidden:
            _select(module, name, channels, axis=parameter.dim() - 1)
    if isinstance(module, nn.LayerNorm):
        module.normalized_shape = (len(channels),)


def _select(module: nn.Module, name: str, channels: list[int], axis: int) -> None:
    weight: Any = module._parameters[name]
    set_parameter(module, name, weight.detach().index_select(axis, torch.tensor(channels, device=weight.device)))
    if isinstance(module, nn.Embedding):
        module.embedding_dim = len(channels)


def _rescale(embeddings: Any, before: int, after: int) -> None:
    """Gemma multiplies its embeddings by the square root of the hidden size."""
    if hasattr(embeddings, "scalar_embed_scale"):
        embeddings.scalar_embed_scale *= (after / before) ** 0.5
        embeddings._buffers["embed_scale"] = torch.tensor(embeddings.scalar_embed_scale)


def model_around(model: nn.Module, source: Architecture, structure: Structure) -> nn.Module:
    """The model with only the channels that stay, and embeddings and head as stored; blocks are left as they are."""
    if structure.hidden is not None:
        model = with_channels(model, source, structure.hidden)
    if structure.outer:
        model = shallow_copy(model)
        for path, codec in structure.outer:
            store(model, path, codec)
        if source.tied and source.head not in dict(structure.outer):
            head, embeddings = (model.get_submodule(path) for path in (source.head, source.embeddings))
            head._parameters["weight"] = embeddings._parameters["weight"]
    return model
