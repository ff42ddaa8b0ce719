"""Trained linears: a frozen weight with low-rank matrices beside it, merged once a step, and trained weights.

A plain adapter multiplies every token by the frozen weight and by both small matrices, forward and backward. Here the
frozen weight and the adapter are added once a step; a token then meets one matrix, and the gradients of the small
matrices come from two projections to `rank` numbers a token: with y = x (W + s B A)^T and g = dL/dy,

    dL/dB = s g^T (x A^T),    dL/dA = s (g B)^T x,    dL/dx = g (W + s B A).

Nothing of the size of W is ever formed from gradients. Source of the adapter: LoRA (2106.09685), section 4.1.

With `precision` bfloat16 the factors of these products are rounded to bfloat16 (as in mixed-precision training,
1710.03740), and what passes from one linear to the next inside an MLP or an attention is kept in it: the small
matrices, their optimiser, the states between blocks, norms and everything outside of training stay float32.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from analysis.model.modules import weight_of
from surgery.recipe.healing import Precision
from surgery.training.precision import product_type


class _Merged(torch.autograd.Function):
    """y = x merged^T + bias, with gradients for x and the two small matrices; factors are of the type of `merged`."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, down: torch.Tensor, up: torch.Tensor, merged: torch.Tensor,
                bias: torch.Tensor | None, scale: float, narrow: bool) -> torch.Tensor:  # fmt: skip
        factor = x.to(merged.dtype)
        ctx.save_for_backward(factor, down, up, merged)
        ctx.scale, ctx.type = scale, x.dtype
        return _linear(factor, merged, bias, merged.dtype if narrow else x.dtype)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, down, up, merged = ctx.saved_tensors
        g = gradient.reshape(-1, gradient.shape[-1]).to(merged.dtype)
        rows = x.reshape(-1, x.shape[-1])
        to_x = (g @ merged).view(x.shape).to(ctx.type) if ctx.needs_input_grad[0] else None
        # Thin results are formed with their long side last: several times faster than the other way round.
        to_down = (up.T @ g.T) @ rows
        to_up = ((down @ rows.T) @ g).T
        return to_x, to_down.mul_(ctx.scale), to_up.mul_(ctx.scale), None, None, None, None


class _Frozen(torch.autograd.Function):
    """y = x W^T + bias with a gradient for x alone; factors are of the type of W."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None,
                narrow: bool) -> torch.Tensor:  # fmt: skip
        ctx.save_for_backward(weight)
        ctx.type = x.dtype
        return _linear(x.to(weight.dtype), weight, bias, weight.dtype if narrow else x.dtype)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        (weight,) = ctx.saved_tensors
        return (gradient.to(weight.dtype) @ weight).to(ctx.type), None, None, None


def _linear(factor: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, result: torch.dtype) -> torch.Tensor:
    """factor weight^T + bias; a bias is added in the result's type."""
    if factor.dtype == result and (bias is None or bias.dtype == result):
        return nn.functional.linear(factor, weight, bias)
    out = nn.functional.linear(factor, weight).to(result)
    return out if bias is None else out.add_(bias)


class FrozenLinear(nn.Module):
    """A frozen linear through which gradients flow, in place of the original.

    Args:
        narrow: whether outputs in training stay in the type of the factors; else they are of the inputs' type.
    """

    weight: torch.Tensor
    bias: torch.Tensor | None

    def __init__(self, linear: nn.Module, precision: Precision, narrow: bool = False) -> None:
        super().__init__()
        self.narrow = narrow
        bias: Any = linear.bias
        self.register_buffer("weight", weight_of(linear), persistent=False)
        self.register_buffer("bias", None if bias is None else bias.detach(), persistent=False)
        self.register_buffer("factor", self.weight.to(product_type(precision)).contiguous(), persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Inputs (..., inputs) to outputs (..., outputs)."""
        if torch.is_grad_enabled():
            return _Frozen.apply(x, self.factor, self.bias, self.narrow)
        return nn.functional.linear(x, self.weight, self.bias)


class AdaptedLinear(nn.Module):
    """A linear with low-rank matrices beside its frozen weight, in place of the original.

    Args:
        rank: r.
        scale: s, alpha over the rank.
        generator: draws A uniformly within 1 / sqrt(inputs), as peft does; B starts at zero.
        magnitude: DoRA (2402.09353): rows of the merged weight are brought to trained lengths; as in its section 4.3
            the rows' own lengths count as constants in the gradient.
        dropout: share of inputs that the adapter (not the frozen weight) is denied in training.
    """

    frozen: torch.Tensor
    weight: torch.Tensor
    factor: torch.Tensor
    bias: torch.Tensor | None

    def __init__(
        self,
        linear: nn.Module,
        rank: int,
        scale: float,
        generator: torch.Generator,
        magnitude: bool = False,
        dropout: float = 0.0,
        precision: Precision = "float32",
        narrow: bool = False,
    ) -> None:
        super().__init__()
        self.narrow = narrow
        weight = weight_of(linear)
        bias: Any = linear.bias
        self.lengths = torch.ones(0)
        self.scale, self.dropout = scale, dropout
        self.register_buffer("frozen", weight, persistent=False)
        self.register_buffer("bias", None if bias is None else bias.detach(), persistent=False)
        outputs, inputs = weight.shape
        drawn = (2 * torch.rand(rank, inputs, generator=generator) - 1) * inputs**-0.5
        self.down = nn.Parameter(drawn.to(weight.device, torch.float32))
        self.up = nn.Parameter(torch.zeros(outputs, rank, device=weight.device))
        self.magnitude = nn.Parameter(weight.float().norm(dim=1)) if magnitude else None
        self.masks: torch.Generator | None = None
        """Draws the dropout of a forward pass in training; None outside of it."""
        self.register_buffer("weight", weight.contiguous().clone(), persistent=False)
        rounded = precision == "bfloat16" and weight.dtype == torch.float32
        factor = self.weight.to(product_type(precision)) if rounded else self.weight
        self.register_buffer("factor", factor, persistent=False)
        self.refresh()

    @torch.no_grad()
    def refresh(self) -> None:
        """Merge again, after the small matrices have changed."""
        weight, frozen, up, down = self.weight, self.frozen, self.up, self.down
        if weight.dtype == torch.float32:
            torch.addmm(frozen, up, down, alpha=self.scale, out=weight)
        else:
            weight.copy_(frozen.float().addmm_(up, down, alpha=self.scale))
        if self.magnitude is not None:
            self.lengths = weight.float().norm(dim=1)
        if self.factor is not weight:
            self.factor.copy_(weight)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Inputs (..., inputs) to outputs (..., outputs)."""
        if self.dropout > 0 and self.masks is not None:
            out = self._dropped(x)
        else:
            factor = self.factor if torch.is_grad_enabled() else self.weight
            bias = self.bias if self.magnitude is None else None
            down, up = self.down.to(factor.dtype), self.up.to(factor.dtype)
            out = _Merged.apply(x, down, up, factor, bias, self.scale, self.narrow)
            if self.magnitude is None:
                return out
        if self.magnitude is not None:
            out = out * (self.magnitude / self.lengths).to(out.dtype)
        return out if self.bias is None else out + self.bias

    def _dropped(self, x: torch.Tensor) -> torch.Tensor:
        """Outputs without the bias, where the adapter misses some inputs."""
        keep = torch.rand(x.shape, generator=self.masks).to(x.device) >= self.dropout
        down, up = self.down.to(x.dtype), self.up.to(x.dtype)
        inner = nn.functional.linear(x * keep / (1 - self.dropout), down)
        return nn.functional.linear(x, self.frozen) + self.scale * nn.functional.linear(inner, up)

    @torch.no_grad()
    def result(self) -> torch.Tensor:
        """The weight that counts after training, (outputs, inputs)."""
        merged = self.frozen.float().addmm(self.up, self.down, alpha=self.scale)
        if self.magnitude is not None:
            merged *= (self.magnitude / merged.norm(dim=1))[:, None]
        return merged


class TrainedLinear(nn.Module):
    """A linear whose weight itself is trained: a copy, in place of the original."""

    bias: torch.Tensor | None

    def __init__(self, linear: nn.Module, precision: Precision = "float32", narrow: bool = False) -> None:
        super().__init__()
        self.rounded, self.narrow = precision == "bfloat16", narrow
        self.weight = nn.Parameter(weight_of(linear).clone(memory_format=torch.contiguous_format))
        bias: Any = linear.bias
        self.register_buffer("bias", None if bias is None else bias.detach(), persistent=False)

    def refresh(self) -> None:
        """Nothing is merged."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Inputs (..., inputs) to outputs (..., outputs)."""
        if self.rounded and torch.is_grad_enabled():
            return _linear(x.bfloat16(), self.weight.bfloat16(), self.bias, torch.bfloat16 if self.narrow else x.dtype)
        return nn.functional.linear(x, self.weight, self.bias)

    def result(self) -> torch.Tensor:
        """The weight that counts after training, (outputs, inputs)."""
        return self.weight.detach().clone()
