"""From the last state to the loss and back: logits exist for some positions at a time and are never kept.

The head is frozen, so of its gradient only the one at its input is needed. A chunk of positions gives its logits, the
objective turns them into their own gradient, and one more product with the head's weight brings that back.
"""

from __future__ import annotations

from typing import Any, Protocol

import torch

from analysis.execution import Runner
from analysis.modules import device_of, shallow_copy
from surgery.healing.scratch import Scratch

POSITIONS = 512
"""Positions whose logits exist at one time."""


class Objective(Protocol):
    """What is minimised, as a function of logits."""

    def __call__(self, logits: torch.Tensor, rows: slice) -> tuple[torch.Tensor, torch.Tensor]:
        """Sum of the loss over some positions, and its gradient in their logits.

        Args:
            logits: (n, vocabulary), float32; may be overwritten.
            rows: which of the positions that are learnt from.
        """


class CrossEntropy:
    """The negative log likelihood of targets (positions,), computed in place: one buffer serves as logits,
    probabilities and gradient."""

    def __init__(self, targets: torch.Tensor) -> None:
        self.targets = targets

    def __call__(self, logits: torch.Tensor, rows: slice) -> tuple[torch.Tensor, torch.Tensor]:
        """As `Objective`."""
        targets = self.targets[rows].to(logits.device)
        places = torch.arange(len(targets), device=logits.device)
        top, likeliest = logits.max(dim=1)
        chosen = logits[places, targets]
        torch.softmax(logits, dim=1, out=logits)
        # The log of the sum of exponentials, from the one probability that cannot underflow.
        loss = (top - logits[places, likeliest].log() - chosen).sum()
        logits[places, targets] -= 1
        return loss, logits


@torch.no_grad()
def loss_and_gradient(
    runner: Runner,
    inputs: torch.Tensor,
    objective: Objective,
    with_gradient: bool = True,
    scratch: Scratch | None = None,
) -> tuple[float, torch.Tensor]:
    """Sum of an objective over positions, and its gradient at what the head reads.

    Args:
        runner: whose head it is.
        inputs: normalised states (positions, hidden), detached.
        objective: of the logits.
        with_gradient: else the gradient is left zero.
        scratch: where the logits are written; a buffer of its own when None.

    Returns:
        The loss and (positions, hidden).
    """
    linear = runner.head_is_linear
    head: Any = shallow_copy(runner.model.get_submodule(runner.architecture.head)) if linear else None
    inputs = inputs.to(device_of(runner.model.get_submodule(runner.architecture.head)))
    gradient = torch.zeros_like(inputs)
    loss = 0.0
    words = len(head.weight) if linear else 0
    buffer = (scratch or Scratch()).take("logits", min(POSITIONS, len(inputs)), words, inputs) if linear else None
    for start in range(0, len(inputs), POSITIONS):
        rows = slice(start, min(start + POSITIONS, len(inputs)))
        if buffer is not None:
            logits = torch.mm(inputs[rows], head.weight.T, out=buffer[: rows.stop - start])
            if head.bias is not None:
                logits += head.bias
            part, slope = objective(logits, rows)
            if with_gradient:
                torch.mm(slope, head.weight, out=gradient[rows])
        else:
            with torch.enable_grad():
                leaf = inputs[rows].detach().requires_grad_()
                logits = runner.own_logits(leaf)
            part, slope = objective(logits.detach().float().clone(), rows)
            if with_gradient:
                (gradient[rows],) = torch.autograd.grad(logits, leaf, slope.to(logits.dtype))
        loss += float(part)
    return loss, gradient


def logits_of(runner: Runner, inputs: torch.Tensor) -> torch.Tensor:
    """Logits (positions, vocabulary), float32, of some normalised states."""
    if not runner.head_is_linear:
        return runner.own_logits(inputs).float()
    head: Any = shallow_copy(runner.model.get_submodule(runner.architecture.head))
    return torch.nn.functional.linear(inputs, head.weight, head.bias)
