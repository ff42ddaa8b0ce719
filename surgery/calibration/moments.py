"""Mean squares of what every linear of an edited model reads: GGUF's importance matrix."""

from __future__ import annotations

from collections.abc import Callable
from threading import Event

import torch

from analysis.model.modules import shallow_copy
from analysis.statistics.accumulators import InputMoments
from analysis.text import Windows
from surgery.calibration.sweep import Group, linear_paths
from surgery.common.progress import Report, raise_if_set, silent
from surgery.evaluation.evaluator import Evaluator
from surgery.structure.structure import Structure

Moments = list[dict[str, torch.Tensor]]
"""By kept block, then by module path inside it: (inputs,), float32."""


@torch.inference_mode()
def input_moments(
    evaluator: Evaluator, structure: Structure, windows: Windows, report: Report = silent, stop: Event | None = None
) -> Moments:
    """One pass over the text, block by block, of a complete structure; of the dense model as in the analysis."""
    runner = evaluator.runner_of(structure)
    kept = structure.kept
    seen: list[dict[str, InputMoments]] = [{} for _ in kept]
    done = 0
    for group in Group.cut(runner, windows.ids):
        count = len(group.state)
        for position, spec in enumerate(kept):
            raise_if_set(stop)
            report((done + count * position / len(kept)) / windows.count, f"Reading block {position + 1}")
            module = shallow_copy(evaluator.module(runner, spec, structure.hidden_key))
            for stage in linear_paths(structure.architecture.blocks[spec.source], spec):
                for path in stage:
                    module.get_submodule(path).register_forward_pre_hook(_hook(seen[position], path))
            group.advance(runner, module, spec)
        done += count
    return [{path: moments.mean_square().float() for path, moments in parts.items()} for parts in seen]


def _hook(seen: dict[str, InputMoments], path: str) -> Callable[[torch.nn.Module, tuple[torch.Tensor, ...]], None]:
    def see(_: torch.nn.Module, args: tuple[torch.Tensor, ...]) -> None:
        seen.setdefault(path, InputMoments.empty(args[0].shape[-1])).update(args[0])

    return see
