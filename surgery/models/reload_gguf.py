"""A GGUF file as a model of transformers in memory, with the LoRA file beside it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from analysis.model.describe import describe
from surgery.errors import CorruptFile, brief
from surgery.gguf.header import open_gguf
from surgery.gguf.plan import GgufPlan
from surgery.gguf.read import read_tensors
from surgery.gguf.tensors import separate, turned
from surgery.models.from_gguf import filled, plan_of
from surgery.models.loading import load_empty


def load_file(path: Path, adapter: Path | None, config: Path) -> tuple[Any, Any]:
    """The model of a GGUF file, and its tokenizer.

    Args:
        adapter: a LoRA file that counts with it.
        config: the folder of what it would be as a checkpoint: config.json and the tokenizer.

    Raises:
        InputError: a file is absent or damaged, or there is no memory for it.
    """
    empty, tokenizer = load_empty(config)
    architecture = describe(empty)
    plan = plan_of(config, empty, architecture)
    values = read_tensors(path, plan)
    if adapter is not None:
        _add_adapter(adapter, plan, values)
    return filled(values, plan, architecture, empty.config, type(empty)), tokenizer


def _add_adapter(path: Path, plan: GgufPlan, values: dict[str, np.ndarray]) -> None:
    """Add a LoRA file's products to the weights that llama.cpp would put them beside."""
    try:
        file = open_gguf(path)
        found = {name: tensor.values() for name, tensor in file.tensors.items()}
        alpha = float(file.keys["adapter.lora.alpha"])
        for name in {name.removesuffix(".lora_a").removesuffix(".lora_b") for name in found}:
            down, up = found[f"{name}.lora_a"], found[f"{name}.lora_b"]
            rows = separate(up, plan.layout.head_size) if turned(name, plan.layout) else up
            values[name] = values[name] + np.float32(alpha / len(down)) * (rows @ down)
    except (TypeError, ValueError, KeyError) as error:
        raise CorruptFile(f"{path.name} is not the adapter of this model ({brief(error)}): ship it again.") from None
