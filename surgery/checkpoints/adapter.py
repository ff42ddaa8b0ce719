"""A structure's low-rank repair as a LoRA adapter: for PEFT beside a checkpoint, for llama.cpp beside a GGUF file.

Source of the form: LoRA (2106.09685); alpha is the rank, so that the product counts as it is.
"""

from __future__ import annotations

from pathlib import Path

import torch

from surgery.common.files import new_folder
from surgery.errors import InputError
from surgery.structure.structure import Structure

Matrices = dict[str, tuple[torch.Tensor, torch.Tensor]]
"""down (rank, inputs) and up (outputs, rank) by the linear's name in the checkpoint; one rank for all."""


def adapter_matrices(structure: Structure) -> Matrices:
    """The repair of a structure, filled up with zeros to the largest rank where a linear has less to give.

    Raises:
        InputError: it has none.
    """
    inside = structure.architecture.block_list
    kept = structure.kept
    found = {
        f"{inside}.{place}.{path}": (spec.repair.down[path], spec.repair.up[path])
        for place, spec in enumerate(kept)
        if spec.repair is not None
        for path in sorted(spec.repair.up)
    }
    if not found:
        raise InputError("There is no low-rank repair to save: add EoRA to the recipe first.")
    rank = max(len(down) for down, _ in found.values())
    return {name: (_padded(down, rank), _padded(up.T, rank).T) for name, (down, up) in found.items()}


def _padded(rows: torch.Tensor, count: int) -> torch.Tensor:
    return torch.nn.functional.pad(rows, (0, 0, 0, count - len(rows)))


def save_adapter(structure: Structure, base: str, out: Path, transposed: bool = False) -> Path:
    """Write the repair as a folder that `PeftModel.from_pretrained` loads onto the quantised checkpoint.

    Args:
        structure: with its repair computed.
        base: name or path of the checkpoint that it belongs to, noted in the adapter.
        out: a new folder; written under a temporary name and renamed.
        transposed: whether the linears store their weights input-first (GPT-2's Conv1D).

    Raises:
        InputError: there is no repair, the folder is in use, or it cannot be written.
    """
    from peft import LoraConfig
    from safetensors.torch import save_file

    matrices = adapter_matrices(structure)
    rank = len(next(iter(matrices.values()))[0])
    config = LoraConfig(
        r=rank,
        lora_alpha=rank,
        target_modules=list(matrices),
        fan_in_fan_out=transposed,
        base_model_name_or_path=base,
        task_type="CAUSAL_LM",
        inference_mode=True,
    )
    tensors = {
        f"base_model.model.{name}.lora_{part}.weight": matrix.contiguous()
        for name, pair in matrices.items()
        for part, matrix in zip("AB", pair, strict=True)
    }
    with new_folder(out) as made:
        config.save_pretrained(str(made))
        save_file(tensors, made / "adapter_model.safetensors", metadata={"format": "pt"})
    return out
