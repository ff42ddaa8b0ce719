"""Reading a GGUF file back: its weights under the checkpoint's names, and the model that they make."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch

from analysis.model.architecture import Architecture
from surgery.errors import CorruptFile, brief
from surgery.gguf.plan import GgufPlan
from surgery.gguf.types import bytes_of, decode
from surgery.models.checks import quiet


def read_tensors(path: Path, plan: GgufPlan) -> dict[str, np.ndarray]:
    """The file's tensors as they read back, float32, by the names in the file and in the checkpoint's own layout.

    Constants that no checkpoint holds are left out.

    Raises:
        CorruptFile: unreadable, cut short, or not with the tensors that the plan says.
    """
    try:
        reader = gguf.GGUFReader(path)
        stored = {tensor.name: tensor for tensor in reader.tensors}
    except (OSError, ValueError, KeyError, IndexError) as error:
        raise CorruptFile(f"{path.name} cannot be read as GGUF ({brief(error)}): write it again.") from None
    expected = {tensor.name: tensor for tensor in plan.tensors}
    if stored.keys() != expected.keys():
        name = min(stored.keys() ^ expected.keys())
        raise CorruptFile(f"{path.name} does not hold the tensors of this recipe ({name} first): write it again.")
    found: dict[str, np.ndarray] = {}
    for name, tensor in expected.items():
        entry = stored[name]
        if tuple(reversed(entry.shape.tolist())) != tensor.shape or entry.n_bytes != bytes_of(
            tensor.shape, entry.tensor_type
        ):
            raise CorruptFile(f"{name} of {path.name} has another shape than this recipe gives it: write it again.")
        if tensor.sources:
            values = decode(np.ascontiguousarray(entry.data), entry.tensor_type).reshape(tensor.shape)
            found[name] = np.ascontiguousarray(tensor.restore(values))
    return found


def filled(
    values: dict[str, np.ndarray], plan: GgufPlan, architecture: Architecture, config: Any, model_class: Any
) -> Any:
    """A model of transformers in float32 with the weights that `read_tensors` gave; `config` is not changed."""
    inner = (tensor for tensor in plan.tensors if tensor.name in values and tensor.name != "output.weight")
    parts = (part for tensor in inner for part in tensor.split(values[tensor.name]).items())
    state = {source: torch.from_numpy(array) for source, array in parts}
    config, head = copy.deepcopy(config), f"{architecture.head}.weight"
    if "output.weight" in values:
        state[head] = torch.from_numpy(values["output.weight"])
        config.tie_word_embeddings = False
    elif architecture.tied:
        state[head] = state[f"{architecture.embeddings}.weight"]
    with quiet():
        made = model_class.from_pretrained(None, config=config, state_dict=state, dtype=torch.float32)
    return made.eval().requires_grad_(False)
