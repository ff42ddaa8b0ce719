"""Text written by two models side by side, token by token, with the same draws."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch

from analysis.text import render_chat
from surgery.errors import InputError
from surgery.evaluation.sampling import Sampling
from surgery.folders.end_tokens import end_tokens_of

LONGEST_PROMPT = 20_000
"""Characters."""


@dataclass(frozen=True)
class Answer:
    """What a model has written so far. `ended` tells that it ended by itself."""

    text: str = ""
    tokens: int = 0
    seconds: float = 0.0
    ended: bool = False

    @property
    def speed(self) -> float:
        """Tokens a second, the reading of the prompt included."""
        return self.tokens / self.seconds if self.seconds else 0.0


def prompt_ids(tokenizer: Any, prompt: str, chat: bool) -> torch.Tensor:
    """Token ids (1, tokens) of a prompt, as a person's turn of a conversation if `chat`.

    Raises:
        InputError: nothing to read, too long, or a model without a chat template that takes it.
    """
    if not prompt.strip():
        raise InputError("Write a prompt first.")
    if len(prompt) > LONGEST_PROMPT:
        raise InputError(f"The prompt is longer than {LONGEST_PROMPT:,} characters: shorten it.")
    if chat and not has_chat_template(tokenizer):
        raise InputError("This model has no chat template: switch it off.")
    if chat:
        turns = [{"role": "user", "content": prompt}]
        prompt = render_chat(tokenizer, turns, "this prompt", "switch it off", ask=True)
    ids = torch.tensor(tokenizer(prompt, add_special_tokens=not chat)["input_ids"]).reshape(1, -1)
    if not ids.numel():
        raise InputError("The prompt has no tokens: write a longer one.")
    return ids.long()


def has_chat_template(tokenizer: Any) -> bool:
    """Whether a tokenizer knows how conversations are written."""
    return bool(getattr(tokenizer, "chat_template", None))


class Writer:
    """One model writing, a token at each step.

    Args:
        model: a causal language model of transformers; only read.
        ids: of the prompt, (1, tokens).
        turn: held while the model computes.

    Raises:
        InputError: prompt and answer are longer than the model's positions.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        ids: torch.Tensor,
        sampling: Sampling,
        turn: AbstractContextManager[Any] | None = None,
    ) -> None:
        most = getattr(model.config, "max_position_embeddings", None) or getattr(model.config, "n_positions", None)
        if most is not None and ids.shape[1] + sampling.tokens > most:
            raise InputError(
                f"The prompt has {ids.shape[1]:,} tokens, and the model holds {most:,} with the answer: shorten it."
            )
        self.model, self.tokenizer, self.sampling = model, tokenizer, sampling
        self.turn: AbstractContextManager[Any] = turn or nullcontext()
        self.ids: list[int] = []
        self.answer = Answer()
        self._next = ids.to(next(model.parameters()).device)
        self._cache: Any = None
        self._generator = torch.Generator().manual_seed(sampling.seed)
        self._ends = set(end_tokens_of(model, tokenizer))

    @torch.inference_mode()
    def step(self) -> bool:
        """Write one token; False once there is nothing more to write."""
        if self.answer.ended or len(self.ids) >= self.sampling.tokens:
            return False
        with self.turn:
            begun = time.perf_counter()  # waiting for others is not this model's time
            out = self.model(input_ids=self._next, past_key_values=self._cache, use_cache=True)
        self._cache = out.past_key_values
        chosen = draw(out.logits[0, -1].float().cpu(), self.sampling, self._generator)
        ended = chosen in self._ends
        if not ended:
            self.ids.append(chosen)
            self._next = torch.tensor([[chosen]], device=self._next.device)
        text = self.tokenizer.decode(self.ids, skip_special_tokens=True)
        seconds = self.answer.seconds + time.perf_counter() - begun
        self.answer = Answer(text, len(self.ids), seconds, ended)
        return not ended and len(self.ids) < self.sampling.tokens


def draw(logits: torch.Tensor, sampling: Sampling, generator: torch.Generator) -> int:
    """A token from logits (vocabulary,).

    One number from the generator is used for each token, so that two models with one seed differ by their probabilities
    alone: the number is looked up in the sum of the probabilities, the likeliest token first.
    """
    if sampling.temperature == 0:
        return int(logits.argmax())
    probabilities, order = (logits / sampling.temperature).softmax(-1).sort(descending=True, stable=True)
    total = probabilities.cumsum(-1)
    kept = total - probabilities < sampling.top_p
    weight = float(total[kept][-1])
    number = float(torch.rand((), generator=generator, dtype=torch.float64)) * weight
    place = int(torch.searchsorted(total[kept].double(), number, right=True).clamp(max=int(kept.sum()) - 1))
    return int(order[place])


def side_by_side(writers: tuple[Writer, ...], check: Callable[[], None]) -> Iterator[tuple[Answer, ...]]:
    """Let all write, a token each in turn, after `check`, which may raise; the answers so far after each round."""
    going = list(writers)
    while going:
        for writer in tuple(going):
            check()
            if not writer.step():
                going.remove(writer)
        yield tuple(writer.answer for writer in writers)
