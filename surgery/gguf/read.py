"""Reading a GGUF file back: its weights under the checkpoint's names."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from surgery.errors import CorruptFile
from surgery.gguf.header import StoredTensor, open_gguf
from surgery.gguf.plan import GgufPlan


def read_tensors(path: Path, plan: GgufPlan) -> dict[str, np.ndarray]:
    """The file's tensors as they read back, float32, by the names in the file and in the checkpoint's own layout.

    Constants that no checkpoint holds are left out.

    Raises:
        CorruptFile: unreadable, cut short, or not with the tensors that the plan says.
    """
    stored = open_gguf(path).tensors
    expected = {tensor.name for tensor in plan.tensors}
    if stored.keys() != expected:
        name = min(stored.keys() ^ expected)
        raise CorruptFile(f"{path.name} does not hold the tensors of this recipe ({name} first): write it again.")
    check_shapes(path.name, stored, plan, "this recipe gives it: write it again.")
    return restored(stored, plan)


def check_shapes(file: str, stored: Mapping[str, StoredTensor], plan: GgufPlan, than: str) -> None:
    """Refuse tensors of another shape than the plan says. Raises CorruptFile."""
    for tensor in plan.tensors:
        if stored[tensor.name].shape != tensor.shape:
            raise CorruptFile(f"{tensor.name} of {file} has another shape than {than}")


def restored(stored: Mapping[str, StoredTensor], plan: GgufPlan) -> dict[str, np.ndarray]:
    """Values of the plan's tensors as the checkpoint holds them, float32, by their names in the file."""
    return {
        tensor.name: np.ascontiguousarray(tensor.restore(stored[tensor.name].values()))
        for tensor in plan.tensors
        if tensor.sources
    }
