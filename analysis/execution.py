"""Running a model block by block: prepare the first state, run one block, turn the last state into losses.

The model's own modules do the work, so every family's embeddings, masks, position encodings and head are exactly
those of its own forward pass. The loaded model is never changed: only shallow copies are.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from analysis.architecture import Architecture
from analysis.modules import device_of, replace, shallow_copy

HEAD_CHUNK = 128
"""Tokens whose logits exist at one time."""


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
        return BaseModelOutputWithPastAndCrossAttentions(last_hidden_state=self.state)  # type: ignore[arg-type]


class Runner:
    """Executes the parts of one loaded model; safe to share between threads.

    Args:
        model: a causal language model of transformers, in eval mode.
        architecture: its map.
    """

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

        The final norm and the head run on `HEAD_CHUNK` positions at a time, so the logits of all windows never
        exist together. `check` is called between chunks and may raise.
        """
        stand_in = _Given()
        tail = shallow_copy(self.model)
        replace(tail, self.architecture.backbone, stand_in)
        device = device_of(self.model.get_submodule(self.architecture.head))
        targets = ids[:, 1:].reshape(-1).to(device)
        inputs = self._normalised(state)[:, :-1].reshape(-1, state.shape[-1])
        out = torch.empty(len(targets), dtype=torch.float32)
        for start in range(0, len(targets), HEAD_CHUNK):
            check()
            stand_in.state = inputs[start : start + HEAD_CHUNK].unsqueeze(0).to(device)
            logits = tail(input_ids=targets[None, :1], use_cache=False).logits[0]
            chunk = targets[start : start + HEAD_CHUNK]
            loss = nn.functional.cross_entropy(logits.float(), chunk, reduction="none")
            out[start : start + HEAD_CHUNK] = loss.cpu()
        return out.view(ids.shape[0], -1)

    def _device(self) -> torch.device:
        return device_of(self.model.get_submodule(self.architecture.embeddings))

    def _normalised(self, state: torch.Tensor) -> torch.Tensor:
        """The backbone's own tail: its final norm."""
        if self.architecture.final_norm is None:
            return state
        return self.model.get_submodule(self.architecture.final_norm)(state)
