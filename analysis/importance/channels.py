"""Importance of the channels of the residual stream; higher matters more."""

from __future__ import annotations

import torch

from analysis.statistics.collect import Statistics


def minitron_hidden(statistics: Statistics) -> torch.Tensor:
    """Summed over the norms of all blocks: L2 over sequences of the mean over tokens of |output|, float32 (hidden,).

    Source: Minitron (2407.14679), embedding channel importance.
    """
    parts = [moments.sequence_squares.sqrt() for block in statistics.blocks for moments in block.norms.values()]
    return torch.stack(parts).sum(dim=0).float()
