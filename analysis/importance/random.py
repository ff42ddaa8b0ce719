"""Random scores: the control that a method has to beat."""

from __future__ import annotations

import torch


def random_scores(count: int, generator: torch.Generator) -> torch.Tensor:
    """Independent scores, uniform between 0 and 1, float32 (count,)."""
    return torch.rand(count, generator=generator)
