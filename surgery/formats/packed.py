"""What the formats of quantised checkpoints have in common. Embeddings, head and norms keep the model's own type."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

from surgery.common.progress import Report, silent
from surgery.formats.format import Shape, Sources, StorageFormat, WeightType
from surgery.recipe.storage import Quantize

if TYPE_CHECKING:
    from threading import Event

    from surgery.checkpoints.build import Built
    from surgery.checkpoints.save import Saved
    from surgery.gguf.mixes import Shared
    from surgery.quantization.quantizer import Encode
    from surgery.recipe.recipe import Recipe
    from surgery.structure.structure import Codec, Structure


class PackedFormat(StorageFormat):
    """Checkpoints that transformers loads with the format's library: safetensors whose linears are quantised."""

    @abstractmethod
    def matrix_bytes(self, kind: WeightType, outputs: int, inputs: int, floating: int) -> int:
        """Bytes of one quantised matrix, scales and zero points included.

        Args:
            floating: bytes of a number that stays in floating point.
        """

    @abstractmethod
    def encoder(self, edit: Quantize) -> Encode:
        """How a linear is stored, given its name and weight. Raises InputError: the format has no such weights."""

    @abstractmethod
    def write(self, model: Any, codecs: Mapping[str, Codec], edit: Quantize, made: Path) -> dict[str, Any]:
        """Write weights and config.json into a folder, and return what config.json is to say besides.

        Args:
            model: the floating model; not changed.
            codecs: of the quantised linears, by name.
        """

    def weigh(
        self, kind: WeightType, shapes: Mapping[str, Shape], shared: Shared, floating: int
    ) -> tuple[dict[str, str], dict[str, int]]:
        """Matrices of blocks quantised, the rest in floating point, see `StorageFormat.weigh`."""
        return {}, {
            name: self.matrix_bytes(kind, *shape, floating)
            if len(shape) == 2 and name.startswith("blk.")
            else prod(shape) * floating
            for name, shape in shapes.items()
        }

    def quantise(
        self, structure: Structure, sources: Sources, report: Report = silent, stop: Event | None = None
    ) -> Structure:
        """Quantise the linears of every block, see `StorageFormat.quantise`."""
        from surgery.quantization.quantizer import quantise

        edit = structure.quantize
        assert edit is not None  # asked only of structures with one
        windows = sources.windows(edit.text) if edit.text is not None else None
        return quantise(sources.runner, structure, self.encoder(edit), windows, report, stop)

    def save(
        self, built: Built, structure: Structure, tokenizer: Any, recipe: Recipe, out: Path, report: Report = silent
    ) -> Saved:
        """Write a quantised checkpoint, which `from_pretrained` loads with the format's library alone."""
        from surgery.checkpoints.save import save_checkpoint
        from surgery.quantization.quantizer import codecs_by_name

        edit, codecs = recipe.find(Quantize), codecs_by_name(structure)
        if edit is None or not codecs:
            raise ValueError("the structure is not quantised")
        return save_checkpoint(
            built, tokenizer, recipe, out, report, lambda made: self.write(built.model, codecs, edit, made)
        )

    def read(self, folder: Path, file: str, adapter: str, config: Path, report: Report) -> tuple[Any, Any]:
        """By transformers and the format's own library, see `StorageFormat.read`."""
        from surgery.checkpoints.packed import load_packed

        return load_packed(folder, folder / adapter if adapter else None)
