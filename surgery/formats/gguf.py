"""GGUF: one file for llama.cpp."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from surgery.common.progress import Report, silent
from surgery.formats.format import Shape, Sources, StorageFormat, WeightType

if TYPE_CHECKING:
    from threading import Event

    from surgery.gguf.mixes import Shared
    from surgery.gguf.plan import GgufPlan
    from surgery.structure.structure import Structure


class Gguf(StorageFormat):
    """llama.cpp's types and mixes of types; see `surgery.gguf`, whose `write` makes the file from a checkpoint."""

    name = "gguf"
    title = "GGUF (llama.cpp)"
    does = (
        "One file for llama.cpp and Ollama. Sizes are exact before anything is written; the perplexity is measured on "
        "weights that are encoded and read back by the same library that writes the file."
    )
    default_type = "Q4_K_M"
    settings = ("importance",)
    one_file = True
    runtime = "llama.cpp"

    def label(self, type_name: str) -> str:
        """GGUF's own name."""
        return type_name

    def check(self, structure: Structure, plan: Callable[[Structure], GgufPlan]) -> None:
        """Refuse what llama.cpp cannot run, see `StorageFormat.check`."""
        plan(structure)

    def weigh(
        self, kind: WeightType, shapes: Mapping[str, Shape], shared: Shared, floating: int
    ) -> tuple[dict[str, str], dict[str, int]]:
        """Every tensor in the type that the mix gives it, see `StorageFormat.weigh`."""
        from surgery.gguf.mixes import kinds
        from surgery.gguf.types import bytes_of

        chosen = kinds(shapes, kind.type, shared, kind.importance)
        types = {name: found.name for name, found in chosen.items()}
        return types, {name: bytes_of(shapes[name], chosen[name]) for name in shapes}

    def quantise(
        self, structure: Structure, sources: Sources, report: Report = silent, stop: Event | None = None
    ) -> Structure:
        """Give every tensor the codec of its type in the file, see `StorageFormat.quantise`."""
        from surgery.quantization.gguf_codecs import as_gguf

        edit = structure.quantize
        assert edit is not None  # asked only of structures with one
        moments = None if edit.text is None else sources.moments(structure, edit.text)
        return as_gguf(structure, sources.plan(structure), edit.type, moments)

    def read(self, folder: Path, file: str, adapter: str, config: Path, report: Report) -> tuple[Any, Any]:
        """The file's weights in a model of transformers, see `StorageFormat.read`."""
        from surgery.models.reload_gguf import load_file

        return load_file(folder / file, folder / adapter if adapter else None, config)
