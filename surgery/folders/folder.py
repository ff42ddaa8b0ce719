"""The files of a checkpoint folder: its JSON, and what the headers of its weights say of every tensor."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from analysis.files import check_folder
from surgery.errors import CorruptFile, brief

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
LARGEST_JSON = 256 * 2**20
"""Bytes of a JSON file that are read; the largest tokenizers have some tens of MiB."""


@dataclass(frozen=True)
class Stored:
    """One tensor as a header announces it."""

    file: str
    dtype: str
    """As safetensors writes it: `F32`, `BF16`, ..."""
    shape: tuple[int, ...]


class Folder:
    """A checkpoint folder, of which nothing but headers and JSON is read until a tensor is asked for.

    Args:
        directory: the folder.
        name: how errors name it; the folder's own name if empty.
        remote: whether it is a snapshot of the Hub id `name`.
    """

    def __init__(self, directory: Path, name: str = "", remote: bool = False) -> None:
        check_folder(directory)
        self.directory = directory
        self.name = name or directory.name
        self.remote = remote

    def has(self, name: str) -> bool:
        """Whether the folder has that file."""
        return (self.directory / name).is_file()

    def json(self, name: str) -> dict[str, Any]:
        """A JSON object file of the folder. Raises CorruptFile: absent, unreadable, or not a JSON object."""
        path = self.directory / name
        try:
            if path.stat().st_size > LARGEST_JSON:
                raise ValueError("it is too large")
            document = json.loads(path.read_text("utf-8"))
        except OSError as error:
            raise CorruptFile(f"{name} of {self.name} cannot be read ({error.strerror}): write it again.") from None
        except (ValueError, RecursionError) as error:
            raise CorruptFile(
                f"{name} of {self.name} is not valid JSON ({str(error)[:80]}): write the checkpoint again."
            ) from None
        if not isinstance(document, dict):
            raise CorruptFile(f"{name} of {self.name} is not a JSON object: write the checkpoint again.")
        return document

    def settings(self, name: str) -> dict[str, Any]:
        """The same, empty where the folder has no such file."""
        return self.json(name) if self.has(name) else {}

    @property
    def has_weights(self) -> bool:
        """Whether there are safetensors weights, whole or not."""
        return self.has(SINGLE) or self.has(INDEX)

    @cached_property
    def tensors(self) -> dict[str, Stored]:
        """Every tensor by name, sorted: those of model.safetensors where that is there, else those of the index.

        transformers takes them in the same order. An index that lies beside a single file is not read.

        Raises:
            CorruptFile: a file is absent or damaged, or no tensor is where the index says.
        """
        if self.has(SINGLE):
            found = self._headers(SINGLE)
        elif self.has(INDEX):
            found = self._indexed(self.json(INDEX).get("weight_map"))
        else:
            raise CorruptFile(
                f"{self.name} has no {SINGLE} (pickled weights are never loaded): convert its weights to safetensors."
            )
        return dict(sorted(found.items()))

    def _indexed(self, places: Any) -> dict[str, Stored]:
        if not isinstance(places, dict) or not all(Path(str(file)).name == file for file in places.values()):
            raise CorruptFile(f"{INDEX} of {self.name} has no weight map: write the checkpoint again.")
        held = {file: self._headers(file) for file in sorted(set(places.values()))}
        for name, file in places.items():
            if name not in held[file]:
                raise CorruptFile(f"{file} of {self.name} lacks {name}, which its index names: download it again.")
        return {name: stored for tensors in held.values() for name, stored in tensors.items()}

    def _headers(self, file: str) -> dict[str, Stored]:
        with self.opened(file) as handle:
            views = ((name, handle.get_slice(name)) for name in handle.keys())  # noqa: SIM118
            return {name: Stored(file, view.get_dtype(), tuple(view.get_shape())) for name, view in views}

    @contextmanager
    def opened(self, file: str) -> Iterator[Any]:
        """A safetensors file of the folder, open for reading. Raises CorruptFile: absent or damaged."""
        if not self.has(file):
            raise CorruptFile(f"{self.name} has no whole set of safetensors weights ({file} is absent): download it.")
        try:
            with safe_open(self.directory / file, framework="pt") as handle:
                yield handle
        except (SafetensorError, OSError) as error:
            raise CorruptFile(f"{file} of {self.name} cannot be read ({brief(error)}): download it again.") from None
