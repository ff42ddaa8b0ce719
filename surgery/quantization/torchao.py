"""Weights as torchao stores them: int8 with a scale a row, int4 with a scale a group, both weight-only."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from analysis.model.modules import shallow_copy
from surgery.checkpoints.save import SHARD
from surgery.errors import InputError
from surgery.quantization.grid import check_groups
from surgery.quantization.quantizer import Encode, left_out
from surgery.recipe.storage import Quantize
from surgery.structure.structure import Codec


@dataclass(frozen=True)
class TorchaoCodec:
    """A `surgery.structure.structure.Codec` whose numbers are torchao's own: it quantises the weight and reads it back.

    int4 is torchao's intx type, the only one with a path on the CPU; it keeps one code in each byte of the file.
    """

    type: str
    group_size: int | None = None
    """Neighbours of a row that share a scale (int4); None: the whole row."""
    symmetric: bool = True

    @classmethod
    def of(cls, edit: Quantize) -> TorchaoCodec:
        """The codec that an edit asks for. Raises InputError: torchao has no such weights."""
        if edit.type == "int8" and (edit.group_size is not None or not edit.symmetric):
            raise InputError("torchao's int8 is symmetric with one scale a row: leave the group size and symmetry out.")
        return cls(edit.type, edit.group_size, edit.symmetric)

    @property
    def key(self) -> str:
        """Identity of the stored form."""
        return f"torchao {self.type} {self.group_size} {self.symmetric}"

    def check(self, inputs: int, name: str) -> None:
        """Raise InputError for rows that groups do not divide, or of a single weight."""
        check_groups({name: inputs}, self.group_size)
        if inputs == 1:
            raise InputError(
                f"{name} has rows of a single weight, which torchao 0.18 cannot store: keep two inputs, or choose "
                "compressed-tensors."
            )

    def config(self) -> Any:
        """torchao's own description."""
        from torchao.quantization import Int8WeightOnlyConfig, IntxWeightOnlyConfig, MappingType
        from torchao.quantization.granularity import PerAxis, PerGroup

        if self.type == "int8":
            return Int8WeightOnlyConfig()
        granularity = PerAxis(0) if self.group_size is None else PerGroup(self.group_size)
        mapping = MappingType.SYMMETRIC if self.symmetric else MappingType.ASYMMETRIC
        return IntxWeightOnlyConfig(weight_dtype=torch.int4, granularity=granularity, mapping_type=mapping)  # type: ignore[attr-defined]

    def quantised(self, weight: torch.Tensor) -> Any:
        """torchao's tensor of a weight (outputs, inputs)."""
        from torchao.quantization import quantize_

        linear = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
        linear.weight = nn.Parameter(weight.detach().clone(), requires_grad=False)
        quantize_(linear, self.config())
        return linear.weight

    def apply(self, weight: torch.Tensor) -> torch.Tensor:
        """The weight (outputs, inputs) as it reads back, of the same shape, type and device."""
        return self.quantised(weight).dequantize().to(weight.dtype)


def encoder(edit: Quantize) -> Encode:
    """The edit's codec, for every linear whose rows its groups divide.

    Raises:
        InputError: torchao has no such weights.
    """
    codec = TorchaoCodec.of(edit)

    def encode(name: str, weight: torch.Tensor, h: torch.Tensor | None) -> TorchaoCodec:
        codec.check(weight.shape[1], name)
        return codec

    return encode


def write(model: Any, codecs: Mapping[str, Codec], made: Path) -> dict[str, Any]:
    """Write weights quantised by torchao, from a copy of the model that shares everything else.

    Args:
        model: the floating model; not changed.
        codecs: of the quantised linears, by name; all the same.

    Returns:
        What config.json is to say besides: nothing.
    """
    from transformers import TorchAoConfig
    from transformers.quantizers import AutoHfQuantizer

    copied: Any = shallow_copy(model)
    (codec,) = {codec for codec in codecs.values() if isinstance(codec, TorchaoCodec)}
    for name in codecs:
        linear = copied.get_submodule(name)
        linear._parameters["weight"] = codec.quantised(linear.weight)
    copied.config = copy.deepcopy(model.config)
    copied.config.quantization_config = TorchAoConfig(codec.config(), modules_to_not_convert=left_out(model, codecs))
    copied.hf_quantizer = AutoHfQuantizer.from_config(copied.config.quantization_config, pre_quantized=True)
    copied.save_pretrained(made, max_shard_size=SHARD)
    return {}
