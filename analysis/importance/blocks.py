"""Importance of blocks and sublayers from weights and their gradients; higher matters more.

Each returns float32 (blocks,), 0 where a block lacks the sublayer.
"""

from __future__ import annotations

import torch

from analysis.gradients.collect import Gradients
from analysis.importance import heads, neurons
from analysis.model.modules import shallow_copy
from analysis.model.runner import Runner


def taylor_attention(gradients: Gradients) -> torch.Tensor:
    """Sum of |w g| over the attention's linear weights. Source: Shortened LLaMA (2402.02834), on one sublayer."""
    parts = [block.head_weights for block in gradients.blocks]
    return torch.tensor([float(part.first.double().sum()) if part else 0.0 for part in parts])


def taylor_mlp(gradients: Gradients) -> torch.Tensor:
    """Sum of |w g| over the MLP's linear weights. Source: Shortened LLaMA (2402.02834), on one sublayer."""
    parts = [block.neuron_weights for block in gradients.blocks]
    return torch.tensor([float(part.first.double().sum()) if part else 0.0 for part in parts])


def taylor_blocks(gradients: Gradients) -> torch.Tensor:
    """Sum of |w g| over the block's linear weights. Source: Shortened LLaMA (2402.02834), Taylor.

    Without protection it ranks the first block of several models first; the paper's "plus" never removes the first 4
    and the last 2.
    """
    return taylor_attention(gradients) + taylor_mlp(gradients)


def magnitude_blocks(runner: Runner) -> torch.Tensor:
    """Sum of |w| over the block's linear weights. Source: Shortened LLaMA (2402.02834), magnitude with p = 1."""
    scores = []
    for block, original in zip(runner.architecture.blocks, runner.blocks, strict=True):
        module, score = shallow_copy(original), 0.0  # the copy has the weights even where they are offloaded
        if block.attention is not None:
            parts = heads.weights_of(module, block.attention)
            score += sum(float(part.abs().double().sum()) for part in vars(parts).values())
        if block.mlp is not None:
            mlp = neurons.weights_of(module, block.mlp)
            score += sum(float(part.abs().double().sum()) for part in (*mlp.inputs, mlp.down))
        scores.append(score)
    return torch.tensor(scores)
