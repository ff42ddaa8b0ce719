"""Live evaluation: perplexity of (model, structure) without building it, recomputing only what an edit changes.

The state that enters a block depends only on the input ids and on the specs of the blocks before it, so states are
cached under a hash chain over both. Losses are cached under the chain's end: undo is a look-up.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from threading import Event, RLock
from typing import Any

import torch
from torch import nn

from analysis.model.runner import BlockCall, Prepared, Runner
from analysis.text import Windows, fingerprint_of
from surgery.common.cache import ByteCache
from surgery.common.progress import checker_of
from surgery.evaluation.estimate import Estimate, estimate_of
from surgery.structure.channels import model_around
from surgery.structure.narrow import build_block, own_bytes
from surgery.structure.structure import BlockSpec, Structure, dense

STATE_BUDGET = 256 * 2**20
"""Bytes of cached states that any model gets; a larger one gets `STATE_SHARE` of its own bytes: the states of several
sessions together are small beside the model that they share."""
STATE_SHARE = 0.5
WEIGHT_BUDGET = 448 * 2**20
"""Default bytes of narrowed weights."""
LOSS_BUDGET = 64 * 2**20
CHUNK_TOKENS = 1024
"""Tokens that go through a block together after the first estimate."""


class Evaluator:
    """Live evaluation of one loaded model for any number of sessions.

    Identical requests at the same time are computed once: every step looks into the cache again once it is its turn.

    Args:
        state_budget: bytes of cached states; see `STATE_BUDGET` when None.
        weight_budget: bytes of narrowed weights.
    """

    def __init__(self, runner: Runner, state_budget: int | None = None, weight_budget: int = WEIGHT_BUDGET) -> None:
        self.runner = runner
        if state_budget is None:
            whole = sum(runner.architecture.bytes_by_dtype.values())
            state_budget = max(STATE_BUDGET, int(STATE_SHARE * whole))
        self.dense = dense(runner.architecture)
        self.states: ByteCache[torch.Tensor] = ByteCache(state_budget)
        self.weights: ByteCache[nn.Module] = ByteCache(weight_budget)
        self.losses: ByteCache[torch.Tensor] = ByteCache(LOSS_BUDGET)
        self.prepared: ByteCache[Prepared] = ByteCache(LOSS_BUDGET)
        self.runners: ByteCache[Runner] = ByteCache(weight_budget)
        """Runners of the model with fewer channels or quantised embeddings, by the structures' `base_key`."""
        self.turn = RLock()

    def evaluate(self, structure: Structure, windows: Windows, stop: Event | None = None) -> Iterator[Estimate]:
        """Ever better estimates: after the first window, then after each further chunk of windows.

        Args:
            stop: set by a newer request; honoured within one block or one chunk of the head.

        Raises:
            Cancelled: `stop` was set.
        """
        begun = time.perf_counter()
        check = checker_of(stop)
        edited: list[torch.Tensor] = []
        reference: list[torch.Tensor] = []
        for start, end in chunks(windows.count, windows.length):
            ids = windows.ids[start:end]
            reference.append(self.token_losses(self.dense, ids, check))
            edited.append(self.token_losses(structure, ids, check))
            yield estimate_of(torch.cat(edited), torch.cat(reference), windows.count, time.perf_counter() - begun)

    def measure(self, structure: Structure, windows: Windows, stop: Event | None = None) -> Estimate:
        """The last estimate: all windows."""
        *_, last = self.evaluate(structure, windows, stop)
        return last

    def token_losses(
        self, structure: Structure, ids: torch.Tensor, check: Callable[[], None] = lambda: None, keep: int | None = None
    ) -> torch.Tensor:
        """Negative log likelihood of each predicted token, (windows, tokens - 1), float32, of one chunk.

        Args:
            ids: token ids, (windows, tokens).
            check: called between steps; may raise.
            keep: cache only the states that leave the first `keep` blocks: a scan's further states serve nobody else.
        """
        links = self._chain(structure, ids)
        end = links[-1]
        known = self.losses.get(end)
        if known is not None:
            return known
        _must_be_complete(structure)
        runner = self.runner_of(structure)
        state = self._final_state(runner, structure, ids, links, check, keep)
        with self._my_turn():
            known = self.losses.get(end)
            if known is None:
                known = runner.losses(state, ids, check)
                self.losses.put(end, known, _size(known))
        return known

    def logits(self, structure: Structure, ids: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        """Logits of some positions (positions,) of every window of `ids` (windows, tokens): (windows, positions,
        vocabulary), float32 on the CPU."""
        _must_be_complete(structure)
        runner = self.runner_of(structure)
        state = self._final_state(runner, structure, ids, self._chain(structure, ids), lambda: None, None)
        with self._my_turn():
            chosen = state[:, positions.to(state.device)]
            return runner.logits(chosen.flatten(0, 1)).unflatten(0, chosen.shape[:2])

    def runner_of(self, structure: Structure) -> Runner:
        """The runner whose blocks a structure's specs select from: the model's own unless channels are gone or what
        stands around the blocks is quantised."""
        if not structure.base_key:
            return self.runner
        known = self.runners.get(structure.base_key)
        if known is None:
            with self._my_turn():
                model = model_around(self.runner.model, self.runner.architecture, structure)
                known = Runner(model, structure.architecture)
                self.runners.put(structure.base_key, known, own_bytes(model, self.runner.model))
        return known

    def module(self, runner: Runner, spec: BlockSpec, hidden_key: str = "") -> nn.Module:
        """The block of a spec; narrowed weights are cached by it."""
        original = runner.blocks[spec.source]
        block = runner.architecture.blocks[spec.source]
        if spec.is_whole(block):
            return original
        key = spec.key + hidden_key
        known = self.weights.get(key)
        if known is None:
            known = build_block(original, block, spec)
            self.weights.put(key, known, own_bytes(known, original))
        return known

    def _chain(self, structure: Structure, ids: torch.Tensor) -> list[str]:
        """Keys of the state entering the first kept block and of the state leaving each one."""
        links = [fingerprint_of(ids) + structure.base_key]
        for spec in structure.blocks:
            links.append(links[-1] if spec.empty else _link(links[-1], spec))
        return links

    def _final_state(
        self,
        runner: Runner,
        structure: Structure,
        ids: torch.Tensor,
        links: list[str],
        check: Callable[[], None],
        keep: int | None,
    ) -> torch.Tensor:
        """The state leaving the last block, from the deepest cached one on."""
        prepared = self._prepare(runner, ids, links[0])
        done, state = len(structure.blocks), self.states.get(links[-1])
        while state is None and done > 0:
            done -= 1
            state = self.states.get(links[done]) if done else prepared.state
        assert state is not None  # prepared.state at the latest
        for position in range(done, len(structure.blocks)):
            check()
            spec = structure.blocks[position]
            if not spec.empty:
                module = self.module(runner, spec, structure.hidden_key)
                key = links[position + 1] if keep is None or position < keep else None
                state = self._step(runner, module, state, prepared.calls[spec.source], key)
        return state

    @torch.inference_mode()
    def _step(
        self, runner: Runner, module: nn.Module, state: torch.Tensor, call: BlockCall, key: str | None
    ) -> torch.Tensor:
        with self._my_turn():
            known = self.states.get(key) if key else None
            if known is None:
                known = runner.run(module, state, call)
                if key:
                    self.states.put(key, known, _size(known))
        return known

    def _prepare(self, runner: Runner, ids: torch.Tensor, key: str) -> Prepared:
        known = self.prepared.get(key)
        if known is not None:
            return known
        with self._my_turn():
            known = self.prepared.get(key)
            if known is None:
                known = runner.prepare(ids)
                self.prepared.put(key, known, _prepared_size(known))
        return known

    def _my_turn(self) -> AbstractContextManager[Any]:
        """One computation at a time on this model: more would only share the same cores."""
        return self.turn


def _must_be_complete(structure: Structure) -> None:
    if structure.pending:
        raise ValueError("the structure's compensations or quantisation have not been computed")


def chunks(count: int, length: int) -> list[tuple[int, int]]:
    """Half-open ranges of windows that go through a block together: one for a quick first estimate, then more."""
    size = max(1, CHUNK_TOKENS // length)
    bounds = [0, *range(1, count, size), count]
    return list(zip(bounds, bounds[1:], strict=False))


def _link(before: str, spec: BlockSpec) -> str:
    return hashlib.sha256(f"{before}>{spec.key}".encode()).hexdigest()[:32]


def _size(tensor: torch.Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def _prepared_size(prepared: Prepared) -> int:
    """Bytes of the first state and of the masks and position encodings, which blocks share, once each."""
    found: dict[int, int] = {}

    def visit(value: Any) -> None:
        if isinstance(value, torch.Tensor):
            found[value.data_ptr()] = _size(value)
        elif isinstance(value, (tuple, list)):
            for item in value:
                visit(item)

    visit(prepared.state)
    for call in prepared.calls:
        visit([*call.args, *call.kwargs.values()])
    return sum(found.values())
