"""A store of states by block and window: in memory up to a limit, in a temporary file beyond it."""

from __future__ import annotations

import tempfile
from typing import IO, Any, Self

import torch

from analysis.errors import InputError

MEMORY = 512 * 2**20
"""Bytes of states that stay in memory."""


class States:
    """States of one shape by (slot, window); each pair can be overwritten by another of the same size."""

    def __init__(self) -> None:
        self._memory: dict[tuple[int, int], torch.Tensor] = {}
        self._used = 0
        self._places: dict[tuple[int, int], tuple[int, torch.dtype, torch.Size]] = {}
        self._file: IO[bytes] | None = None
        self._end = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: Any) -> None:
        self._memory.clear()
        if self._file is not None:
            self._file.close()

    def write(self, slot: int, window: int, state: torch.Tensor) -> None:
        """Keep a state, in the place of the pair's earlier one. Raises InputError: the disk has no room for it."""
        key, size = (slot, window), state.numel() * state.element_size()
        if key in self._memory or (key not in self._places and self._used + size <= MEMORY):
            self._used += size if key not in self._memory else 0
            self._memory[key] = state.detach().cpu()
            return
        place = self._places.get(key, (self._end, state.dtype, state.shape))
        self._end = max(self._end, place[0] + size)
        self._places[key] = (place[0], state.dtype, state.shape)
        try:
            if self._file is None:
                self._file = tempfile.TemporaryFile(buffering=0)  # noqa: SIM115 (closed by __exit__)
            self._file.seek(place[0])
            flat: Any = state.detach().cpu().contiguous().flatten().view(torch.uint8).numpy()
            content = memoryview(flat)
            while content:  # an unbuffered write may take only a part
                content = content[self._file.write(content) :]
        except OSError as error:
            raise InputError(
                f"The states of this text do not fit the disk's temporary folder ({error.strerror}): use fewer windows."
            ) from error

    def read(self, slot: int, window: int) -> torch.Tensor:
        """The pair's state, on the CPU, a tensor that shares nothing with what is kept."""
        known = self._memory.get((slot, window))
        if known is not None:
            return known.clone()
        assert self._file is not None
        offset, dtype, shape = self._places[(slot, window)]
        content = bytearray(shape.numel() * dtype.itemsize)
        self._file.seek(offset)
        view = memoryview(content)
        while view:
            view = view[self._file.readinto(view) :]  # type: ignore[attr-defined]
        return torch.frombuffer(content, dtype=dtype).view(shape)
