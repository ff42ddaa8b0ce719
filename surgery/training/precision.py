"""In which numbers the linears' products are formed while training, and where that is worth while."""

from __future__ import annotations

import torch

from surgery.recipe.healing import Precision


def fast_bfloat16(device: torch.device) -> bool:
    """Whether a device multiplies bfloat16 faster than float32: processors with AMX or AVX512-BF16, most GPUs."""
    if device.type == "cpu":
        known = torch.cpu.get_capabilities()
        return bool(known.get("amx_bf16") or known.get("avx512_bf16"))
    return device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)


def best_precision(device: torch.device) -> Precision:
    """What trains faster there."""
    return "bfloat16" if fast_bfloat16(device) else "float32"


def product_type(precision: Precision) -> torch.dtype:
    """The type in which factors meet; sums are float32 in both."""
    return torch.bfloat16 if precision == "bfloat16" else torch.float32
