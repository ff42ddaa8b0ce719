"""compressed-tensors: packed integers that transformers and vLLM read."""

from __future__ import annotations

from collections.abc import Mapping
from math import ceil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from surgery.formats.format import WeightType
from surgery.formats.packed import PackedFormat
from surgery.recipe.storage import Quantize

if TYPE_CHECKING:
    from surgery.quantization.quantizer import Encode
    from surgery.structure.structure import Codec

WORD = 32
SCALE_BYTES = 2
"""Of a packed weight's scales (see `surgery.quantization.grid.Grid`)."""
SHAPE_BYTES = 16
"""The shape of each packed weight is kept, two 64-bit numbers."""


class CompressedTensors(PackedFormat):
    """2 to 8 bits, rounded to nearest or by GPTQ."""

    name = title = "compressed-tensors"
    library = "compressed-tensors"
    does = (
        "Packed integers with a scale for each group of a row, read by transformers and vLLM. GPTQ spreads each "
        "rounding error over the weights that come after it, on the calibration text. Embeddings and head stay as they "
        "are."
    )
    default_type = "int4"
    settings = ("method", "group_size", "symmetric", "act_order")

    def notes(self, type_name: str) -> tuple[str, ...]:
        """What transformers needs while it loads."""
        return (
            "transformers multiplies these weights out while it loads them and then needs what they take in floating "
            "point; a runtime that computes on packed weights, such as vLLM, needs what is shown.",
        )

    def matrix_bytes(self, kind: WeightType, outputs: int, inputs: int, floating: int) -> int:
        """Codes and zero points in 32-bit words, scales of two bytes, and the shape."""
        groups = ceil(inputs / (kind.group_size or inputs))
        size = outputs * (4 * ceil(inputs * kind.bits / WORD) + groups * SCALE_BYTES) + SHAPE_BYTES
        return size if kind.symmetric else size + groups * 4 * ceil(outputs * kind.bits / WORD)

    def encoder(self, edit: Quantize) -> Encode:
        """A grid for each linear, see `PackedFormat.encoder`."""
        from surgery.quantization.compressed_tensors import encoder

        return encoder(edit)

    def write(self, model: Any, codecs: Mapping[str, Codec], edit: Quantize, made: Path) -> dict[str, Any]:
        """Packed tensors in place of the floating ones, see `PackedFormat.write`."""
        from surgery.quantization.compressed_tensors import write

        return write(model, codecs, "weight" if edit.act_order else None, made)
