"""The state of an unfinished training on disk: tensors as safetensors, the rest as JSON, renamed into place."""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from surgery.common.files import new_folder

TENSORS, STATE = "state.safetensors", "state.json"


@dataclass
class TrainingState:
    """Where a training is. Lists of tensors are in the order of the student's parameters."""

    key: str
    """Address of the recipe's healing."""
    step: int = 0
    tensors: list[torch.Tensor] = field(default_factory=list)
    means: list[torch.Tensor] = field(default_factory=list)
    """The optimiser's running means of gradients; empty before the first step."""
    squares: list[torch.Tensor] = field(default_factory=list)
    best: list[torch.Tensor] = field(default_factory=list)
    best_step: int = 0
    best_nll: float = float("inf")
    worse: int = 0
    """Evaluations since the best one."""
    before: float | None = None
    """Held-out loss before the first step."""
    history: list[dict[str, Any]] = field(default_factory=list)
    """One entry a step: step, loss, and held_out where it was measured."""
    seconds: float = 0.0
    """Spent in training steps."""
    tokens: int = 0


_LISTS = ("tensors", "means", "squares", "best")


def save(state: TrainingState, folder: Path) -> None:
    """Write a state into a folder, in the place of the one before. Raises InputError: the disk is full or read-only."""
    from safetensors.torch import save_file

    tensors = {
        f"{name}.{place}": tensor for name in _LISTS for place, tensor in enumerate(getattr(state, name))
    }  # each list has tensors of its own, so nothing is shared
    document = {name: value for name, value in asdict(state).items() if name not in _LISTS}
    failure = f"The training's state cannot be kept in {str(folder)!r}"
    with new_folder(folder, failure, "free some space", replace=True) as made:
        save_file(tensors, made / TENSORS)
        (made / STATE).write_text(json.dumps(document), "utf-8")


def load(folder: Path, key: str) -> TrainingState | None:
    """The state in a folder; None where there is none of that healing."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        document = json.loads((folder / STATE).read_text("utf-8"))
        if document.get("key") != key:
            return None
        tensors = load_file(folder / TENSORS)
        state = TrainingState(**document)
        for name in _LISTS:
            count = sum(entry.startswith(f"{name}.") for entry in tensors)
            setattr(state, name, [tensors[f"{name}.{place}"] for place in range(count)])
    except (OSError, ValueError, TypeError, KeyError, SafetensorError):
        return None  # none, or one that a crash cut short: training starts again
    return state


def remove(folder: Path) -> None:
    """Forget a state that is no longer needed."""
    shutil.rmtree(folder, ignore_errors=True)
