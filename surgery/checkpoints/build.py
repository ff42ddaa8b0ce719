"""Building the smaller model that a structure describes: real tensors, a true configuration, the base untouched."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from analysis.model.architecture import Architecture, Block
from surgery.errors import RecipeError
from surgery.folders.modeling import classes, family_of
from surgery.models.checks import quiet
from surgery.models.loading import Loaded
from surgery.models.places import places
from surgery.structure.channels import model_around
from surgery.structure.narrow import build_block
from surgery.structure.structure import BlockSpec, Structure

WIDTH_NAMES = ("intermediate_size", "n_inner", "ffn_dim")
"""How configurations name the width of the MLP."""
Tensors = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Built:
    """A built model in memory, with tensors of its own."""

    model: Any
    plain: bool
    """Whether it is an ordinary model of its family, which transformers loads without further code."""
    dtype: torch.dtype | None = None
    """The number type that it is to be written in; the model's own if None."""


@dataclass(frozen=True)
class Draft:
    """What a built model would be, before it is made: enough to know its files without writing them."""

    config: Any
    model_class: Any
    tensors: Tensors
    """Under the names of the built model's state; a tied head beside the embeddings."""
    plain: bool
    """See `Built`."""


def build_model(base: nn.Module, source: Architecture, structure: Structure, dtype: torch.dtype | None = None) -> Built:
    """The edited model as a model of the transformers library.

    Args:
        base: the loaded model; never changed, and nothing is shared with it.
        structure: what to build; its compensations must have been computed. Quantisation is left out.
        dtype: the number type that it is to be written in, see `stored_dtype`; the base's if None.

    Raises:
        RecipeError: nothing is left, or the family's code cannot express the result.
    """
    draft = draft_model(base, source, structure)
    model = _made(base, draft, {name: tensor.clone() for name, tensor in draft.tensors.items()})
    return Built(model, draft.plain, dtype)


def stored_dtype(loaded: Loaded, structure: Structure) -> torch.dtype:
    """The number type of a structure's checkpoint: the source's, unless some of its weights were computed anew."""
    return _dtype(loaded.model) if structure.computed else loaded.dtype


def readable_model(base: nn.Module, source: Architecture, structure: Structure) -> Any:
    """The edited model as it is measured, quantised weights included, to generate with. Weights that nothing changed
    are the base model's own: it is only to be read.

    Args:
        structure: with nothing left to compute.

    Raises:
        RecipeError: as `build_model`.
    """
    draft = draft_model(base, source, structure, quantised=True)
    return _made(base, draft, draft.tensors)


def _made(base: Any, draft: Draft, tensors: Tensors) -> Any:
    with quiet():
        tensors = {name: tensor.contiguous() for name, tensor in tensors.items()}
        model = draft.model_class.from_pretrained(None, config=draft.config, state_dict=tensors, dtype=_dtype(base))
    model.generation_config = copy.deepcopy(base.generation_config)
    return model.eval().requires_grad_(False)


def draft_model(base: nn.Module, source: Architecture, structure: Structure, quantised: bool = False) -> Draft:
    """Configuration, class and tensors of the edited model; tensors that nothing changed are the base model's own.

    Args:
        base: the loaded model, or a copy of it on the meta device.
        structure: as for `build_model`.
        quantised: give weights the values that they are stored with, instead of those before.

    Raises:
        RecipeError: as `build_model`.
    """
    if structure.compensations or structure.healing:
        raise ValueError("the structure's compensations have not been computed, or its healing not merged")
    structure = structure if quantised else structure.floating
    kept = structure.kept
    if not kept:
        raise RecipeError("The recipe removes every attention and every MLP: at least one must stay.")
    if getattr(base.config, "scale_attn_by_inverse_layer_idx", False):
        raise RecipeError(
            "This model scales attention by the number of the block (scale_attn_by_inverse_layer_idx), which changes "
            "when blocks move: it can be evaluated here but not built."
        )
    tensors = _tensors(base, source, structure, kept)
    with quiet():
        config = _plain_config(base, structure, kept)
        if config is not None and _holds(type(base), config, tensors):
            return Draft(config, type(base), tensors, True)
        mixed, model_class = _mixed_config(base, source, structure, kept, tensors)
        return Draft(mixed, model_class, tensors, False)


def _dtype(base: Any) -> torch.dtype:
    return next(base.parameters()).dtype


def _tensors(base: nn.Module, source: Architecture, structure: Structure, kept: tuple[BlockSpec, ...]) -> Tensors:
    """The state of the edited model, under the names of a model with that many blocks."""
    model = model_around(base, source, structure)
    inside = f"{source.block_list}."
    tensors = {name: tensor for name, tensor in model.state_dict().items() if not name.startswith(inside)}
    if source.tied and source.head not in dict(structure.outer):
        head, embeddings = f"{source.head}.weight", f"{source.embeddings}.weight"
        tensors[head] = tensors[embeddings]
    for position, spec in enumerate(kept):
        block = structure.architecture.blocks[spec.source]
        new = build_block(model.get_submodule(block.module), block, spec)
        for name, tensor in new.state_dict().items():
            if not name.startswith(_gone(block, spec)):
                tensors[f"{inside}{position}.{name}"] = tensor
    return tensors


def _gone(block: Block, spec: BlockSpec) -> tuple[str, ...]:
    """Prefixes of what serves a removed sublayer alone."""
    return tuple(
        f"{norm.module}."
        for part, left in (("attention", spec.attention), ("mlp", spec.mlp))
        if not left
        for norm in block.sublayer_norms(part)  # type: ignore[arg-type]
    )


def _renumbered(config: Any, kept: tuple[BlockSpec, ...]) -> dict[str, Any]:
    """The configuration's own entries, its lists with one entry a block in step with the blocks that stay."""
    entries = config.to_dict()
    count = config.num_hidden_layers
    for name, value in entries.items():
        if "layer" in name and isinstance(value, list) and len(value) == count:
            entries[name] = [value[spec.source] for spec in kept]
    for name in ("architectures", "auto_map", "per_layer_config", "dtype", "transformers_version", "model_type"):
        entries.pop(name, None)
    entries[config.attribute_map.get("num_hidden_layers", "num_hidden_layers")] = len(kept)
    return entries


def _plain_config(base: Any, structure: Structure, kept: tuple[BlockSpec, ...]) -> Any | None:
    """The family's own configuration with the new numbers; None where its rules refuse them."""
    config, first = base.config, kept[0]
    if family_of(config) is not None or not structure.uniform or _resized(structure, first):
        return None
    entries = _renumbered(config, kept) | _sizes(config, structure, first)
    try:
        return type(config)(**entries)
    except Exception:  # each family's validation has errors of its own; what it refuses is written per layer
        return None


def _resized(structure: Structure, spec: BlockSpec) -> bool:
    """Whether heads are gone from an attention that would take their size from what is left."""
    attention = structure.architecture.blocks[spec.source].attention
    return attention is not None and not attention.free_head_size and len(spec.query_heads) != attention.query_heads


def _sizes(config: Any, structure: Structure, spec: BlockSpec) -> dict[str, Any]:
    """Numbers of one block (and of the residual stream) under the configuration's names."""
    attention = structure.architecture.blocks[spec.source].attention
    sizes: dict[str, Any] = {}
    if structure.hidden is not None:
        sizes["hidden_size"] = len(structure.hidden)
    if spec.mlp:
        sizes[_width_name(config)] = len(spec.neurons)
    if attention is not None and spec.attention:
        sizes["num_attention_heads"] = len(spec.query_heads)
        if attention.groupable:
            sizes["num_key_value_heads"] = len(spec.kv_heads)
        if attention.free_head_size:
            sizes["head_dim"] = attention.head_size
    return {config.attribute_map.get(name, name): value for name, value in sizes.items()}


def _width_name(config: Any) -> str:
    return next(name for name in WIDTH_NAMES if name in config.to_dict())


def _holds(model_class: Any, config: Any, tensors: Tensors) -> bool:
    """Whether a model of that configuration has exactly these tensors, tried out without allocating any."""
    with torch.device("meta"):
        state = model_class(config).state_dict()
    return {name: t.shape for name, t in state.items()} == {name: t.shape for name, t in tensors.items()}


def _mixed_config(
    base: Any, source: Architecture, structure: Structure, kept: tuple[BlockSpec, ...], tensors: Tensors
) -> tuple[Any, Any]:
    """A configuration with a layer configuration for each block that differs, and the class that builds from it."""
    config = base.config
    before = family_of(config)
    family = before or config.model_type
    config_class, model_class = classes(family)
    overrides: dict[str, dict[str, Any]] = {}
    for position, spec in enumerate(kept):
        own = {
            name: value
            for name, value in _sizes(config, structure, spec).items()
            if name not in ("hidden_size", "head_dim")
        }
        skipped = [part for part, left in (("attention", spec.attention), ("mlp", spec.mlp)) if not left]
        overrides[str(position)] = own | ({"skip": skipped} if skipped else {})
    entries = _renumbered(config, kept)
    if structure.hidden is not None:
        entries["hidden_size"] = len(structure.hidden)
    attention = next((block.attention for block in source.blocks if block.attention is not None), None)
    if attention is not None and attention.free_head_size:
        entries["head_dim"] = attention.head_size
    entries["base_model_type"] = family
    entries["surgery"] = (dict(config.surgery) if before else places(source)) | {"biases": {}}
    made = config_class(**entries, per_layer_config=overrides)
    made.surgery["biases"] = _extra_biases(model_class, made, source.block_list, tensors)
    if not _holds(model_class, made, tensors):
        raise RecipeError(
            f"A checkpoint of the {family} family cannot express this recipe: change fewer kinds of parts."
        )
    return made, model_class


def _extra_biases(model_class: Any, config: Any, block_list: str, tensors: Tensors) -> dict[str, list[str]]:
    """Biases that a compensation added and that the family's own blocks lack, by position."""
    with torch.device("meta"):
        names = set(model_class(config).state_dict())
    found: dict[str, list[str]] = {}
    for name in sorted(set(tensors) - names):
        if name.startswith(f"{block_list}.") and name.endswith(".bias"):
            position, _, path = name.removeprefix(f"{block_list}.").removesuffix(".bias").partition(".")
            found.setdefault(position, []).append(path)
    return found
