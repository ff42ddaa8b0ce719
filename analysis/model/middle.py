"""The state between the attention and the MLP of a block, caught while the block runs."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from analysis.model.architecture import Block


class Middle:
    """Watches one run of a shallow-copied block, on which it puts hooks."""

    def __init__(self, module: nn.Module, block: Block) -> None:
        self.block = block
        self.before_mlp: torch.Tensor | None = None
        """What the MLP's branch reads, as the block passes it (OPT flattens it); None in a parallel block."""
        self.mlp_output: torch.Tensor | None = None
        if block.mlp is None:
            return
        if block.parallel:
            module.get_submodule(block.mlp.module or block.mlp.down.module).register_forward_hook(self._note_output)
        else:
            norm = block.norm("pre_mlp")
            entry = norm.module if norm else block.mlp.module or block.mlp.up.module
            module.get_submodule(entry).register_forward_pre_hook(self._note_input)

    def _note_input(self, _: nn.Module, args: tuple[Any, ...]) -> None:
        self.before_mlp = args[0]

    def _note_output(self, _: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        self.mlp_output = output

    def state(self, before: torch.Tensor, after: torch.Tensor) -> torch.Tensor:
        """The state after attention: the MLP branch's input, or the output without the MLP's part."""
        if self.block.mlp is None:
            return after
        if self.block.attention is None:
            return before
        if self.block.parallel:
            assert self.mlp_output is not None
            return after - self.mlp_output
        assert self.before_mlp is not None
        return self.before_mlp.view_as(before)
