"""torchao: weight-only integers that transformers loads with torchao."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import ceil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from surgery.formats.format import WeightType
from surgery.formats.packed import PackedFormat
from surgery.recipe.storage import Quantize

if TYPE_CHECKING:
    from surgery.gguf.plan import GgufPlan
    from surgery.quantization.quantizer import Encode
    from surgery.structure.structure import Codec, Structure


class Torchao(PackedFormat):
    """int8 with a scale a row, int4 with a scale a group; the numbers are torchao's own."""

    name = "torchao"
    library = "torchao"
    title = "torchao (transformers)"
    does = "Integer weights that transformers loads with torchao. Embeddings and head stay as they are."
    default_type = "int8"
    settings = ("group_size",)

    def settings_of(self, type_name: str) -> tuple[str, ...]:
        """int8 has one scale a row."""
        return () if type_name == "int8" else self.settings

    def notes(self, type_name: str) -> tuple[str, ...]:
        """int4 is no smaller than int8."""
        if type_name != "int4":
            return ()
        return ("torchao keeps each of its int4 values in a byte on a CPU: int4 takes no less than int8 here.",)

    def matrix_bytes(self, kind: WeightType, outputs: int, inputs: int, floating: int) -> int:
        """A byte a value, int4 too; zero points are stored even where all are zero."""
        groups = ceil(inputs / (kind.group_size or inputs))
        return outputs * inputs + outputs * groups * (floating + 1)

    def check(self, structure: Structure, plan: Callable[[Structure], GgufPlan]) -> None:
        """Refuse settings and rows that torchao does not know, see `StorageFormat.check`."""
        from surgery.quantization.quantizer import row_lengths
        from surgery.quantization.torchao import TorchaoCodec

        super().check(structure, plan)
        assert structure.quantize is not None  # asked only of structures with one
        codec = TorchaoCodec.of(structure.quantize)
        for name, inputs in row_lengths(structure).items():
            codec.check(inputs, name)

    def encoder(self, edit: Quantize) -> Encode:
        """The same codec for every linear, see `PackedFormat.encoder`."""
        from surgery.quantization.torchao import encoder

        return encoder(edit)

    def write(self, model: Any, codecs: Mapping[str, Codec], edit: Quantize, made: Path) -> dict[str, Any]:
        """By torchao's own tensors, see `PackedFormat.write`."""
        from surgery.quantization.torchao import write

        return write(model, codecs, made)
