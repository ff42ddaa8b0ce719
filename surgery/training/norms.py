"""Root-mean-square norms with a gradient in few passes.

With n = x / rms(x) and y = n * scale, the gradient is dL/dx = (h - n * mean(h n)) / rms(x), h = scale * dL/dy. Autograd
forms it from nine steps, each over all states; here it takes four. Source of the norm: Zhang and Sennrich (1910.07467).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from analysis.model.modules import replace

EPSILONS = ("variance_epsilon", "eps")
"""What transformers' norms call the number that is added to the mean square."""


class _RootMeanSquare(torch.autograd.Function):
    """x / sqrt(mean x^2 + epsilon) * scale over the last dimension, with a gradient for x alone."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, scale: torch.Tensor, epsilon: float) -> torch.Tensor:
        squares = torch.linalg.vector_norm(x, dim=-1, keepdim=True).square_()
        inverse = squares.div_(x.shape[-1]).add_(epsilon).rsqrt_()
        normed = x * inverse
        ctx.save_for_backward(normed, inverse, scale)
        return normed * scale

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        normed, inverse, scale = ctx.saved_tensors
        slope = gradient * scale
        along = torch.linalg.vecdot(slope, normed).unsqueeze_(-1).div_(-normed.shape[-1])
        return slope.addcmul_(normed, along).mul_(inverse), None, None


class RootMeanSquareNorm(nn.Module):
    """A root-mean-square norm in training, in place of the original, which still serves without gradients.

    Args:
        scale: what it multiplies by, (hidden,).
        epsilon: what it adds to the mean square.
    """

    scale: torch.Tensor

    def __init__(self, norm: nn.Module, scale: torch.Tensor, epsilon: float) -> None:
        super().__init__()
        self.norm, self.epsilon = norm, epsilon
        self.register_buffer("scale", scale, persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """States (..., hidden) to states (..., hidden)."""
        if torch.is_grad_enabled() and x.dtype == torch.float32:
            return _RootMeanSquare.apply(x, self.scale, self.epsilon)
        out: torch.Tensor = self.norm(x)
        return out


def use_fast_norms(block: nn.Module) -> None:
    """Replace the root-mean-square norms of a block of one's own: what is one is tried out, not told by its name."""
    for path, module in list(block.named_modules()):
        known = _scale_and_epsilon(module)
        if known is not None:
            replace(block, path, RootMeanSquareNorm(module, *known))


@torch.no_grad()
def _scale_and_epsilon(norm: nn.Module) -> tuple[torch.Tensor, float] | None:
    """What a module multiplies by and adds, if it is such a norm in float32."""
    epsilon = next((getattr(norm, name) for name in EPSILONS if isinstance(getattr(norm, name, None), float)), None)
    weight = getattr(norm, "weight", None)
    if epsilon is None or not isinstance(weight, torch.Tensor) or weight.dim() != 1 or weight.dtype != torch.float32:
        return None
    ones = torch.ones_like(weight)
    scale = norm(ones[None])[0] * (1 + epsilon) ** 0.5  # the mean square of ones is 1
    generator = torch.Generator().manual_seed(0)
    trial = torch.randn(4, len(weight), generator=generator).to(weight.device)
    trial *= torch.tensor([0.001, 0.1, 1.0, 30.0], device=weight.device)[:, None]
    expected = _RootMeanSquare.apply(trial, scale, epsilon)
    return (scale, epsilon) if torch.allclose(norm(trial), expected, rtol=1e-4, atol=1e-6) else None
