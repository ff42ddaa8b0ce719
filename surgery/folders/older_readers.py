"""What readers of the older form of config.json look for, beside what transformers 5 writes.

transformers 4, mlx-lm and CTranslate2 read the rotary base at the top level alone, and take a default without a word
where it is absent; transformers 5 keeps it inside `rope_parameters`.
"""

from __future__ import annotations

from typing import Any

FULL, SLIDING = "full_attention", "sliding_attention"
OUTSIDE = ("rope_theta", "partial_rotary_factor")
"""Rotary parameters that the older form has at the top level, beside the scaling."""
GPT_NEOX = {"rope_theta": "rotary_emb_base", "partial_rotary_factor": "rotary_pct"}
"""GPT-NeoX's own names."""


def older_entries(config: Any) -> dict[str, Any]:
    """Rotary base and scaling, the size of a head and the number type under their older names.

    Args:
        config: of the model that is written, as transformers 5 holds it.
    """
    found = _rotary(getattr(config, "rope_parameters", None) or {})
    if config.model_type.startswith("gpt_neox"):
        found |= {older: found[name] for name, older in GPT_NEOX.items() if name in found}
    heads = config.num_attention_heads
    if getattr(config, "head_dim", None) is None and config.hidden_size % heads == 0:
        found["head_dim"] = config.hidden_size // heads
    if config.dtype is not None:
        found["torch_dtype"] = str(config.dtype).removeprefix("torch.")
    return found


def _rotary(parameters: dict[str, Any]) -> dict[str, Any]:
    """The rotary entries; where sliding blocks have parameters of their own, their base besides."""
    whole = parameters.get(FULL, parameters)
    found = {name: whole[name] for name in OUTSIDE if whole.get(name) is not None}
    local = parameters.get(SLIDING)
    if local is not None:
        found["rope_local_base_freq"] = local["rope_theta"]
    if whole.get("rope_type", "default") == "default":
        return found
    scaling = {name: value for name, value in whole.items() if name not in OUTSIDE}
    if whole["rope_type"] == "longrope":
        scaling["type"] = scaling.pop("rope_type")
        length = scaling.pop("original_max_position_embeddings", None)
        found |= {} if length is None else {"original_max_position_embeddings": length}
        scaling.pop("factor", None)
    return found | {"rope_scaling": scaling}
