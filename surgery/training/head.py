"""From the last state to the loss and back: logits exist for some positions at a time and are never kept.

The head is frozen, so of its gradient only the one at its input is needed. A chunk of positions gives its logits, the
objective turns them into their own gradient, and one more product with the head's weight brings that back.
"""

from __future__ import annotations

from typing import Any, Protocol

import torch

from analysis.model.modules import device_of, shallow_copy
from analysis.model.runner import Runner
from surgery.recipe.healing import Precision
from surgery.training.precision import product_type
from surgery.training.scratch import Scratch

POSITIONS = 512
"""Positions whose logits exist at one time."""


class Objective(Protocol):
    """What is minimised, as a function of logits."""

    def __call__(self, logits: torch.Tensor, rows: slice) -> tuple[torch.Tensor, torch.Tensor]:
        """Sum of the loss over some positions, and its gradient in their logits (n, vocabulary), which may be lost."""


class CrossEntropy:
    """The negative log likelihood of targets (positions,), computed in place: one buffer serves as logits,
    probabilities and gradient."""

    def __init__(self, targets: torch.Tensor) -> None:
        self.targets = targets

    def __call__(self, logits: torch.Tensor, rows: slice) -> tuple[torch.Tensor, torch.Tensor]:
        """As `Objective`."""
        targets = self.targets[rows].to(logits.device)
        places = torch.arange(len(targets), device=logits.device)
        top, chosen = logits.amax(dim=1), logits[places, targets]
        torch.softmax(logits, dim=1, out=logits)
        # The log of the sum of exponentials, from the one probability that cannot underflow.
        loss = (top - logits.amax(dim=1).log() - chosen).sum()
        logits[places, targets] -= 1
        return loss, logits


class Head:
    """The frozen head: normalised states to logits, and slopes of logits back to slopes of states.

    A head that is more than a linear (scaled, capped) is left to the model's own code, in float32.
    """

    def __init__(self, runner: Runner, precision: Precision = "float32") -> None:
        module = runner.model.get_submodule(runner.architecture.head)
        self.runner, self.precision, self.device = runner, precision, device_of(module)
        self.factor: torch.Tensor | None = None  # of a head that is a linear and no more
        self.bias: torch.Tensor | None = None
        if runner.head_is_linear:
            own: Any = dict(shallow_copy(module).named_parameters())  # there even where the model's are offloaded
            self.factor, self.bias = own["weight"].detach().to(product_type(precision)), own.get("bias")

    def logits(self, inputs: torch.Tensor, scratch: Scratch | None = None) -> torch.Tensor:
        """Logits (n, vocabulary), float32, of states (n, hidden); in a buffer of `scratch` where it is given."""
        if self.factor is None:
            return self.runner.own_logits(inputs).float()
        scratch = scratch or Scratch()
        shape = len(inputs), len(self.factor)
        logits = scratch.take("logits", *shape, inputs)
        if self.factor.dtype == logits.dtype:
            torch.mm(inputs, self.factor.T, out=logits)
        else:
            narrow = scratch.take("logits", *shape, self.factor)
            logits.copy_(torch.mm(inputs.to(narrow.dtype), self.factor.T, out=narrow))
        return logits if self.bias is None else logits.add_(self.bias)

    def slope(
        self, inputs: torch.Tensor, objective: Objective, rows: slice, scratch: Scratch
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """An objective on states (n, hidden), which are the positions `rows`, and its slope in them."""
        if self.factor is None:
            with torch.enable_grad():
                leaf = inputs.detach().requires_grad_()
                logits = self.runner.own_logits(leaf)
            loss, slope = objective(logits.detach().float().clone(), rows)
            return loss, torch.autograd.grad(logits, leaf, slope.to(logits.dtype))[0]
        loss, slope = objective(self.logits(inputs, scratch), rows)
        if slope.dtype != self.factor.dtype:
            slope = scratch.take("logits", len(slope), len(self.factor), self.factor).copy_(slope)
        return loss, (slope @ self.factor).to(inputs.dtype)


@torch.no_grad()
def loss_and_gradient(
    head: Head, inputs: torch.Tensor, objective: Objective, scratch: Scratch | None = None
) -> tuple[float, torch.Tensor]:
    """Sum of an objective over positions, and its gradient at the head's inputs (positions, hidden)."""
    scratch = scratch or Scratch()
    inputs = inputs.to(head.device)
    gradient = torch.empty_like(inputs)
    loss = 0.0
    for start in range(0, len(inputs), POSITIONS):
        rows = slice(start, min(start + POSITIONS, len(inputs)))
        part, gradient[rows] = head.slope(inputs[rows], objective, rows, scratch)
        loss += float(part)
    return loss, gradient
