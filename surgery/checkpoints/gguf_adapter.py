"""A LoRA adapter as a GGUF file."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from surgery.checkpoints.adapter import adapter_matrices
from surgery.errors import UnsupportedArchitecture
from surgery.gguf.plan import GgufPlan
from surgery.gguf.tensors import interleave, turned
from surgery.gguf.write import new_gguf
from surgery.structure.structure import Structure


def write_gguf_adapter(structure: Structure, plan: GgufPlan, out: Path, name: str = "EoRA") -> Path:
    """Write the repair as a GGUF LoRA file that stock llama.cpp applies to the model's GGUF file.

    Args:
        structure: with its repair computed.
        plan: of the model's own file: names, and the order of the rows of Q and K.
        out: the file; written under a temporary name and renamed.
        name: of the adapter, noted in the file.

    Raises:
        InputError: there is no repair, or the file cannot be written.
    """
    matrices = adapter_matrices(structure)
    if plan.layout.mixed == "openelm":
        raise UnsupportedArchitecture(
            "llama.cpp holds queries, keys and values of these blocks in one matrix, beside which an adapter of each "
            "has no place: give every block the same widths and heads, or take EoRA out."
        )
    names = {tensor.sources[0].removesuffix(".weight"): tensor.name for tensor in plan.tensors if tensor.sources}
    with new_gguf(out, plan.layout.architecture) as writer:
        writer.add_type("adapter")
        writer.add_name(name)
        writer.add_string("adapter.type", "lora")
        writer.add_float32("adapter.lora.alpha", float(len(next(iter(matrices.values()))[0])))
        for source, (down, up) in matrices.items():
            rows = np.ascontiguousarray(up.numpy(), np.float32)
            if turned(names[source], plan.layout):
                rows = np.ascontiguousarray(interleave(rows, plan.layout.head_size))
            writer.add_tensor(f"{names[source]}.lora_a", np.ascontiguousarray(down.numpy(), np.float32))
            writer.add_tensor(f"{names[source]}.lora_b", rows)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
    return out
