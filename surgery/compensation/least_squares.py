"""Least squares from running moments: the arithmetic of compensation without training, in float64."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch

RIDGES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0)
"""Tried on windows kept aside, relative to the mean diagonal of the input moments."""


@dataclass
class PairMoments:
    """Sums over tokens of inputs x (inputs,) and targets y (outputs,), float64 on the CPU."""

    tokens: int
    inputs: torch.Tensor
    """(inputs, inputs) sum of x x^T."""
    cross: torch.Tensor
    """(outputs, inputs) sum of y x^T."""
    squares: float
    """Sum of y^T y."""
    input_sum: torch.Tensor
    target_sum: torch.Tensor

    @classmethod
    def empty(cls, inputs: int, outputs: int) -> PairMoments:
        """Nothing seen yet."""

        def zeros(*shape: int) -> torch.Tensor:
            return torch.zeros(shape, dtype=torch.float64)

        return cls(0, zeros(inputs, inputs), zeros(outputs, inputs), 0.0, zeros(inputs), zeros(outputs))

    def update(self, inputs: torch.Tensor, targets: torch.Tensor) -> None:
        """Add tokens: inputs (..., inputs) and targets (..., outputs)."""
        x = inputs.reshape(-1, inputs.shape[-1]).float()
        y = targets.reshape(-1, targets.shape[-1]).float()
        self.tokens += len(x)
        # Products of some hundred tokens in float32, their sum in float64.
        self.inputs += (x.T @ x).double().cpu()
        self.cross += (y.T @ x).double().cpu()
        self.squares += float(y.double().square().sum())
        self.input_sum += x.double().sum(dim=0).cpu()
        self.target_sum += y.double().sum(dim=0).cpu()

    def error(self, weight: torch.Tensor) -> float:
        """Squared error of y ~ W x as a share of the sum of y^T y; W is (outputs, inputs), float64."""
        missed = self.squares - 2 * float((weight * self.cross).sum()) + float(((weight @ self.inputs) * weight).sum())
        return max(missed, 0.0) / self.squares if self.squares > 0 else 0.0

    def mean_miss(self, weight: torch.Tensor) -> torch.Tensor:
        """Mean of y - W x over tokens, (outputs,): the bias that a narrowed linear lacks. Source: FLAP (2312.11983)."""
        return (self.target_sum - weight @ self.input_sum) / max(self.tokens, 1)


def refit(moments: PairMoments, start: torch.Tensor, ridge: float) -> torch.Tensor:
    """The weight nearest to the least-squares solution that a ridge pulls towards `start`.

    W = W0 + (Y X^T - W0 X X^T)(X X^T + ridge * mean diagonal * I)^-1: plain slicing at an infinite ridge, ordinary
    least squares at none, and on the same tokens never worse than W0.

    Args:
        moments: of the inputs and targets.
        start: W0, (outputs, inputs), float64.
        ridge: relative to the mean of the diagonal of X X^T, at least 0.
    """
    size = len(moments.inputs)
    scale = float(moments.inputs.diagonal().mean())
    if scale <= 0:
        return start
    # A speck of ridge keeps inputs that never fire from making the system singular.
    damped = moments.inputs + max(ridge, 1e-10) * scale * torch.eye(size, dtype=torch.float64)
    factor = torch.linalg.cholesky(damped)
    return start + torch.cholesky_solve((moments.cross - start @ moments.inputs).T, factor).T


@dataclass(frozen=True)
class Fitted:
    """A refit weight and how it was judged; errors are shares of the target's energy."""

    weight: torch.Tensor
    ridge: float | None
    """The ridge that was used; None where nothing beat plain slicing on the windows kept aside."""
    plain_error: float
    error: float
    plain_error_aside: float
    error_aside: float


def best_refit(fit: PairMoments, aside: PairMoments, start: torch.Tensor, ridge: float | None) -> Fitted:
    """Refit with the given ridge as it is, or with the best one on the windows kept aside, if it beats `start` there.

    Args:
        fit: moments of the windows that are fitted.
        aside: moments of the windows kept aside.
        start: the weight without a refit, (outputs, inputs), float64.
        ridge: a fixed ridge; None chooses among `RIDGES`.
    """
    if ridge is not None:
        chosen: float | None = ridge
    else:
        best, error = _walk(lambda value: aside.error(refit(fit, start, value)))
        chosen = best if error < aside.error(start) else None
    weight = start if chosen is None else refit(fit, start, chosen)
    return Fitted(weight, chosen, fit.error(start), fit.error(weight), aside.error(start), aside.error(weight))


def _walk(error_of: Callable[[float], float]) -> tuple[float, float]:
    """The ridge of the least error and that error, walking from the middle of `RIDGES` while the error falls."""
    known: dict[int, float] = {}

    def error(place: int) -> float:
        if not 0 <= place < len(RIDGES):
            return math.inf
        if place not in known:
            known[place] = error_of(RIDGES[place])
        return known[place]

    place = len(RIDGES) // 2
    step = 1 if error(place + 1) < error(place) else -1
    while error(place + step) < error(place):
        place += step
    return RIDGES[place], known[place]
