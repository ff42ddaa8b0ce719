"""Reading a checkpoint directory without building the model: its configuration, and its tensors one at a time."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from surgery.errors import QuantisedCheckpoint, UnknownModel
from surgery.models.folder import INDEX, LARGEST_JSON, SINGLE, Folder
from surgery.models.from_checkpoint import understood

__all__ = ["INDEX", "LARGEST_JSON", "SINGLE", "CheckpointFiles"]


class CheckpointFiles(Folder):
    """The files of one checkpoint directory, plain or non-uniform, once they are understood as they are for loading.

    Raises:
        UnknownModel: no such directory, or no config.json in it.
        CorruptFile: a file is damaged or absent, or settings and tensors do not belong together.
        QuantisedCheckpoint: the weights are not floating point.
        InputError: what else keeps a model from being loaded.
    """

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        if not self.has("config.json"):
            raise UnknownModel(
                f"The folder {str(directory)[:200]!r} has no config.json: give a folder that `build` or "
                "save_pretrained wrote."
            )
        source = understood(self)
        _ = self.tensors  # refused here where they are absent
        source.check_held()
        self.config: dict[str, Any] = self.json("config.json") | source.changes

    @property
    def names(self) -> list[str]:
        """Names of all tensors, sorted."""
        return list(self.tensors)

    @property
    def family(self) -> str:
        """The model type whose names and fields the checkpoint uses."""
        return str(self.config.get("base_model_type") or self.config.get("model_type"))

    @cached_property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of every tensor, from the file headers."""
        return {name: stored.shape for name, stored in self.tensors.items()}

    def read(self, name: str) -> np.ndarray:
        """One tensor as float32, a copy in memory of its own."""
        import torch

        with self.opened(self.tensors[name].file) as handle:
            tensor = handle.get_tensor(name)
        if not tensor.is_floating_point():
            raise QuantisedCheckpoint(f"{name} is stored as {tensor.dtype}: export the unquantised checkpoint instead.")
        array: np.ndarray = tensor.to(torch.float32).numpy()
        return array
