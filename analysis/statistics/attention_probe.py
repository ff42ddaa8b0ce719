"""An attention function that also measures each head, for transformers' attention interface.

It replaces the implementation on a shallow copy of one attention module only. Attention maps exist for `ROWS` query
positions of one window at a time, never (tokens x tokens) for every head of every window.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn

from analysis.model.modules import replace
from analysis.statistics.accumulators import HeadMoments, total

NAME = "model_surgery_probe"
ROWS = 128
"""Query positions whose attention maps exist at one time."""


def install(block: nn.Module, attention_path: str, moments: HeadMoments) -> None:
    """Make the attention of a shallow-copied block feed `moments`, those of the block's heads, while it computes."""
    from transformers import AttentionInterface

    AttentionInterface.register(NAME, _attention)  # the same function each time: registering again changes nothing
    attention = block.get_submodule(attention_path)
    config = copy.copy(attention.config)
    config._attn_implementation_internal = NAME  # type: ignore[union-attr]
    attention.config = config
    attention.__dict__["head_moments"] = moments
    replace(block, attention_path, attention)


def _attention(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    softcap: float | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Causal attention of (windows, heads, tokens, head size); returns (windows, tokens, heads, head size)."""
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    groups = query.shape[1] // key.shape[1]
    outputs = []
    for window in range(query.shape[0]):
        mask = None if attention_mask is None else attention_mask[min(window, attention_mask.shape[0] - 1)]
        outputs.append(
            _one_window(query[window] * scale, key[window], value[window], mask, softcap, groups, module.head_moments)
        )
    return torch.stack(outputs), None


def _one_window(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None,
    softcap: float | None,
    groups: int,
    moments: HeadMoments,
) -> torch.Tensor:
    """One window: (heads, tokens, head size) in, (tokens, heads, head size) out, statistics added."""
    heads, tokens, size = query.shape
    kv_heads = key.shape[0]
    positions = torch.arange(tokens, device=query.device, dtype=value.dtype)
    # One product gives the output and the mean attended position.
    extended = torch.cat([value, positions.view(1, -1, 1).expand(kv_heads, -1, 1)], dim=-1)
    output = torch.empty(heads, tokens, size, dtype=value.dtype, device=value.device)
    for start in range(0, tokens, ROWS):
        end = min(start + ROWS, tokens)
        rows = query[:, start:end].reshape(kv_heads, groups * (end - start), size)
        scores = torch.bmm(rows, key[:, :end].transpose(1, 2)).view(heads, end - start, end)
        if softcap is not None:
            scores = torch.tanh(scores / softcap) * softcap
        _hide(scores, mask, start, end)
        weights = torch.softmax(scores, dim=-1, dtype=torch.float32)
        grouped = weights.view(kv_heads, groups * (end - start), end).to(value.dtype)
        result = torch.bmm(grouped, extended[:, :end]).view(heads, end - start, size + 1)
        output[:, start:end] = result[..., :size]
        moments.entropy += total(torch.special.entr(weights), 1, 2)
        moments.distance += total(positions[start:end] - result[..., size], 1)
        moments.first_token += total(weights[:, :, 0], 1)
        moments.previous_token += total(weights.diagonal(offset=start - 1, dim1=1, dim2=2), 1)
    _add_outputs(output, groups, moments)
    return output.transpose(0, 1)


def _hide(scores: torch.Tensor, mask: torch.Tensor | None, start: int, end: int) -> None:
    """Apply the block's own mask, or plain causality where it has none, in place."""
    lowest = torch.finfo(scores.dtype).min
    if mask is None:
        future = torch.ones(end - start, end - start, dtype=torch.bool, device=scores.device).triu(1)
        scores[:, :, start:end].masked_fill_(future, lowest)
    elif mask.dtype == torch.bool:
        scores.masked_fill_(~mask[:, start:end, :end], lowest)
    else:
        scores.add_(mask[:, start:end, :end]).clamp_(min=lowest)


def _add_outputs(output: torch.Tensor, groups: int, moments: HeadMoments) -> None:
    """Norms of the heads' outputs (heads, tokens, size) and their cosines inside each KV group."""
    heads, tokens, _ = output.shape
    norms = output.float().norm(dim=-1)
    mean_norm = total(norms, 1) / tokens
    moments.tokens += tokens
    moments.sequences += 1
    moments.output_norm += mean_norm * tokens
    moments.output_norm_sequence_squares += mean_norm.square()
    if groups == 1:
        moments.group_similarity += float("nan")
        return
    units = (output.float() / norms.clamp_min(1e-12).unsqueeze(-1)).view(heads // groups, groups, tokens, -1)
    # The cosines with all heads of the group sum to the product with their sum; the head's own is 1 (or 0 for a
    # head whose output is zero) and leaves again.
    together = (units * units.sum(dim=1, keepdim=True)).sum(dim=-1)
    own = units.square().sum(dim=-1)
    moments.group_similarity += total((together - own) / (groups - 1), 2).reshape(heads)
