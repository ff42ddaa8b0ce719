"""Running a model block by block: prepare the first state, run one block, turn the last state into losses.

The model's own modules do the work, so every family's embeddings, masks, position encodings and head are exactly
those of its own forward pass. The loaded model is never changed: only shallow copies are.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import nn

from analysis.model.architecture import Architecture
from analysis.model.modules import device_of, replace, shallow_copy

HEAD_CHUNK = 128
"""Positions whose logits exist at one time where the model's own head computes them."""
VOCABULARY_CHUNK = 2048
"""Columns of the vocabulary whose logits exist at one time where the head is a plain linear layer."""


@dataclass(frozen=True)
class BlockCall:
    """The arguments that the model's forward gives to one block, besides the state."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]


@dataclass(frozen=True)
class Prepared:
    """The state entering block 0, (windows, tokens, hidden), and each block's call."""

    state: torch.Tensor
    calls: tuple[BlockCall, ...]


class _Recorder(nn.Module):
    """Stands in for a block: notes how it is called and passes the state on."""

    def __init__(self, original: nn.Module, notes: list[tuple[torch.Tensor, BlockCall]]) -> None:
        super().__init__()
        self.__dict__["original"] = original
        self.__dict__["notes"] = notes

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["original"], name)

    def forward(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        state, rest = (args[0], args[1:]) if args else (kwargs.pop("hidden_states"), ())
        self.__dict__["notes"].append((state, BlockCall(rest, kwargs)))
        return state


class _Given(nn.Module):
    """Stands in for the backbone in front of the head: returns the state it was given."""

    def __init__(self) -> None:
        super().__init__()
        self.state: torch.Tensor | None = None

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        from transformers.modeling_outputs import BaseModelOutputWithPastAndCrossAttentions

        # GPT-2's head hands on the cross attentions too, so the output must have the field.
        return BaseModelOutputWithPastAndCrossAttentions(last_hidden_state=self.state)


class Runner:
    """Executes the parts of one loaded model, which is in eval mode; safe to share between threads."""

    def __init__(self, model: nn.Module, architecture: Architecture) -> None:
        self.model = model
        self.architecture = architecture
        self.blocks = [model.get_submodule(block.module) for block in architecture.blocks]

    @torch.inference_mode()
    def prepare(self, ids: torch.Tensor) -> Prepared:
        """Embed windows of token ids (windows, tokens) and note how each block would be called."""
        notes: list[tuple[torch.Tensor, BlockCall]] = []
        backbone = shallow_copy(self.model.get_submodule(self.architecture.backbone))
        inner = self.architecture.block_list.removeprefix(self.architecture.backbone).lstrip(".")
        recorders = nn.ModuleList(_Recorder(block, notes) for block in self.blocks)
        replace(backbone, inner, recorders)
        backbone(input_ids=ids.to(self._device()), use_cache=False)
        return Prepared(notes[0][0], tuple(call for _, call in notes))

    def run(self, block: nn.Module, state: torch.Tensor, call: BlockCall) -> torch.Tensor:
        """One block (an original or an edited copy) on a state (windows, tokens, hidden)."""
        device = device_of(block)
        if state.device != device:
            from accelerate.utils import send_to_device

            state, call = state.to(device), BlockCall(*send_to_device((call.args, call.kwargs), device))
        out = block(state, *call.args, **call.kwargs)
        return out[0] if isinstance(out, tuple) else out

    @torch.inference_mode()
    def losses(self, state: torch.Tensor, ids: torch.Tensor, check: Callable[[], None] = lambda: None) -> torch.Tensor:
        """Negative log likelihood in nats of each predicted token, (windows, tokens - 1), float32.

        The logits of all windows never exist together: a head that is a linear layer and nothing else is taken
        `VOCABULARY_CHUNK` columns at a time for all positions, any other `HEAD_CHUNK` positions at a time by the
        model's own forward. `check` is called between chunks and may raise.
        """
        device = device_of(self.model.get_submodule(self.architecture.head))
        targets = ids[:, 1:].reshape(-1).to(device)
        inputs = self.normalised(state)[:, :-1].reshape(-1, state.shape[-1]).to(device)
        compute = self._linear_losses if self.head_is_linear else self._own_losses
        return compute(inputs, targets, check).float().cpu().view(ids.shape[0], -1)

    @cached_property
    def head_is_linear(self) -> bool:
        """Whether the model's own logits are those of the head's weights alone (no scaling, no soft cap), tried out."""
        head: Any = shallow_copy(self.model.get_submodule(self.architecture.head))
        if head.weight.dtype != torch.float32 or type(head) is not nn.Linear:
            return False
        generator = torch.Generator().manual_seed(0)
        trial = 8 * torch.randn(4, head.in_features, generator=generator).to(head.weight.device)
        return torch.allclose(self.own_logits(trial), head(trial), rtol=1e-5, atol=1e-5)

    @torch.inference_mode()
    def logits(self, state: torch.Tensor) -> torch.Tensor:
        """The model's own logits, (positions, vocabulary), float32 on the CPU, of some positions of the state that
        leaves the last block, (positions, hidden). All of them exist together."""
        device = device_of(self.model.get_submodule(self.architecture.head))
        rows = self.normalised(state).to(device).split(HEAD_CHUNK)
        return torch.cat([self.own_logits(part).float().cpu() for part in rows])

    def own_logits(self, inputs: torch.Tensor) -> torch.Tensor:
        """Logits (positions, vocabulary) by the model's own forward, after the backbone."""
        stand_in = _Given()
        stand_in.state = inputs.unsqueeze(0)
        tail = shallow_copy(self.model)
        replace(tail, self.architecture.backbone, stand_in)
        placeholder = torch.zeros(1, 1, dtype=torch.long, device=inputs.device)
        return tail(input_ids=placeholder, use_cache=False).logits[0]

    def _own_losses(self, inputs: torch.Tensor, targets: torch.Tensor, check: Callable[[], None]) -> torch.Tensor:
        losses = []
        for start in range(0, len(targets), HEAD_CHUNK):
            check()
            logits = self.own_logits(inputs[start : start + HEAD_CHUNK]).float()
            losses.append(nn.functional.cross_entropy(logits, targets[start : start + HEAD_CHUNK], reduction="none"))
        return torch.cat(losses)

    def loss_gradient(
        self, state: torch.Tensor, ids: torch.Tensor, check: Callable[[], None] = lambda: None
    ) -> tuple[float, torch.Tensor]:
        """Mean negative log likelihood in nats of the predicted tokens, and its gradient at the last state.

        By the model's own final norm and head, for `HEAD_CHUNK` positions at a time. `check` is called between them.

        Args:
            state: leaves the last block, (windows, tokens, hidden); an ordinary tensor, not one of inference mode.
            ids: the token ids, (windows, tokens).
            check: may raise.
        """
        device = device_of(self.model.get_submodule(self.architecture.head))
        targets = ids[:, 1:].reshape(-1).to(device)
        inputs = state[:, :-1].reshape(-1, state.shape[-1])
        gradient = torch.zeros_like(inputs)
        loss = 0.0
        for start in range(0, len(targets), HEAD_CHUNK):
            check()
            chunk = slice(start, start + HEAD_CHUNK)
            with torch.enable_grad():
                leaf = inputs[chunk].detach().requires_grad_()
                logits = self.own_logits(self.normalised(leaf).to(device)).float()
                part = nn.functional.cross_entropy(logits, targets[chunk], reduction="sum") / len(targets)
            (gradient[chunk],) = torch.autograd.grad(part, leaf)
            loss += float(part.detach())
        # The last token of a window predicts nothing that is scored.
        padded = nn.functional.pad(gradient.view(*ids[:, 1:].shape, -1), (0, 0, 0, 1))
        return loss, padded

    def _linear_losses(self, inputs: torch.Tensor, targets: torch.Tensor, check: Callable[[], None]) -> torch.Tensor:
        """The log of the sum of exponentials kept running over the vocabulary, so that the weights stay in cache."""
        head: Any = shallow_copy(self.model.get_submodule(self.architecture.head))
        weight, bias = head.weight, head.bias
        highest = torch.full_like(targets, -math.inf, dtype=torch.float32)
        total = torch.zeros_like(highest)
        chosen = torch.zeros_like(highest)
        buffer = torch.empty(len(targets), min(VOCABULARY_CHUNK, len(weight)), device=inputs.device)
        for start in range(0, len(weight), VOCABULARY_CHUNK):
            check()
            columns = weight[start : start + VOCABULARY_CHUNK]
            fits = len(columns) == buffer.shape[1]
            logits = torch.mm(inputs, columns.T, out=buffer) if fits else torch.mm(inputs, columns.T)
            if bias is not None:
                logits += bias[start : start + VOCABULARY_CHUNK]
            rows = ((targets >= start) & (targets < start + len(columns))).nonzero(as_tuple=True)[0]
            chosen[rows] = logits[rows, targets[rows] - start]
            top = torch.maximum(highest, logits.amax(dim=1))
            total = total * (highest - top).exp_() + logits.sub_(top[:, None]).exp_().sum(dim=1)
            highest = top
        return highest + total.log_() - chosen

    def _device(self) -> torch.device:
        return device_of(self.model.get_submodule(self.architecture.embeddings))

    def normalised(self, state: torch.Tensor) -> torch.Tensor:
        """The backbone's own tail: its final norm."""
        if self.architecture.final_norm is None:
            return state
        return self.model.get_submodule(self.architecture.final_norm)(state)
