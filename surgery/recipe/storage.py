"""The edit that stores weights in fewer bits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from pydantic import Field, model_validator

from surgery.recipe.base import TextReference, _Edit

GgufType = Literal[
    "F32", "F16", "Q8_0", "Q6_K", "Q5_K", "Q5_K_M", "Q5_K_S", "Q4_K", "Q4_K_M", "Q4_K_S", "Q3_K", "Q3_K_L", "Q3_K_M",
    "Q3_K_S", "Q2_K", "Q4_0", "IQ4_NL", "IQ4_XS", "IQ3_S", "IQ3_M", "MXFP4",
]  # fmt: skip


TorchaoType = Literal["int8", "int4"]
PackedType = Literal["int8", "int4", "int3", "int2"]
PackedFormat = Literal["torchao", "compressed-tensors"]
"""Formats of checkpoints whose linears are quantised."""
Format = Literal["gguf", PackedFormat]


@dataclass(frozen=True)
class Storable:
    """What a recipe may ask of a format. What else a format is stands in `surgery.formats`."""

    types: tuple[str, ...]
    """Names of its weight types."""
    importance: bool = False
    """Whether an importance matrix can weight its errors."""
    gptq: bool = False
    """Whether it can hold what GPTQ solves."""


STORABLE = {
    "gguf": Storable(get_args(GgufType), importance=True),
    "torchao": Storable(get_args(TorchaoType)),
    "compressed-tensors": Storable(get_args(PackedType), gptq=True),
}
"""By format."""


class Quantize(_Edit):
    """Store weights in fewer bits. `text` gives the importance matrix (GGUF) or the moments of the solver (GPTQ);
    without it neither is used.

    GGUF's types are llama.cpp's: those that end in _S, _M or _L and Q2_K mix types per tensor as `llama-quantize` does,
    Q3_K to Q5_K without an ending are the type alone. `group_size` is the number of neighbouring weights of a row that
    share a scale (None: the whole row), for torchao's int4 and compressed-tensors.
    """

    op: Literal["quantize"] = "quantize"
    format: Format = "gguf"
    type: str = Field(max_length=20)
    text: TextReference | None = None
    method: Literal["round_to_nearest", "gptq"] = "round_to_nearest"
    group_size: int | None = Field(default=None, ge=8, le=2**20)
    symmetric: bool = True
    act_order: bool = False
    """GPTQ: solve the columns of the largest input moment first."""
    true_sequential: bool = True
    """GPTQ: inside a block, solve each sublayer on what the quantised ones before it give."""

    @model_validator(mode="after")
    def _possible(self) -> Quantize:
        known = STORABLE[self.format]
        if self.type not in known.types:
            raise ValueError(f"{self.format} has no type {self.type!r}: choose {', '.join(known.types)}")
        if (self.method == "gptq") != (self.text is not None) and not known.importance:
            raise ValueError("gptq needs a text, and round_to_nearest uses none")
        if self.method == "gptq" and not known.gptq:
            solved = [name for name, other in STORABLE.items() if other.gptq]
            raise ValueError(f"gptq is stored as {' or '.join(solved)}: choose that format")
        return self
