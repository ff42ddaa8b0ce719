"""Weights as compressed-tensors packs them: how a linear is rounded to a grid, and the checkpoint that holds it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from surgery.checkpoints.save import SHARD
from surgery.errors import InputError
from surgery.quantization.gptq import gptq
from surgery.quantization.grid import Grid, Packed, round_to_nearest, scale_type_for
from surgery.quantization.quantizer import Encode, left_out
from surgery.recipe.storage import Quantize
from surgery.structure.structure import Codec

BITS = {"int8": 8, "int4": 4, "int3": 3, "int2": 2}


def encoder(edit: Quantize) -> Encode:
    """Each linear on a grid of its own: rounded to nearest, or by GPTQ where its inputs are known."""

    def encode(name: str, weight: torch.Tensor, h: torch.Tensor | None) -> Packed:
        grid = _grid(edit, weight, name)
        return round_to_nearest(weight, grid, name) if h is None else gptq(weight, h, grid, edit.act_order, name)

    return encode


def _grid(edit: Quantize, weight: torch.Tensor, name: str) -> Grid:
    if edit.type == "int4" and not edit.symmetric and len(weight) <= 8:
        # Of a single word of zero points a group, the library's unpacking of 4 bits trips over the strides.
        raise InputError(
            f"{name} has only {len(weight)} outputs, and compressed-tensors 0.20 cannot read 4-bit zero points of so "
            "few: choose symmetric, or another type."
        )
    return Grid(BITS[edit.type], edit.group_size, edit.symmetric, scale_type_for(weight.dtype))


def write(model: Any, codecs: Mapping[str, Codec], actorder: str | None, made: Path) -> dict[str, Any]:
    """Write weights packed by compressed-tensors, in place of the floating ones.

    Args:
        model: the floating model; not changed.
        codecs: of the quantised linears, by name.
        actorder: in which order GPTQ took the columns, in compressed-tensors' word; None for theirs.

    Returns:
        What config.json is to say besides.
    """
    packed = {name: codec for name, codec in codecs.items() if isinstance(codec, Packed)}
    state = dict(model.state_dict())
    for name, codec in packed.items():
        del state[f"{name}.weight"]
        state |= {f"{name}.{part}": tensor for part, tensor in packed_tensors(codec).items()}
    model.save_pretrained(made, state_dict=state, max_shard_size=SHARD)
    return {"quantization_config": packed_config(model, packed, actorder)}


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
        ignore=left_out(model, codecs),
    ).model_dump(mode="json")
    return config | {"dequantize": True}
