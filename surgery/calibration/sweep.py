"""Walking calibration windows through the blocks of an edited model, and watching what its linears read.

Compensation, calibrated quantisation and low-rank repair are such walks: each block is worked on with the states that
the edited blocks before it give.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from threading import Event
from typing import Any

import torch
from torch import nn

from analysis.model.architecture import Block
from analysis.model.modules import shallow_copy
from analysis.model.runner import BlockCall, Prepared, Runner
from surgery.common.progress import Report, raise_if_set
from surgery.errors import InputError
from surgery.structure.channels import model_around
from surgery.structure.narrow import build_block
from surgery.structure.structure import BlockSpec, Structure

GROUP_TOKENS = 2048
"""Tokens that go through a block together."""


@dataclass
class Group:
    """Windows that go through a block together: the state entering the next block, and how blocks are called."""

    prepared: Prepared
    state: torch.Tensor

    @classmethod
    def cut(cls, runner: Runner, ids: torch.Tensor) -> Iterator[Group]:
        """Groups of windows (windows, tokens), each ready to enter the first block."""
        size = max(1, GROUP_TOKENS // ids.shape[1])
        for start in range(0, len(ids), size):
            prepared = runner.prepare(ids[start : start + size])
            yield cls(prepared, prepared.state.clone())

    def call(self, spec: BlockSpec) -> BlockCall:
        """How the block is called."""
        return self.prepared.calls[spec.source]

    def advance(self, runner: Runner, module: nn.Module, spec: BlockSpec) -> None:
        """Send the state through a block."""
        self.state = runner.run(module, self.state, self.call(spec))


class _Enough(Exception):
    """Everything that is watched has been seen: the rest of the block need not run."""


def inputs_of(
    runner: Runner, module: nn.Module, paths: Sequence[str], state: torch.Tensor, call: BlockCall
) -> dict[str, torch.Tensor]:
    """What linears inside a block read, (windows, tokens, inputs), while it runs as far as the last of them."""
    caught: dict[str, torch.Tensor] = {}
    observed = shallow_copy(module)  # a block that is whole is the shared model's own

    def watch(path: str) -> Callable[[nn.Module, Any], None]:
        def see(_: nn.Module, args: Any) -> None:
            caught[path] = args[0]
            if len(caught) == len(paths):
                raise _Enough

        return see

    for path in paths:
        observed.get_submodule(path).register_forward_pre_hook(watch(path))
    try:
        runner.run(observed, state, call)
    except _Enough:
        return caught
    raise ValueError(f"the block does not run {set(paths) - set(caught)}")


@dataclass
class Covariance:
    """Sum over tokens of x x^T, (inputs, inputs), float64 on the CPU; every token alike."""

    tokens: int
    total: torch.Tensor

    @classmethod
    def empty(cls, inputs: int) -> Covariance:
        """Nothing seen yet."""
        return cls(0, torch.zeros(inputs, inputs, dtype=torch.float64))

    def update(self, inputs: torch.Tensor) -> None:
        """Add tokens (..., inputs)."""
        x = inputs.reshape(-1, inputs.shape[-1]).float()
        self.tokens += len(x)
        # Products of some hundred tokens in float32, their sum in float64.
        self.total += (x.T @ x).double().cpu()


def linear_paths(block: Block, spec: BlockSpec) -> tuple[tuple[str, ...], ...]:
    """The linears of what stays of a block, in stages of those that read the same input, in the order they run in.

    Fused modules stand once. Where attention and MLP stand side by side the order between them means nothing.
    """
    stages: list[tuple[str, ...]] = []
    if block.attention is not None and spec.attention:
        roles = (block.attention.query, block.attention.key, block.attention.value)
        stages += [tuple(dict.fromkeys(role.module for role in roles)), (block.attention.output.module,)]
    if block.mlp is not None and spec.mlp:
        inputs = [role for role in (block.mlp.gate, block.mlp.up) if role is not None]
        stages += [tuple(dict.fromkeys(role.module for role in inputs)), (block.mlp.down.module,)]
    return tuple(stages)


class Sweep:
    """The blocks of a structure that are not empty, one after the other: the skeleton of every calibrated pass.

    Args:
        structure: what is walked through; channels may be gone and embeddings quantised.
        ids: calibration windows (windows, tokens).
        report: progress, told before each block; may raise to stop.
        words: what is being done to a block.
    """

    def __init__(
        self,
        runner: Runner,
        structure: Structure,
        ids: torch.Tensor | None,
        report: Report,
        stop: Event | None,
        words: str,
    ) -> None:
        if structure.base_key:
            around = model_around(runner.model, runner.architecture, structure)
            runner = Runner(around, structure.architecture)
        self.runner = runner
        self.kept = structure.kept
        self.groups = [] if ids is None else list(Group.cut(runner, ids))
        self._blocks = structure.blocks
        self._report, self._stop, self._words = report, stop, words

    def rework(self, change: Callable[[BlockSpec], BlockSpec]) -> tuple[BlockSpec, ...]:
        """Change one block after the other, each with the states that the changed blocks before it give.

        Returns the structure's specs, the changed ones in place of theirs. `change` may call everything below.
        """
        done: list[BlockSpec] = []
        for position, spec in enumerate(self.kept):
            self.check()
            self._report(position / len(self.kept), f"{self._words} block {position + 1} of {len(self.kept)}")
            done.append(change(spec))
            self.advance(done[-1])
        changed = iter(done)
        return tuple(spec if spec.empty else next(changed) for spec in self._blocks)

    def check(self) -> None:
        """Stop where that is asked for."""
        raise_if_set(self._stop)

    def block(self, spec: BlockSpec) -> Block:
        """The map of a spec's source block."""
        return self.runner.architecture.blocks[spec.source]

    def module(self, spec: BlockSpec) -> nn.Module:
        """The block that a spec describes, its weights at hand even where accelerate keeps them elsewhere."""
        return shallow_copy(build_block(self.runner.blocks[spec.source], self.block(spec), spec))

    def covariances(self, spec: BlockSpec, paths: Sequence[str]) -> dict[str, Covariance]:
        """Input covariances of linears in the block of a spec, on the states that enter it; none without windows.

        Raises:
            InputError: an input is not finite.
        """
        if not self.groups:
            return {}
        module = self.module(spec)
        found: dict[str, Covariance] = {}
        for group in self.groups:
            self.check()
            for path, read in inputs_of(self.runner, module, paths, group.state, group.call(spec)).items():
                found.setdefault(path, Covariance.empty(read.shape[-1])).update(read)
        if not all(bool(torch.isfinite(seen.total).all()) for seen in found.values()):
            raise InputError(
                f"Activations of block {spec.source} are not finite on the calibration text: choose another text."
            )
        return found

    def advance(self, spec: BlockSpec) -> None:
        """Send all states through the block of a spec."""
        if not self.groups:
            return
        module = self.module(spec)
        for group in self.groups:
            self.check()
            group.advance(self.runner, module, spec)
