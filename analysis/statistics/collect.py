"""One forward pass over token windows that gathers every statistic, block by block, in bounded memory."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from analysis.model.architecture import Architecture, Block
from analysis.model.middle import Middle
from analysis.model.modules import shallow_copy
from analysis.model.runner import BlockCall, Runner
from analysis.statistics import attention_probe
from analysis.statistics.accumulators import (
    Accumulator,
    ChannelMoments,
    HeadMoments,
    InputMoments,
    NeuronMoments,
    Similarities,
    cosine_sum,
    unit,
)
from analysis.text import Windows

STATE_BYTES = 64 * 2**20
"""Bytes of states kept for the angular-distance triangle; sets how many windows go through together."""

Report = Callable[[float, str], None]
"""Told the share done and what is being done; may raise to stop the work."""


@dataclass
class BlockStatistics:
    """Accumulators of one block; `inputs` by the path of each linear inside the block, `norms` by that of each norm."""

    neurons: NeuronMoments | None
    heads: HeadMoments | None
    inputs: dict[str, InputMoments] = field(default_factory=dict)
    norms: dict[str, ChannelMoments] = field(default_factory=dict)

    def parts(self) -> dict[str, Accumulator]:
        """The accumulators by name."""
        named: dict[str, Accumulator | None] = {"neurons": self.neurons, "heads": self.heads}
        # The down projection's input moments are the neurons' moments: the same object, counted once.
        named |= {f"inputs.{path}": part for path, part in self.inputs.items() if part is not self.neurons}
        named |= {f"norms.{path}": part for path, part in self.norms.items()}
        return {name: part for name, part in named.items() if part is not None}


@dataclass
class Statistics:
    """Everything one pass gathers; can be merged with another pass of the same model."""

    similarities: Similarities
    blocks: list[BlockStatistics]

    @classmethod
    def empty(cls, architecture: Architecture) -> Statistics:
        """Nothing seen yet."""
        return cls(
            Similarities.empty(len(architecture.blocks)),
            [_empty_block(block, architecture.hidden_size) for block in architecture.blocks],
        )

    @property
    def windows(self) -> int:
        """Windows seen."""
        return int(self.similarities.windows)

    @property
    def tokens(self) -> int:
        """Tokens seen."""
        return int(self.similarities.tokens)

    def parts(self) -> dict[str, Accumulator]:
        """All accumulators by name."""
        named: dict[str, Accumulator] = {"similarities": self.similarities}
        for index, block in enumerate(self.blocks):
            named |= {f"blocks.{index}.{name}": part for name, part in block.parts().items()}
        return named

    def merge(self, other: Statistics) -> None:
        """Add the statistics of other windows."""
        others = other.parts()
        for name, part in self.parts().items():
            part.merge(others[name])

    def state(self) -> dict[str, torch.Tensor]:
        """Flat tensors by name."""
        return {
            f"{name}/{key}": value.contiguous()
            for name, part in self.parts().items()
            for key, value in part.state().items()
        }


def _empty_block(block: Block, hidden_size: int) -> BlockStatistics:
    """Accumulators of the right sizes; every linear of the block has its input moments."""
    inputs: dict[str, InputMoments] = {}
    heads = neurons = None
    if block.attention is not None:
        attention = block.attention
        heads = HeadMoments.empty(attention.query_heads)
        for projection in (attention.query, attention.key, attention.value):
            inputs[projection.module] = InputMoments.empty(attention.hidden_size)
        inputs[attention.output.module] = InputMoments.empty(attention.query_heads * attention.head_size)
    if block.mlp is not None:
        mlp = block.mlp
        neurons = NeuronMoments.empty(mlp.width)
        for projection in (mlp.up, *([mlp.gate] if mlp.gate else [])):
            inputs[projection.module] = InputMoments.empty(mlp.hidden_size)
        inputs[mlp.down.module] = neurons  # one accumulator serves as both
    norms = {norm.module: ChannelMoments.empty(hidden_size) for norm in block.norms}
    return BlockStatistics(neurons, heads, inputs, norms)


def collect(
    runner: Runner, windows: Windows, report: Report = lambda fraction, message: None, group: int | None = None
) -> Statistics:
    """Gather all statistics of `windows` in one forward pass.

    Args:
        group: windows that go through a block together; by memory when None. It does not change a result.
    """
    found = Statistics.empty(runner.architecture)
    size = group or _group_size(runner.architecture, windows.length)
    for start in range(0, windows.count, size):
        ids = windows.ids[start : start + size]
        found.merge(_pass(runner, ids, report, start / windows.count, ids.shape[0] / windows.count))
    report(1.0, f"Analysed {found.tokens:,} tokens")
    return found


def _group_size(architecture: Architecture, length: int) -> int:
    per_window = (len(architecture.blocks) + 1) * length * architecture.hidden_size * 4
    return max(1, STATE_BYTES // per_window)


@torch.inference_mode()
def _pass(runner: Runner, ids: torch.Tensor, report: Report, done: float, share: float) -> Statistics:
    """Statistics of one group of windows."""
    found = Statistics.empty(runner.architecture)
    prepared = runner.prepare(ids)
    state = prepared.state
    count = len(runner.blocks)
    units = torch.empty(ids.numel(), count + 1, state.shape[-1], device=state.device)
    units[:, 0] = unit(state).flatten(0, 1)
    for index, (block, call) in enumerate(zip(runner.architecture.blocks, prepared.calls, strict=True)):
        report(done + share * index / count, f"Analysing block {index + 1} of {count}")
        state = _observe(runner, block, state, call, found)
        units[:, index + 1] = unit(state).flatten(0, 1)
    found.similarities.update_states(units, ids.shape[0])
    return found


def _observe(runner: Runner, block: Block, state: torch.Tensor, call: BlockCall, found: Statistics) -> torch.Tensor:
    """Run one block on a copy with observers and add what they saw."""
    seen = found.blocks[block.index]
    module = shallow_copy(runner.blocks[block.index])
    if block.attention is not None and seen.heads is not None:
        attention_probe.install(module, block.attention.module, seen.heads)
    _observe_linears(module, seen, state.shape[:2])
    _observe_norms(module, seen, state.shape)
    watched = Middle(module, block)
    out = runner.run(module, state, call)
    middle = watched.state(state, out)
    found.similarities.attention_cosine[block.index] += cosine_sum(state, middle)
    found.similarities.mlp_cosine[block.index] += cosine_sum(middle, out)
    return out


Squares = dict[int, tuple[torch.Tensor, torch.Tensor]]
"""Inputs that were squared and summed already, with the sums, by the input's identity."""


def _observe_linears(module: nn.Module, seen: BlockStatistics, shape: torch.Size) -> None:
    squares: Squares = {}
    for path, moments in seen.inputs.items():
        module.get_submodule(path).register_forward_pre_hook(_input_hook(moments, squares, shape))


def _observe_norms(module: nn.Module, seen: BlockStatistics, shape: torch.Size) -> None:
    def hook(moments: ChannelMoments) -> Callable[[nn.Module, tuple[Any, ...], torch.Tensor], None]:
        return lambda module, args, output: moments.update(output.view(shape))  # OPT flattens windows and tokens

    for path, moments in seen.norms.items():
        module.get_submodule(path).register_forward_hook(hook(moments))


def _input_hook(
    moments: InputMoments, squares: Squares, shape: torch.Size
) -> Callable[[nn.Module, tuple[Any, ...]], None]:
    """Linears that share an input (q, k, v; gate, up) have it squared and summed once.

    `shape` is (windows, tokens): OPT's MLP flattens them, and the neurons' moments count whole windows.
    """

    def hook(module: nn.Module, args: tuple[Any, ...]) -> None:
        inputs = args[0]
        if isinstance(moments, NeuronMoments):
            moments.update(inputs.view(*shape, -1))
            return
        known = squares.get(id(inputs))
        if known is None or known[0] is not inputs:
            before = moments.sum_squares.clone()
            moments.update(inputs)
            squares[id(inputs)] = inputs, moments.sum_squares - before
        else:
            moments.tokens += inputs.numel() // inputs.shape[-1]
            moments.sum_squares += known[1]

    return hook
