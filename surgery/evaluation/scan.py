"""Every single removal measured: perplexity without each block, each attention and each MLP, from the live cache."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from threading import Event
from typing import Any

import torch

from analysis.model.architecture import Architecture
from analysis.text import Windows
from surgery.common.progress import Report, checker_of, silent
from surgery.errors import InputError
from surgery.evaluation.estimate import Estimate, estimate_of
from surgery.evaluation.evaluator import Evaluator, chunks
from surgery.structure.removal import REMOVALS, Removal, RemovalKind, sizes, without
from surgery.structure.structure import Structure

KINDS = tuple(REMOVALS)


@dataclass(frozen=True)
class Scan:
    """What each single removal costs; `removals` by kind, one entry a block, None where the block has no such part.

    Differences are paired against the dense model on the same tokens.
    """

    baseline: Estimate
    removals: dict[RemovalKind, list[Estimate | None]]
    seconds: float

    def document(self) -> dict[str, Any]:
        """The contract's JSON keys (perplexities), and losses, paired differences and their standard errors."""
        baseline = self.baseline.document()
        rows = {
            kind: [None if estimate is None else estimate.document() for estimate in estimates]
            for kind, estimates in self.removals.items()
        }
        further = {
            name: {kind: [row and row[name] for row in found] for kind, found in rows.items()}
            for name in ("nll", "difference", "difference_standard_error")
        }
        return {
            "baseline": baseline["perplexity"],
            **{kind: [row and row["perplexity"] for row in found] for kind, found in rows.items()},
            "baseline_nll": baseline["nll"],
            "baseline_standard_error": baseline["standard_error"],
            **further,
            "tokens": self.baseline.tokens,
            "windows": self.baseline.windows,
            "seconds": self.seconds,
        }


def scan(
    evaluator: Evaluator,
    windows: Windows,
    kinds: Sequence[RemovalKind] = KINDS,
    stop: Event | None = None,
    report: Report = silent,
) -> Scan:
    """Measure each single removal.

    Args:
        kinds: whole blocks, attentions, MLPs.
        stop: ends the work within one block or one chunk of the head.

    Raises:
        InputError: an unknown kind, or none.
        Cancelled: `stop` was set.
    """
    if not kinds or len(set(kinds)) < len(kinds) or not set(kinds) <= set(KINDS):
        raise InputError(f"A scan removes one or more of {', '.join(KINDS)}: name each once.")
    begun = time.perf_counter()
    architecture = evaluator.runner.architecture
    parts = single_removals(architecture, kinds)
    losses = measured(evaluator, evaluator.dense, parts, windows, stop, report)
    seconds = time.perf_counter() - begun
    baseline = dense_losses(evaluator, windows, stop)
    removals: dict[RemovalKind, list[Estimate | None]] = {kind: [None] * len(architecture.blocks) for kind in kinds}
    for part, found in zip(parts, losses, strict=True):
        removals[part.kind][part.block] = estimate_of(found, baseline, windows.count, seconds)
    return Scan(estimate_of(baseline, baseline, windows.count, seconds), removals, seconds)


def single_removals(architecture: Architecture, kinds: Sequence[RemovalKind]) -> list[Removal]:
    """Everything that can go alone, by block, so that the state a removal starts from is never far."""
    by_kind = {kind: sizes(architecture, kind) for kind in kinds}
    blocks = len(architecture.blocks)
    return [
        Removal(kind, block)
        for block in range(blocks)
        for kind in kinds
        if block in by_kind[kind] and (kind != "blocks" or blocks > 1)
    ]


def measured(
    evaluator: Evaluator,
    base: Structure,
    parts: Sequence[Removal],
    windows: Windows,
    stop: Event | None = None,
    report: Report = silent,
) -> list[torch.Tensor]:
    """Token losses without each part, (windows, tokens - 1) each; the same numbers as of separate evaluations.

    Chunk by chunk of the windows, and within a chunk from the first block to the last: a removal at block k starts from
    the state entering k, which the removal before it has left in the cache. States behind a removal are not cached.

    Args:
        base: the structure that parts are removed from.
        parts: what is removed, one at a time, in the order of the blocks.
    """
    check = checker_of(stop)
    edited = [without(base, part) for part in parts]
    found: list[list[torch.Tensor]] = [[] for _ in parts]
    bounds = chunks(windows.count, windows.length)
    for number, (start, end) in enumerate(bounds):
        ids = windows.ids[start:end]
        evaluator.token_losses(base, ids, check)
        for index, (structure, position) in enumerate(edited):
            share = (start + (end - start) * index / len(parts)) / windows.count
            report(share, f"Removal {index + 1} of {len(parts)}, part {number + 1} of {len(bounds)} of the text")
            found[index].append(evaluator.token_losses(structure, ids, check, keep=position))
    return [torch.cat(losses) for losses in found]


def dense_losses(evaluator: Evaluator, windows: Windows, stop: Event | None = None) -> torch.Tensor:
    """Token losses of the dense model, (windows, tokens - 1)."""
    check = checker_of(stop)
    bounds = chunks(windows.count, windows.length)
    return torch.cat([evaluator.token_losses(evaluator.dense, windows.ids[start:end], check) for start, end in bounds])
