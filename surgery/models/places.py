"""Where the parts of a block are, as the modelling file that travels with a checkpoint needs it."""

from __future__ import annotations

from typing import Any

from analysis.model.architecture import Architecture


def places(source: Architecture) -> dict[str, Any]:
    """Where the parts of a block are, for the modelling file that travels along."""
    attention = next((block.attention for block in source.blocks if block.attention is not None), None)
    return {
        "blocks": source.block_list,
        "attention": attention.module if attention else "",
        "output": attention.output.module.rpartition(".")[2] if attention else "",
        "resize_heads": attention is not None and not attention.free_head_size,
        "skip": _stand_ins(source),
    }


def _stand_ins(source: Architecture) -> dict[str, dict[str, str]]:
    """What replaces a removed sublayer and its norms, by path inside the block."""
    found: dict[str, dict[str, str]] = {"attention": {}, "mlp": {}}
    for block in source.blocks:
        if block.attention is not None:
            found["attention"] = {block.attention.module: "no_attention"}
            found["attention"] |= {norm.module: "identity" for norm in block.sublayer_norms("attention")}
        if block.mlp is not None:
            mlp = block.mlp
            found["mlp"] = (
                {mlp.module: "zeros"} if mlp.module else {mlp.up.module: "identity", mlp.down.module: "zeros"}
            )
            found["mlp"] |= {norm.module: "identity" for norm in block.sublayer_norms("mlp")}
    return found
