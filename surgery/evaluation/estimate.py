"""A measured perplexity with its standard error."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from typing import Any

import torch


@dataclass(frozen=True)
class Estimate:
    """A measured perplexity, over the first `windows` of `of_windows` windows.

    `difference` and its standard error are paired against the dense model on the same tokens. All losses in nats per
    token; `standard_error` is the perplexity's own, from the spread of the windows' mean losses (delta method), and
    None with a single window.
    """

    perplexity: float
    nll: float
    standard_error: float | None
    nll_standard_error: float | None
    dense_perplexity: float
    difference: float
    difference_standard_error: float | None
    windows: int
    of_windows: int
    tokens: int
    """Scored tokens."""
    seconds: float
    window_losses: tuple[float, ...] = field(default=(), repr=False)
    """Mean loss of each window."""

    @property
    def complete(self) -> bool:
        """Whether all windows are in."""
        return self.windows == self.of_windows

    def document(self) -> dict[str, Any]:
        """Plain JSON values without the windows' own; an overflowing perplexity is the string "inf"."""
        return {
            key: str(value) if isinstance(value, float) and not math.isfinite(value) else value
            for key, value in asdict(self).items()
            if key != "window_losses"
        }

    def against(self, other: Estimate) -> tuple[float, float | None]:
        """Loss above another recipe's on the same windows, nats a token, and its standard error, paired window by
        window; no error with a single one.

        Raises:
            ValueError: the other one is of other windows.
        """
        mine, its = (torch.tensor(one.window_losses, dtype=torch.float64) for one in (self, other))
        if len(mine) != len(its):
            raise ValueError(f"estimates of {len(mine)} and of {len(its)} windows")
        return self.nll - other.nll, _standard_error(mine - its)


def perplexity_of(nll: float) -> float:
    """exp(nll), `inf` where that overflows."""
    try:
        return math.exp(nll)
    except OverflowError:
        return math.inf


def estimate_of(edited: torch.Tensor, reference: torch.Tensor, of_windows: int, seconds: float) -> Estimate:
    """Statistics over windows: losses (windows, tokens - 1) of the edited and of the dense model."""
    means, dense_means = edited.double().mean(dim=1), reference.double().mean(dim=1)
    nll, dense_nll = float(means.mean()), float(dense_means.mean())
    count = len(means)
    error = _standard_error(means)
    perplexity = perplexity_of(nll)
    return Estimate(
        perplexity=perplexity,
        nll=nll,
        standard_error=None if error is None else perplexity * error,
        nll_standard_error=error,
        dense_perplexity=perplexity_of(dense_nll),
        difference=nll - dense_nll,
        difference_standard_error=_standard_error(means - dense_means),
        windows=count,
        of_windows=of_windows,
        tokens=edited.numel(),
        seconds=seconds,
        window_losses=tuple(means.tolist()),
    )


def _standard_error(values: torch.Tensor) -> float | None:
    return float(values.std() / len(values) ** 0.5) if len(values) > 1 else None
