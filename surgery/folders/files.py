"""A checkpoint folder without the model: its configuration, and its tensors one at a time."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from surgery.errors import QuantisedCheckpoint, UnknownModel
from surgery.folders.folder import Folder
from surgery.folders.modeling import as_built


class CheckpointFiles(Folder):
    """The files of one checkpoint folder, plain or non-uniform, whose weights are floating point.

    Raises:
        UnknownModel: no such directory, or no config.json in it.
        CorruptFile: a file is damaged or absent.
    """

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        if not self.has("config.json"):
            raise UnknownModel(
                f"The folder {str(directory)[:200]!r} has no config.json: give a folder that `build` or "
                "save_pretrained wrote."
            )
        self.config: dict[str, Any] = as_built(self.json("config.json"))
        _ = self.tensors  # refused here where they are absent

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


class PlannedCheckpoint(CheckpointFiles):
    """A checkpoint directory that is not there: everything but the values.

    Args:
        folder: holds the tokenizer's files.
        config: what config.json would say.
        shapes: of the tensors, by name.
        plain: whether transformers would load it without further code.
    """

    def __init__(self, folder: Path, config: dict[str, Any], shapes: dict[str, tuple[int, ...]], plain: bool) -> None:
        Folder.__init__(self, folder)
        self.config = as_built(config)
        self.plain = plain
        self.__dict__["shapes"] = {name: shapes[name] for name in sorted(shapes)}

    @property
    def names(self) -> list[str]:
        """Names of all tensors, sorted."""
        return list(self.shapes)

    def read(self, name: str) -> np.ndarray:
        """There are no values."""
        raise ValueError(f"{name} of a planned checkpoint has no values")
