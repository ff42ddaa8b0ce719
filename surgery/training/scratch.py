"""Buffers that are written over again: large tensors that are fetched from the system in every step cost time."""

from __future__ import annotations

import torch


class Scratch:
    """Buffers by name, for parts that work one after the other. What was taken is lost when it is taken again."""

    def __init__(self) -> None:
        self._buffers: dict[tuple[str, torch.dtype, torch.device], torch.Tensor] = {}

    def take(self, name: str, rows: int, columns: int, like: torch.Tensor) -> torch.Tensor:
        """A tensor (rows, columns) of any values, of the type and on the device of another one."""
        key = name, like.dtype, like.device
        known = self._buffers.get(key)
        if known is None or known.numel() < rows * columns:
            known = self._buffers[key] = torch.empty(rows * columns, dtype=like.dtype, device=like.device)
        return known[: rows * columns].view(rows, columns)
