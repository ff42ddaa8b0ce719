"""Quantised checkpoints that transformers reloads: compressed-tensors' packed integers, and torchao's types.

Both are safetensors. Embeddings, head and norms keep the model's own type.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from analysis.model.modules import shallow_copy
from surgery.calibration.sweep import Report
from surgery.checkpoints.build import Built
from surgery.checkpoints.save import SHARD, Saved, save_checkpoint
from surgery.common.progress import silent
from surgery.quantization.grid import Packed
from surgery.quantization.torchao import TorchaoCodec
from surgery.recipe.recipe import Recipe
from surgery.recipe.storage import Quantize
from surgery.structure.structure import Codec, Structure


def save_packed(
    built: Built, structure: Structure, tokenizer: Any, recipe: Recipe, out: Path, report: Report = silent
) -> Saved:
    """Write a quantised checkpoint as a new folder, which `from_pretrained` loads with the format's library alone.

    A low-rank repair is not part of it: see `surgery.checkpoints.adapter`.

    Args:
        built: the structure's floating model; not changed.
        structure: quantised by `surgery.quantization.quantizer`.
        tokenizer: travels along.
        recipe: travels along.
        out: the folder; written under a temporary name and renamed.
        report: progress; may raise to stop.

    Raises:
        InputError: the folder is in use, cannot be written, or the disk is full.
    """
    codecs = codecs_by_name(structure)
    kinds = {type(codec) for codec in codecs.values()}
    write: Callable[[Path], dict[str, Any]]
    if kinds == {Packed}:
        quantize = recipe.find(Quantize)
        actorder = "weight" if quantize is not None and quantize.act_order else None
        write = lambda made: _write_packed(built.model, codecs, actorder, made)  # type: ignore[arg-type]  # noqa: E731
    elif kinds == {TorchaoCodec}:
        write = lambda made: _write_torchao(built.model, codecs, made)  # type: ignore[arg-type]  # noqa: E731
    else:
        raise ValueError("the structure is not quantised as compressed-tensors or torchao")
    return save_checkpoint(built, tokenizer, recipe, out, report, write)


def codecs_by_name(structure: Structure) -> dict[str, Codec]:
    """Codecs of the blocks' linears by their names in the checkpoint."""
    inside = structure.architecture.block_list
    kept = structure.kept
    return {f"{inside}.{place}.{path}": codec for place, spec in enumerate(kept) for path, codec in spec.codecs}


def _write_packed(model: Any, codecs: dict[str, Packed], actorder: str | None, made: Path) -> dict[str, Any]:
    """Weights packed by compressed-tensors, in place of the floating ones."""
    state = dict(model.state_dict())
    for name, codec in codecs.items():
        del state[f"{name}.weight"]
        state |= {f"{name}.{part}": tensor for part, tensor in packed_tensors(codec).items()}
    model.save_pretrained(made, state_dict=state, max_shard_size=SHARD)
    return {"quantization_config": packed_config(model, codecs, actorder)}


def packed_tensors(codec: Packed) -> dict[str, torch.Tensor]:
    """A weight's tensors in the format "pack-quantized", by what stands behind the linear's name."""
    from compressed_tensors.compressors.pack_quantized.helpers import pack_to_int32

    bits = codec.grid.bits
    tensors = {
        "weight_packed": pack_to_int32(codec.codes, bits),
        "weight_scale": codec.scales,
        "weight_shape": torch.tensor(codec.codes.shape),
    }
    if not codec.grid.symmetric:
        tensors["weight_zero_point"] = pack_to_int32(codec.zeros, bits, packed_dim=0)
    return tensors


def packed_config(model: nn.Module, codecs: dict[str, Packed], actorder: str | None = None) -> dict[str, Any]:
    """The `quantization_config` of config.json: one scheme for all linears but those that are left out.

    It asks transformers to multiply the weights out while it loads. Otherwise that is done before the first forward
    pass, and until then PEFT finds no weight to stand beside; and zero points would not load at all, since
    compressed-tensors 0.20 makes room for unpacked ones.
    """
    from compressed_tensors.quantization import QuantizationArgs, QuantizationConfig, QuantizationScheme

    (grid,) = {codec.grid for codec in codecs.values()}
    arguments = QuantizationArgs(
        num_bits=grid.bits,
        symmetric=grid.symmetric,
        strategy="group" if grid.group_size else "channel",
        group_size=grid.group_size,
        actorder=actorder,
    )
    layout = "pack-quantized"
    scheme = QuantizationScheme(targets=["Linear"], weights=arguments, format=layout)
    config: dict[str, Any] = QuantizationConfig(
        config_groups={"group_0": scheme},
        format=layout,
        quantization_status="compressed",
        ignore=_left_out(model, codecs),
    ).model_dump(mode="json")
    return config | {"dequantize": True}


def _left_out(model: nn.Module, codecs: Mapping[str, Codec]) -> list[str]:
    """Linears that are not quantised: the head, and what a family has around its blocks."""
    return [name for name, part in model.named_modules() if isinstance(part, nn.Linear) and name not in codecs]


def _write_torchao(model: Any, codecs: dict[str, TorchaoCodec], made: Path) -> dict[str, Any]:
    """Weights quantised by torchao, in a copy of the model that shares everything else."""
    from transformers import TorchAoConfig
    from transformers.quantizers import AutoHfQuantizer

    copied: Any = shallow_copy(model)
    for name, codec in codecs.items():
        linear = copied.get_submodule(name)
        linear._parameters["weight"] = codec.quantised(linear.weight)
    (codec,) = set(codecs.values())
    copied.config = copy.deepcopy(model.config)
    copied.config.quantization_config = TorchAoConfig(codec.config(), modules_to_not_convert=_left_out(model, codecs))
    copied.hf_quantizer = AutoHfQuantizer.from_config(copied.config.quantization_config, pre_quantized=True)
    copied.save_pretrained(made, max_shard_size=SHARD)
    return {}
