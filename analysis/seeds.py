"""Seeds of random draws."""

from __future__ import annotations

import hashlib

import torch


def generator_for(seed: int, kind: str, block: int) -> torch.Generator:
    """A generator whose seed depends on all three; `block` is 0 for scores that belong to no block."""
    digest = hashlib.sha256(f"{seed}|{kind}|{block}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)
