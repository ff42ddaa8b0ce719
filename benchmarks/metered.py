"""A runner that times its own work and counts the FLOPs that the work needs (Llama-like blocks)."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from analysis.model.runner import BlockCall, Runner


@dataclass(frozen=True)
class Part:
    """Calls of one sort: how many, their wall time and the FLOPs they need."""

    calls: int = 0
    seconds: float = 0.0
    flops: float = 0.0

    def __add__(self, other: Part) -> Part:
        """Both together."""
        return Part(self.calls + other.calls, self.seconds + other.seconds, self.flops + other.flops)

    @property
    def rate(self) -> float:
        """FLOP/s; 0 of nothing."""
        return self.flops / self.seconds if self.seconds else 0.0


@dataclass(frozen=True)
class Work:
    """What one evaluation computed: blocks, and the head with its losses."""

    blocks: Part = Part()
    head: Part = Part()

    @property
    def flops(self) -> float:
        """FLOPs that were needed."""
        return self.blocks.flops + self.head.flops


class Metered(Runner):
    """Counts what `run` and `losses` do since the last `take`; one thread only."""

    work = Work()

    def take(self) -> Work:
        """The work since the last call."""
        done, self.work = self.work, Work()
        return done

    def run(self, block: nn.Module, state: torch.Tensor, call: BlockCall) -> torch.Tensor:
        """As the runner does."""
        begun = time.perf_counter()
        out = super().run(block, state, call)
        spent = time.perf_counter() - begun
        part = self.work.blocks + Part(1, spent, block_flops(block, *state.shape[:2]))
        self.work = Work(part, self.work.head)
        return out

    def losses(self, state: torch.Tensor, ids: torch.Tensor, check: Callable[[], None] = lambda: None) -> torch.Tensor:
        """As the runner does."""
        begun = time.perf_counter()
        out = super().losses(state, ids, check)
        spent = time.perf_counter() - begun
        flops = 2.0 * self.architecture.hidden_size * self.architecture.vocabulary_size * out.numel()
        self.work = Work(self.work.blocks, self.work.head + Part(1, spent, flops))
        return out


def block_flops(block: nn.Module, windows: int, tokens: int) -> float:
    """2 x the linears' weights x tokens, and the causal half of the attention's two products."""
    weights = sum(module.weight.numel() for module in block.modules() if isinstance(module, nn.Linear))
    query = getattr(getattr(block, "self_attn", None), "q_proj", None)
    width = query.weight.shape[0] if isinstance(query, nn.Linear) else 0
    pairs = tokens * (tokens + 1) / 2
    return windows * (2.0 * weights * tokens + 4.0 * width * pairs)
