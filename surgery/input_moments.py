"""Mean squares of what every linear of an edited model reads: GGUF's importance matrix."""

from __future__ import annotations

from collections.abc import Callable
from threading import Event

import torch

from analysis.accumulators import InputMoments
from analysis.architecture import Block
from analysis.modules import shallow_copy, submodule
from analysis.text import Windows
from surgery.live import Evaluator, checker_of
from surgery.structure import BlockSpec, Structure

Report = Callable[[float, str], None]
GROUP_TOKENS = 2048
"""Tokens that go through a block together."""
Moments = list[dict[str, torch.Tensor]]
"""By kept block, then by module path inside it: (inputs,), float32."""


@torch.inference_mode()
def input_moments(
    evaluator: Evaluator,
    structure: Structure,
    windows: Windows,
    report: Report = lambda share, words: None,
    stop: Event | None = None,
) -> Moments:
    """One pass over the text, block by block; of the dense model they are the analysis' own input moments.

    Args:
        evaluator: of the model.
        structure: nothing may be pending in it.
        windows: the calibration text.
        report: progress; may raise to stop.
        stop: ends the work between two blocks.

    Raises:
        Cancelled: `stop` was set.
    """
    runner = evaluator.runner_of(structure)
    kept = [spec for spec in structure.blocks if not spec.empty]
    blocks = structure.architecture.blocks
    seen = [{path: InputMoments.empty(size) for path, size in _inputs(blocks[spec.source], spec)} for spec in kept]
    check = checker_of(stop)
    size = max(1, GROUP_TOKENS // windows.length)
    for start in range(0, windows.count, size):
        prepared = runner.prepare(windows.ids[start : start + size])
        state = prepared.state
        for position, spec in enumerate(kept):
            check()
            report((start + size * position / len(kept)) / windows.count, f"Reading block {position + 1}")
            module = shallow_copy(evaluator.module(runner, spec, structure.hidden_key))
            for path, moments in seen[position].items():
                submodule(module, path).register_forward_pre_hook(_hook(moments))
            state = runner.run(module, state, prepared.calls[spec.source])
    return [{path: moments.mean_square().float() for path, moments in parts.items()} for parts in seen]


def _hook(moments: InputMoments) -> Callable[[torch.nn.Module, tuple[torch.Tensor, ...]], None]:
    return lambda module, args: moments.update(args[0])


def _inputs(block: Block, spec: BlockSpec) -> list[tuple[str, int]]:
    """The linears that a kept block still has, each once, with the number of their inputs."""
    found: dict[str, int] = {}
    if block.attention is not None and spec.attention:
        attention = block.attention
        found |= {part.module: attention.hidden_size for part in (attention.query, attention.key, attention.value)}
        found[attention.output.module] = len(spec.query_heads) * attention.head_size
    if block.mlp is not None and spec.mlp:
        mlp = block.mlp
        found |= {part.module: mlp.hidden_size for part in (mlp.gate, mlp.up) if part is not None}
        found[mlp.down.module] = len(spec.neurons)
    return list(found.items())
