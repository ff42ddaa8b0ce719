"""The edit that stores weights in fewer bits."""

from __future__ import annotations

from typing import Literal, get_args

from pydantic import Field, model_validator

from surgery.recipe.base import TextReference, _Edit

GgufType = Literal[
    "F32", "F16", "Q8_0", "Q6_K", "Q5_K", "Q5_K_M", "Q5_K_S", "Q4_K", "Q4_K_M", "Q4_K_S", "Q3_K", "Q3_K_L", "Q3_K_M",
    "Q3_K_S", "Q2_K", "Q4_0", "IQ4_NL", "IQ4_XS", "IQ3_S", "IQ3_M", "MXFP4",
]  # fmt: skip


TorchaoType = Literal["int8", "int4"]


PackedType = Literal["int8", "int4", "int3", "int2"]


TYPES_OF = {"gguf": get_args(GgufType), "torchao": get_args(TorchaoType), "compressed-tensors": get_args(PackedType)}
"""Weight types by format."""


class Quantize(_Edit):
    """Store weights in fewer bits. `text` gives the importance matrix (GGUF) or the moments of the solver (GPTQ);
    without it neither is used.

    GGUF's types are llama.cpp's: those that end in _S, _M or _L and Q2_K mix types per tensor as `llama-quantize` does,
    Q3_K to Q5_K without an ending are the type alone. `group_size` is the number of neighbouring weights of a row that
    share a scale (None: the whole row), for torchao's int4 and compressed-tensors.
    """

    op: Literal["quantize"] = "quantize"
    format: Literal["gguf", "torchao", "compressed-tensors"] = "gguf"
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
        known = TYPES_OF[self.format]
        if self.type not in known:
            raise ValueError(f"{self.format} has no type {self.type!r}: choose {', '.join(known)}")
        if (self.method == "gptq") != (self.text is not None) and self.format != "gguf":
            raise ValueError("gptq needs a text, and round_to_nearest uses none")
        if self.format != "compressed-tensors" and self.method == "gptq":
            raise ValueError("gptq is stored as compressed-tensors: choose that format")
        return self
