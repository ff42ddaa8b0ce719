"""The teacher, the dense model: its last states in memory, its likeliest words on disk, its continuations."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from analysis.model.runner import Runner
from analysis.text import Windows
from surgery.common.cache import ByteCache
from surgery.common.files import cache_directory
from surgery.errors import InputError
from surgery.training.head import POSITIONS, Head
from surgery.training.losses import top_log_probabilities

STATE_BUDGET = 512 * 2**20
"""Bytes of remembered last states: 4 x hidden a token, far less than its logits."""
DISK_BUDGET = 8 * 2**30
"""Bytes of all top-k caches together; the least recently used leave."""


class Teacher:
    """The dense model as a function of windows.

    Args:
        head: that logits come from, so that it can be the student's; one in float32 when None.
    """

    def __init__(self, runner: Runner, head: Head | None = None) -> None:
        self.runner = runner
        self.head = head or Head(runner)
        self._known: ByteCache[torch.Tensor] = ByteCache(STATE_BUDGET)

    @torch.no_grad()
    def normalised(self, ids: torch.Tensor, keys: Sequence[str]) -> torch.Tensor:
        """The normalised last state of windows (windows, tokens, hidden), remembered by the windows' keys."""
        known = [self._known.get(key) for key in keys]
        if all(state is not None for state in known):
            return torch.stack([state for state in known if state is not None])
        state = self.runner.normalised(self.states(ids)[-1])
        for key, row in zip(keys, state, strict=True):
            self._known.put(key, row.clone(), row.numel() * row.element_size())
        return state

    @torch.no_grad()
    def states(self, ids: torch.Tensor) -> list[torch.Tensor]:
        """The state that leaves each block, (windows, tokens, hidden)."""
        prepared = self.runner.prepare(ids)
        found: list[torch.Tensor] = []
        state = prepared.state.clone()
        for block, call in zip(self.runner.blocks, prepared.calls, strict=True):
            state = self.runner.run(block, state, call)
            found.append(state)
        return found

    def logits(self, inputs: torch.Tensor) -> torch.Tensor:
        """Logits (positions, vocabulary) of normalised states."""
        with torch.no_grad():
            return self.head.logits(inputs)


class TopK:
    """The teacher's k likeliest words of every predicted token, memory-mapped from disk.

    Args:
        teacher: computes what is not there yet.
        temperature: that softens the probabilities; they are stored softened, so that the rest is known exactly.
        identity: of the teacher's weights.
        process: number of this process: each has files of its own.
        folder: of all caches; under the cache folder when None.

    Raises:
        InputError: it would take more than `DISK_BUDGET` or than the disk has.
    """

    def __init__(
        self,
        teacher: Teacher,
        windows: Windows,
        k: int,
        temperature: float,
        identity: str,
        process: int = 0,
        folder: Path | None = None,
    ) -> None:
        self.teacher, self.temperature = teacher, temperature
        self.k = min(k, teacher.runner.architecture.vocabulary_size)
        root = folder or cache_directory() / "teacher"
        text = f"{identity}|{windows.fingerprint}|{self.k}|{temperature}|{process}"
        self.folder = root / hashlib.sha256(text.encode()).hexdigest()[:16]
        shape = (windows.count, windows.length - 1, self.k)
        try:
            self._make_room(root, windows.count * (windows.length - 1) * self.k * 8)
            self.folder.mkdir(parents=True, exist_ok=True)
            self._values = self._open("log_probabilities.npy", np.float32, shape)
            self._words = self._open("words.npy", np.int32, shape)
            self._done = self._open("done.npy", np.bool_, (windows.count,))
        except OSError as error:
            raise InputError(
                f"The teacher's probabilities cannot be kept in {str(root)!r} ({error.strerror}): free some space or "
                "choose a smaller top-k."
            ) from None

    def _open(self, name: str, dtype: Any, shape: tuple[int, ...]) -> Any:
        path = self.folder / name
        if path.is_file():
            try:
                known = np.lib.format.open_memmap(path, mode="r+")
                if known.shape == shape and known.dtype == dtype:
                    return known
            except (ValueError, EOFError):
                pass  # cut short: made anew, and `done.npy` with it
            for other in self.folder.iterdir():
                other.unlink()
        return np.lib.format.open_memmap(path, mode="w+", dtype=dtype, shape=shape)

    def _make_room(self, root: Path, needed: int) -> None:
        root.mkdir(parents=True, exist_ok=True)
        others = sorted((path for path in root.iterdir() if path != self.folder), key=lambda path: path.stat().st_mtime)
        sizes = {path: sum(file.stat().st_size for file in path.iterdir()) for path in others if path.is_dir()}
        for path in sizes:
            if sum(sizes.values()) + needed <= DISK_BUDGET:
                break
            shutil.rmtree(path)
            sizes = {other: size if other != path else 0 for other, size in sizes.items()}
        free = shutil.disk_usage(root).free
        if not self.folder.is_dir() and needed > min(DISK_BUDGET, free):
            raise InputError(
                f"The teacher's probabilities need {needed / 1e9:.1f} GB of disk, more than there may be: choose a "
                "smaller top-k or fewer windows."
            )

    def window(self, index: int, ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Softened log-probabilities and words of a window, (tokens - 1, k) each; computed the first time."""
        if not self._done[index]:
            inputs = self.teacher.normalised(ids[None], [str(index)])[0, :-1]
            for start in range(0, len(inputs), POSITIONS):
                rows = slice(start, start + POSITIONS)
                logits = self.teacher.logits(inputs[rows])
                values, words = top_log_probabilities(logits, self.k, self.temperature)
                self._values[index, rows] = values.cpu().numpy()
                self._words[index, rows] = words.cpu().numpy()
            self._values.flush()
            self._words.flush()
            self._done[index] = True
            self._done.flush()
        values, words = (torch.from_numpy(np.array(array[index])) for array in (self._values, self._words))
        return values, words.long()


@torch.no_grad()
def continuations(
    model: Any, prompts: torch.Tensor, length: int, seed: int, check: Callable[[], None] = lambda: None
) -> torch.Tensor:
    """Prompts (windows, tokens) with `length` sampled tokens behind each, at temperature 1, a few windows at a time.

    Args:
        length: tokens that are sampled; an end mark does not end them, so that all windows stay equally long.
        check: called between batches; may raise.
    """
    found: list[torch.Tensor] = []
    device = next(model.parameters()).device
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        for start in range(0, len(prompts), 8):
            check()
            batch = prompts[start : start + 8].to(device)
            out = model.generate(
                batch,
                attention_mask=torch.ones_like(batch),
                do_sample=True,
                temperature=1.0,
                top_k=0,
                top_p=1.0,
                min_new_tokens=length,
                max_new_tokens=length,
                pad_token_id=0,
            )
            found.append(out[:, : batch.shape[1] + length].cpu())
    return torch.cat(found)
