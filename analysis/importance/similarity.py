"""Importance of blocks and sublayers from the cosines between states; higher matters more."""

from __future__ import annotations

import torch

from analysis.statistics.accumulators import Similarities


def block_influence(similarities: Similarities) -> torch.Tensor:
    """BI_l = 1 - mean over tokens of cos(h_l, h_{l+1}), float32 (blocks,). Source: ShortGPT (2403.03853), Eq. 1."""
    return (1 - similarities.block_cosine / similarities.tokens).float()


def attention_influence(similarities: Similarities) -> torch.Tensor:
    """1 - mean cosine around the attention sublayer alone, float32 (blocks,). Source: 2407.15516."""
    return (1 - similarities.attention_cosine / similarities.tokens).float()


def mlp_influence(similarities: Similarities) -> torch.Tensor:
    """1 - mean cosine around the MLP sublayer alone, float32 (blocks,). Source: 2407.15516."""
    return (1 - similarities.mlp_cosine / similarities.tokens).float()


def angular_triangle(similarities: Similarities, last_token: bool = False) -> torch.Tensor:
    """Angular distance of n consecutive blocks, float32 (blocks, blocks).

    Entry (l, n - 1) is the mean over tokens of arccos(cos(h_l, h_{l+n})) / pi; NaN where l + n exceeds the last
    state. `last_token` takes each window's last token alone. Source: 2403.17887, Eq. 7.
    """
    sums = similarities.angular_last if last_token else similarities.angular
    distances = sums / (similarities.windows if last_token else similarities.tokens)
    count = distances.shape[0] - 1
    out = torch.full((count, count), float("nan"))
    for span in range(1, count + 1):
        out[: count + 1 - span, span - 1] = torch.diagonal(distances, offset=span).float()
    return out


def angular_distance(similarities: Similarities) -> torch.Tensor:
    """Angular distance of each single block (n = 1), float32 (blocks,). Source: 2403.17887, Eq. 7."""
    return angular_triangle(similarities)[:, 0]


def coarse_importance(similarities: Similarities) -> torch.Tensor:
    """How much each block changes the state, float32 (blocks,), for budgets over blocks.

    Mean over tokens of the angular distance between the states before and after the block, so that it does not depend
    on the number of tokens. Source: CFSP (2409.13199), coarse-grained importance.
    """
    return angular_distance(similarities)
