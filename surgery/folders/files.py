"""Reading a checkpoint directory without building the model: its configuration, and its tensors one at a time."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open

from analysis.files import check_folder
from surgery.errors import CorruptFile, QuantisedCheckpoint, UnknownModel, brief
from surgery.folders.modeling import as_built

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
LARGEST_JSON = 256 * 2**20
"""Bytes of a JSON file that are read; the largest tokenizers have some tens of MiB."""


class CheckpointFiles:
    """The files of one checkpoint directory, plain or non-uniform.

    Raises:
        UnknownModel: no such directory, or no config.json in it.
        CorruptFile: a file is damaged or absent.
        QuantisedCheckpoint: the weights are not floating point.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        check_folder(directory)
        if not (directory / "config.json").is_file():
            raise UnknownModel(
                f"The folder {str(directory)[:200]!r} has no config.json: give a folder that `build` or "
                "save_pretrained wrote."
            )
        self.config: dict[str, Any] = as_built(self.json("config.json"))
        if self.config.get("quantization_config"):
            raise QuantisedCheckpoint(f"{directory.name} is quantised: export the unquantised checkpoint instead.")
        self._files = self._locate()

    @property
    def names(self) -> list[str]:
        """Names of all tensors, sorted."""
        return sorted(self._files)

    @property
    def family(self) -> str:
        """The model type whose names and fields the checkpoint uses."""
        return str(self.config.get("base_model_type") or self.config.get("model_type"))

    @cached_property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of every tensor, from the file headers."""
        found: dict[str, tuple[int, ...]] = {}
        for file in sorted(set(self._files.values())):
            with self._opened(file) as handle:
                found |= {name: tuple(handle.get_slice(name).get_shape()) for name in handle.keys()}  # noqa: SIM118
        return {name: found[name] for name in self.names}

    def read(self, name: str) -> np.ndarray:
        """One tensor as float32, a copy in memory of its own."""
        import torch

        with self._opened(self._files[name]) as handle:
            tensor = handle.get_tensor(name)
        if not tensor.is_floating_point():
            raise QuantisedCheckpoint(f"{name} is stored as {tensor.dtype}: export the unquantised checkpoint instead.")
        array: np.ndarray = tensor.to(torch.float32).numpy()
        return array

    def has(self, name: str) -> bool:
        """Whether the directory has that file."""
        return (self.directory / name).is_file()

    def json(self, name: str) -> dict[str, Any]:
        """A JSON object file of the directory. Raises CorruptFile: absent, unreadable, or not a JSON object."""
        path = self.directory / name
        try:
            if path.stat().st_size > LARGEST_JSON:
                raise ValueError("it is too large")
            document = json.loads(path.read_text("utf-8"))
        except OSError as error:
            raise CorruptFile(f"{path.name} of {self.directory.name} cannot be read ({error.strerror}).") from None
        except (ValueError, RecursionError) as error:
            raise CorruptFile(
                f"{path.name} of {self.directory.name} is not valid JSON ({str(error)[:80]}): write the "
                "checkpoint again."
            ) from None
        if not isinstance(document, dict):
            raise CorruptFile(f"{path.name} of {self.directory.name} is not a JSON object: write the checkpoint again.")
        return document

    def _locate(self) -> dict[str, str]:
        """File of every tensor."""
        if self.has(INDEX):
            weights = self.json(INDEX).get("weight_map")
            if isinstance(weights, dict) and all(Path(str(file)).name == file for file in weights.values()):
                return dict(weights)
            raise CorruptFile(f"{INDEX} of {self.directory.name} has no weight map: write the checkpoint again.")
        if not self.has(SINGLE):
            raise CorruptFile(f"{self.directory.name} has no {SINGLE}: convert its weights to safetensors.")
        with self._opened(SINGLE) as handle:
            return dict.fromkeys(handle.keys(), SINGLE)

    @contextmanager
    def _opened(self, file: str) -> Iterator[Any]:
        try:
            with safe_open(self.directory / file, framework="pt") as handle:
                yield handle
        except (SafetensorError, OSError) as error:
            raise CorruptFile(
                f"{file} of {self.directory.name} cannot be read ({brief(error)}): write it again."
            ) from None


class PlannedCheckpoint(CheckpointFiles):
    """A checkpoint directory that is not there: everything but the values.

    Args:
        folder: holds the tokenizer's files.
        config: what config.json would say.
        shapes: of the tensors, by name.
        plain: whether transformers would load it without further code.
    """

    def __init__(self, folder: Path, config: dict[str, Any], shapes: dict[str, tuple[int, ...]], plain: bool) -> None:
        self.directory = folder
        self.config = config
        self.plain = plain
        self.__dict__["shapes"] = {name: shapes[name] for name in sorted(shapes)}

    @property
    def names(self) -> list[str]:
        """Names of all tensors, sorted."""
        return list(self.shapes)

    def read(self, name: str) -> np.ndarray:
        """There are no values."""
        raise ValueError(f"{name} of a planned checkpoint has no values")
