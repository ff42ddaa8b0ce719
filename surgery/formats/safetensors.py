"""Plain safetensors: a checkpoint in floating point."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

from surgery.common.progress import Report, silent
from surgery.formats.format import Shape, Sources, StorageFormat, WeightType

if TYPE_CHECKING:
    from threading import Event

    from surgery.gguf.mixes import Shared
    from surgery.structure.structure import Structure


class Safetensors(StorageFormat):
    """Weights as they are. No recipe asks for it: it is what there is without a quantisation."""

    name = "safetensors"
    title = "As they are"
    does = "Nothing is quantised: the weights stay in the type that the model was loaded in."
    default_type = "F16"

    @property
    def types(self) -> tuple[str, ...]:
        """Number types that sizes are told for."""
        return "F32", "F16"

    def weigh(
        self, kind: WeightType, shapes: Mapping[str, Shape], shared: Shared, floating: int
    ) -> tuple[dict[str, str], dict[str, int]]:
        """Every value in the same type, see `StorageFormat.weigh`."""
        return {}, {name: prod(shape) * kind.bits // 8 for name, shape in shapes.items()}

    def quantise(
        self, structure: Structure, sources: Sources, report: Report = silent, stop: Event | None = None
    ) -> Structure:
        """The structure itself."""
        return structure

    def read(self, folder: Path, file: str, adapter: str, config: Path, report: Report) -> tuple[Any, Any]:
        """As any checkpoint is loaded, see `StorageFormat.read`."""
        from surgery.models.loading import load

        loaded = load(str(folder), progress=report)
        return loaded.model, loaded.tokenizer
