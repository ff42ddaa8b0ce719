"""Gradient statistics of one loaded model over token windows: one backward pass a window, one block at a time.

A forward pass notes the state that enters each block. From the last block down, each block is run again on a shallow
copy whose weights are parameters of its own over the same storage, so the shared model never requires a gradient.
Windows are the inner loop: the weights' gradients of one block exist at a time, and are reduced to one number a unit.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from analysis.gradients.differentiable import differentiable_copy, ordinary_calls
from analysis.gradients.states import States
from analysis.gradients.taylor import Taylor, WeightGradients, head_taylor, neuron_taylor, per_unit
from analysis.model.architecture import Block
from analysis.model.middle import Middle
from analysis.model.runner import BlockCall, Runner
from analysis.statistics.accumulators import Accumulator, total, zeros
from analysis.statistics.collect import Report
from analysis.text import Windows


@dataclass
class Gates(Accumulator):
    """Derivatives of the windows' losses in the multipliers of some units; fields are (units,) but for `windows`.

    A multiplier m scales what its unit hands on, z -> m z; 1 is the model as it is, 0 is the unit removed. At m = 1
    the derivative of a window's loss (its mean negative log likelihood, nats) is the sum over tokens of z . dL/dz.
    """

    windows: torch.Tensor
    sum: torch.Tensor
    sum_absolute: torch.Tensor
    sum_squares: torch.Tensor

    @classmethod
    def empty(cls, units: int) -> Gates:
        """Nothing seen yet."""
        return cls(zeros(), zeros(units), zeros(units), zeros(units))

    def update(self, derivatives: torch.Tensor) -> None:
        """Add one window's derivatives (units,)."""
        values = derivatives.double().cpu()
        self.windows += 1
        self.sum += values
        self.sum_absolute += values.abs()
        self.sum_squares += values.square()

    def mean(self) -> torch.Tensor:
        """Derivative of the mean loss, (units,)."""
        return self.sum / self.windows

    def mean_absolute(self) -> torch.Tensor:
        """Mean over windows of the derivative's size, (units,)."""
        return self.sum_absolute / self.windows

    def mean_square(self) -> torch.Tensor:
        """Mean over windows of the derivative squared, (units,)."""
        return self.sum_squares / self.windows


@dataclass
class BlockGradients:
    """What one block's gradients are reduced to; a sublayer that the block lacks has None.

    `block`, `attention` and `mlp` have one unit: what the block or sublayer adds to the state, its post-norm and
    residual scaling included. `heads` and `kv_groups` are slices of the input of the output projection, `neurons` the
    input of the down projection.
    """

    scored: int
    """Scored tokens in a window."""
    block: Gates
    attention: Gates | None
    mlp: Gates | None
    heads: Gates | None
    kv_groups: Gates | None
    neurons: Gates | None
    head_weights: Taylor | None = None
    """Sums over each query head's weights: see `analysis.gradients.taylor.head_taylor`."""
    neuron_weights: Taylor | None = None
    """Sums over each neuron's weights: see `analysis.gradients.taylor.neuron_taylor`."""

    @classmethod
    def empty(cls, block: Block, scored: int) -> BlockGradients:
        """Nothing seen yet, of windows with that many scored tokens."""
        attention, mlp = block.attention, block.mlp
        return cls(
            scored=scored,
            block=Gates.empty(1),
            attention=Gates.empty(1) if attention else None,
            mlp=Gates.empty(1) if mlp else None,
            heads=Gates.empty(attention.query_heads) if attention else None,
            kv_groups=Gates.empty(attention.kv_heads) if attention else None,
            neurons=Gates.empty(mlp.width) if mlp else None,
        )

    def tensors(self) -> Iterator[torch.Tensor]:
        """Everything it holds."""
        for part in vars(self).values():
            if isinstance(part, (Gates, Taylor)):
                yield from vars(part).values()


@dataclass
class Gradients:
    """Gradient statistics of `windows` windows."""

    blocks: list[BlockGradients]
    tokens: int
    """Scored tokens over all windows."""
    windows: int
    loss: float
    """Mean negative log likelihood of a scored token, nats."""

    @property
    def scored(self) -> int:
        """Scored tokens in a window."""
        return self.tokens // self.windows

    @property
    def bytes(self) -> int:
        """Memory that it takes."""
        return sum(tensor.numel() * tensor.element_size() for block in self.blocks for tensor in block.tensors())


class _Steps:
    """Reports progress; a step is the work of one forward run of a block on one window."""

    def __init__(self, report: Report, steps: int) -> None:
        self.report = report
        self.steps = steps
        self.done = 0

    def step(self, message: str, steps: int = 1) -> None:
        """Say what begins now; may raise to stop the work."""
        self.report(self.done / self.steps, message)
        self.done += steps


BACKWARD = 3
"""Steps that the second run of a block and its backward pass take."""


def collect_gradients(runner: Runner, windows: Windows, report: Report = lambda fraction, message: None) -> Gradients:
    """Gradient statistics of the mean loss per token over `windows`.

    Memory beside the model: the weights' gradients of one block, their sum and the sum of their squares in float32;
    the states, of which at most `analysis.gradients.states.MEMORY` bytes are in memory; the logits of `HEAD_CHUNK`
    positions.

    Args:
        runner: the model, which is left as it is.
        report: progress; called between the blocks of every window.

    Raises:
        InputError: the disk has no room for the states of that many windows.
    """
    count = len(runner.blocks)
    steps = _Steps(report, windows.count * count * (1 + BACKWARD))
    with torch.inference_mode(False), torch.no_grad(), States() as states:
        calls = ordinary_calls(runner.prepare(windows.ids[:1]).calls)  # the same for all: one length, no padding
        loss = sum(_forward(runner, windows, index, calls, states, steps) for index in range(windows.count))
        found = [
            _differentiate(runner, block, calls[block.index], states, windows, steps)
            for block in reversed(runner.architecture.blocks)
        ]
    report(1.0, f"Gradients of {windows.predictions:,} tokens")
    return Gradients(found[::-1], windows.predictions, windows.count, loss / windows.count)


def _forward(
    runner: Runner, windows: Windows, window: int, calls: tuple[BlockCall, ...], states: States, steps: _Steps
) -> float:
    """Note the states entering each block, and the loss gradient at the last state in place of it."""
    ids = windows.ids[window : window + 1]
    state = runner.prepare(ids).state.clone()  # an ordinary tensor, which autograd can work with
    for index, (block, call) in enumerate(zip(runner.blocks, calls, strict=True)):
        steps.step(f"Window {window + 1} of {windows.count}: block {index + 1}")
        states.write(index, window, state)
        state = runner.run(block, state, call)
    check = lambda: steps.step(f"Window {window + 1} of {windows.count}: head", 0)  # noqa: E731
    loss, gradient = runner.loss_gradient(state, ids, check)
    states.write(len(runner.blocks), window, gradient)
    return loss


def _differentiate(
    runner: Runner, block: Block, call: BlockCall, states: States, windows: Windows, steps: _Steps
) -> BlockGradients:
    """Statistics of one block; the gradients at the state entering it take that state's place."""
    module, weights = differentiable_copy(runner.blocks[block.index], block)
    inputs = _Inputs(module, block)
    middle = Middle(module, block)
    found = BlockGradients.empty(block, windows.length - 1)
    gathered = {path: WeightGradients.empty(weight) for path, weight in weights.items()}
    for window in range(windows.count):
        steps.step(f"Backward through block {block.index + 1}: window {window + 1} of {windows.count}", BACKWARD)
        before = states.read(block.index, window).requires_grad_()
        with torch.enable_grad():
            after = runner.run(module, before, call)
        inner = {name: tensor for name, tensor in (*inputs.caught.items(), ("middle", middle.before_mlp))
                 if tensor is not None}  # fmt: skip
        incoming = states.read(block.index + 1, window).to(after.device)
        wanted = [before, *inner.values(), *weights.values()]
        gradient, *rest = torch.autograd.grad(after, wanted, incoming)
        states.write(block.index, window, gradient)
        at_inner = dict(zip(inner, rest[: len(inner)], strict=True))
        for part, weight_gradient in zip(gathered.values(), rest[len(inner) :], strict=True):
            part.update(weight_gradient)
        _add_sublayers(found, block, before, middle.state(before, after), after, incoming, at_inner.get("middle"))
        _add_units(found, block, inner, at_inner)
    found.head_weights = head_taylor(block.attention, gathered) if block.attention else None
    found.neuron_weights = neuron_taylor(block.mlp, gathered) if block.mlp else None
    return found


class _Inputs:
    """Catches the input of a block's output and down projections while the block runs."""

    def __init__(self, module: nn.Module, block: Block) -> None:
        self.caught: dict[str, torch.Tensor] = {}
        if block.attention is not None:
            module.get_submodule(block.attention.output.module).register_forward_pre_hook(self._hook("attention"))
        if block.mlp is not None:
            module.get_submodule(block.mlp.down.module).register_forward_pre_hook(self._hook("mlp"))

    def _hook(self, name: str) -> Any:
        def hook(_: nn.Module, args: tuple[Any, ...]) -> None:
            self.caught[name] = args[0]

        return hook


def _add_sublayers(
    found: BlockGradients,
    block: Block,
    before: torch.Tensor,
    middle: torch.Tensor,
    after: torch.Tensor,
    incoming: torch.Tensor,
    at_middle: torch.Tensor | None,
) -> None:
    """Derivatives in the multipliers of what block, attention and MLP add.

    In a parallel block, or where a sublayer is missing, both parts are added to the output itself.
    """
    start = before.to(after.device)
    found.block.update(_products(after - start, incoming))
    if found.attention is not None:
        at = incoming if at_middle is None else at_middle.view_as(incoming)
        found.attention.update(_products(middle - start, at))
    if found.mlp is not None:
        found.mlp.update(_products(after - middle.to(after.device), incoming))


def _products(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """Their inner product over everything, (1,)."""
    return (first.detach().double() * second.double()).sum().view(1)


def _add_units(
    found: BlockGradients, block: Block, inner: dict[str, torch.Tensor], gradients: dict[str, torch.Tensor]
) -> None:
    """Derivatives in the multipliers of query heads, KV groups and neurons."""
    sums = {
        name: total((inner[name].detach().float() * gradients[name].float()).flatten(0, -2), 0)
        for name in ("attention", "mlp")
        if name in inner
    }
    if block.attention is not None and found.heads is not None and found.kv_groups is not None:
        heads = per_unit(block.attention.output, sums["attention"])
        found.heads.update(heads)
        found.kv_groups.update(heads.view(block.attention.kv_heads, -1).sum(dim=1))
    if block.mlp is not None and found.neurons is not None:
        found.neurons.update(per_unit(block.mlp.down, sums["mlp"]))
