"""The student: the kept blocks of a structure with trained linears, run block by block with what is frozen kept.

Blocks before the first trained one are computed once a window: the states that leave them are remembered.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from analysis.gradients.differentiable import ordinary_calls
from analysis.model.modules import replace, shallow_copy
from analysis.model.runner import BlockCall
from analysis.seeds import generator_for
from surgery.common.cache import ByteCache
from surgery.evaluation.evaluator import Evaluator
from surgery.recipe.healing import Heal, Role
from surgery.structure.structure import BlockSpec, Structure
from surgery.training.attention import use_causal_attention
from surgery.training.head import Head
from surgery.training.linears import AdaptedLinear, FrozenLinear, TrainedLinear
from surgery.training.norms import use_fast_norms
from surgery.training.scratch import Scratch
from surgery.training.targets import linears_of, positions_of

PREFIX_BUDGET = 512 * 2**20
"""Bytes of remembered states that enter the first trained block."""
INTO_MLP: tuple[Role, ...] = ("gate", "up")
"""Linears whose outputs only meet each other and the next linear: they stay in the type of the factors."""
Trained = AdaptedLinear | TrainedLinear


@dataclass(frozen=True)
class Place:
    """A trained linear: the position of its block in the built model, and its path inside the block."""

    position: int
    path: str


class Student:
    """A structure in training. The model that it selects from is never changed.

    Args:
        structure: with nothing left to compute.
        ranks: of each trained block, in order; the edit's for all when None.
    """

    def __init__(
        self, evaluator: Evaluator, structure: Structure, edit: Heal, ranks: Sequence[int] | None = None
    ) -> None:
        self.runner = evaluator.runner_of(structure)
        self.structure, self.edit = structure, edit
        self.kept = structure.kept
        self.modules = [evaluator.module(self.runner, spec, structure.hidden_key) for spec in self.kept]
        positions = positions_of(edit, structure)
        self.first = positions[0]
        for position in range(self.first, len(self.kept)):
            self._own(position)
        self.linears: dict[Place, Trained] = {}
        self.head, self.scratch = Head(self.runner, edit.precision), Scratch()
        for position, rank in zip(positions, ranks or [edit.rank] * len(positions), strict=True):
            self._train(position, rank)
        if edit.precision != "float32":
            for position in range(self.first, len(self.kept)):
                self._freeze(position)
        self._prefixes: ByteCache[torch.Tensor] = ByteCache(PREFIX_BUDGET)

    def _own(self, position: int) -> None:
        """A copy of a block through which gradients will flow, with the attention and norms that are fast at that."""
        spec = self.kept[position]
        attention = self.structure.architecture.blocks[spec.source].attention
        self.modules[position] = shallow_copy(self.modules[position])
        use_fast_norms(self.modules[position])
        if attention is not None and spec.attention:
            use_causal_attention(self.modules[position], attention.module, self.edit.precision)

    def _train(self, position: int, rank: int) -> None:
        """Put trained linears into a block."""
        spec, edit, module = self.kept[position], self.edit, self.modules[position]
        for path, narrow in self._linears(spec, edit.linears):
            linear = module.get_submodule(path)
            if edit.train == "weights":
                new: Trained = TrainedLinear(linear, edit.precision, narrow)
            else:
                generator = generator_for(edit.seed, f"lora {path}", position)
                scale = edit.alpha / edit.rank
                dora = edit.train == "dora"
                new = AdaptedLinear(linear, rank, scale, generator, dora, edit.dropout, edit.precision, narrow)
            replace(module, path, new)
            self.linears[Place(position, path)] = new

    def _freeze(self, position: int) -> None:
        """Let gradients flow through a block's other linears in the precision of the edit."""
        spec, module = self.kept[position], self.modules[position]
        for path, narrow in self._linears(spec, None):
            if Place(position, path) not in self.linears:
                replace(module, path, FrozenLinear(module.get_submodule(path), self.edit.precision, narrow))

    def _linears(self, spec: BlockSpec, roles: Sequence[Role] | None) -> list[tuple[str, bool]]:
        """Paths of a block's linears that hold one of the roles, and whether their outputs stay narrow."""
        block = self.structure.architecture.blocks[spec.source]
        within = linears_of(block, spec, INTO_MLP)
        return [(path, path in within) for path in linears_of(block, spec, roles)]

    @property
    def parameters(self) -> list[nn.Parameter]:
        """Everything that is trained, in a fixed order."""
        return [parameter for linear in self.linears.values() for parameter in linear.parameters()]

    @property
    def trainable(self) -> int:
        """Number of trained parameters."""
        return sum(parameter.numel() for parameter in self.parameters)

    def refresh(self) -> None:
        """Merge the adapters again, after a step of the optimiser."""
        for linear in self.linears.values():
            linear.refresh()

    def masks(self, generator: torch.Generator | None) -> None:
        """Draw dropout from `generator` from now on; None ends training."""
        for linear in self.linears.values():
            if isinstance(linear, AdaptedLinear):
                linear.masks = generator

    def normalised(
        self, ids: torch.Tensor, keys: Sequence[str] | None = None, states: list[torch.Tensor] | None = None
    ) -> torch.Tensor:
        """The normalised last state (windows, tokens, hidden), differentiable where gradients are on.

        Args:
            ids: token ids, (windows, tokens).
            keys: identities of the windows, for the memory of what enters the first trained block.
            states: takes the state that leaves each trained block and those behind it.
        """
        state, calls = self._entering(ids, keys)
        training = torch.is_grad_enabled()
        for position in range(self.first, len(self.modules)):
            module, call = self.modules[position], calls[self.kept[position].source]
            if training and self.edit.checkpointing:
                state = checkpoint(self.runner.run, module, state, call, use_reentrant=False)
            else:
                state = self.runner.run(module, state, call)
            if states is not None:
                states.append(state)
        return self.runner.normalised(state)

    @torch.no_grad()
    def _entering(self, ids: torch.Tensor, keys: Sequence[str] | None) -> tuple[torch.Tensor, tuple[BlockCall, ...]]:
        """The state that enters the first trained block, and the blocks' calls."""
        prepared = self.runner.prepare(ids)
        calls = ordinary_calls(prepared.calls)
        known = [self._prefixes.get(key) for key in keys] if keys is not None else [None]
        if all(state is not None for state in known):
            return torch.stack([state for state in known if state is not None]), calls
        state = prepared.state.clone()
        for position in range(self.first):
            state = self.runner.run(self.modules[position], state, calls[self.kept[position].source])
        for key, row in zip(keys or (), state, strict=False):
            self._prefixes.put(key, row.clone(), row.numel() * row.element_size())
        return state, calls

    @torch.no_grad()
    def losses(self, ids: torch.Tensor, keys: Sequence[str] | None = None) -> torch.Tensor:
        """Negative log likelihood of each predicted token, (windows, tokens - 1), float32."""
        state, calls = self._entering(ids, keys)
        for position in range(self.first, len(self.modules)):
            state = self.runner.run(self.modules[position], state, calls[self.kept[position].source])
        return self.runner.losses(state, ids)

    def tensors(self) -> list[torch.Tensor]:
        """Copies of everything that is trained, in the order of `parameters`."""
        return [parameter.detach().clone() for parameter in self.parameters]

    @torch.no_grad()
    def restore(self, tensors: Sequence[torch.Tensor]) -> None:
        """Take back what `tensors` gave."""
        for parameter, value in zip(self.parameters, tensors, strict=True):
            parameter.copy_(value)
        self.refresh()
