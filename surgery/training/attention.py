"""Causal attention for training on a CPU: matrix products over blocks of queries, their probabilities kept.

PyTorch's flash attention recomputes probabilities in its backward pass and works in small tiles: right for long
windows, slow for short ones on a CPU. Here a block of queries meets the keys up to its own end in one matrix product a
key/value head, all its query heads together, and what lies in the future is not computed at all.
"""

from __future__ import annotations

import copy
from functools import partial
from typing import Any

import torch
from torch import nn

from surgery.recipe.healing import Precision
from surgery.training.precision import product_type

NAME = "model_surgery_causal"
ROWS = 128
"""Queries in a block."""
MOST_BYTES = 64 * 2**20
"""Of kept probabilities in one call; where they would be more, PyTorch's own attention is used."""


class _Causal(torch.autograd.Function):
    """softmax(scale q k^T) v with a causal mask; (batch, heads, tokens, size) to (batch, tokens, heads, size).

    The products' factors, the scores and what is given back are of the type `factors`; gradients are float32.
    """

    @staticmethod
    def forward(ctx: Any, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float,
                factors: torch.dtype) -> torch.Tensor:  # fmt: skip
        batch, heads, tokens, size = q.shape
        groups = k.shape[1]
        q = _grouped(torch.mul(q, scale, out=torch.empty_like(q, dtype=factors)), groups)
        k, v = (x.reshape(-1, tokens, size).to(factors) for x in (k, v))
        future = torch.ones(ROWS, ROWS, dtype=torch.bool, device=q.device).triu_(1)
        out = torch.empty_like(q)
        kept: list[torch.Tensor] = []
        for start in range(0, tokens, ROWS):
            rows, end = slice(start, start + ROWS), min(start + ROWS, tokens)
            scores = torch.bmm(_flat(q[:, :, rows]), k[:, :end].transpose(1, 2))
            corner = scores.view(*q.shape[:2], end - start, end)[..., start:]
            corner.masked_fill_(future[: end - start, : end - start], float("-inf"))
            torch.softmax(scores, dim=-1, out=scores)
            out[:, :, rows] = torch.bmm(scores, v[:, :end]).view(out[:, :, rows].shape)
            kept.append(scores)
        ctx.save_for_backward(q, k, v, *kept)
        ctx.scale, ctx.shape = scale, (batch, heads, tokens, size)
        return out.view(batch, heads, tokens, size).transpose(1, 2).contiguous()

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        q, k, v, *kept = ctx.saved_tensors
        batch, heads, tokens, size = ctx.shape
        g = _grouped(gradient.transpose(1, 2), len(k) // batch)
        to_q, to_k, to_v = (torch.zeros(x.shape, device=x.device) for x in (q, k, v))
        for number, probabilities in enumerate(kept):
            start = number * ROWS
            rows, end = slice(start, start + ROWS), min(start + ROWS, tokens)
            own = _flat(g[:, :, rows])
            to_v[:, :end] += torch.bmm(probabilities.transpose(1, 2), own)
            slope = torch.bmm(own, v[:, :end].transpose(1, 2))
            slope = torch._softmax_backward_data(slope, probabilities, -1, slope.dtype)
            to_q[:, :, rows] = torch.bmm(slope, k[:, :end]).view(to_q[:, :, rows].shape)
            to_k[:, :end] += torch.bmm(slope.transpose(1, 2), _flat(q[:, :, rows]))
        keys = (batch, len(k) // batch, tokens, size)
        return to_q.mul_(ctx.scale).view(batch, heads, tokens, size), to_k.view(keys), to_v.view(keys), None, None


def _grouped(x: torch.Tensor, groups: int) -> torch.Tensor:
    """(batch, heads, tokens, size) as (batch x groups, heads of a group, tokens, size)."""
    batch, heads, tokens, size = x.shape
    return x.reshape(batch * groups, heads // groups, tokens, size)


def _flat(x: torch.Tensor) -> torch.Tensor:
    """(groups, heads of a group, rows, size) as (groups, all rows, size)."""
    return x.reshape(len(x), -1, x.shape[-1])


def causal_attention(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    factors: torch.dtype = torch.float32,
    **rest: Any,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """An attention function of transformers: this file's where a call is plainly causal, PyTorch's everywhere else.

    Args:
        query: (batch, heads, tokens, size).
        key: (batch, groups, tokens, size).
        attention_mask: None for a plainly causal call.
        scaling: of the scores; 1 / sqrt(size) when None.
        dropout: of the probabilities.
        factors: the type in which factors meet, and of what this file's attention gives back.
    """
    batch, heads, tokens, size = query.shape
    plain = (
        attention_mask is None
        and not dropout
        and getattr(module, "is_causal", True)
        and rest.get("is_causal") in (None, True)
        and not any(rest.get(name) is not None for name in ("position_bias", "cache", "softcap"))
        and key.shape[2] == tokens
        and value.shape == key.shape
        and batch * heads * tokens * tokens * factors.itemsize <= MOST_BYTES
    )
    if not (plain and torch.is_grad_enabled()):
        from transformers.integrations.sdpa_attention import sdpa_attention_forward

        found: tuple[torch.Tensor, None] = sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **rest
        )
        return found
    return _Causal.apply(query, key, value, size**-0.5 if scaling is None else scaling, factors), None


def use_causal_attention(block: nn.Module, path: str, precision: Precision) -> None:
    """Let the attention at a path of a block of one's own compute with `causal_attention`, if it used PyTorch's.

    Only on a CPU and with weights of float32: elsewhere PyTorch's is the better one.
    """
    attention: Any = block.get_submodule(path)
    config = attention.__dict__.get("config")
    weight = next(block.parameters(), None)
    if config is None or getattr(config, "_attn_implementation", None) != "sdpa":
        return
    if weight is None or weight.device.type != "cpu" or weight.dtype != torch.float32:
        return
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    name = f"{NAME}_{precision}"
    ALL_ATTENTION_FUNCTIONS.register(name, partial(causal_attention, factors=product_type(precision)))
    config = copy.copy(config)
    config._attn_implementation_internal = name
    attention.__dict__["config"] = config
