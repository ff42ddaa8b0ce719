"""How long a whole scan takes from the live cache, against measuring every removal from scratch.

    python -m benchmarks.scan [--windows 4] [--window 256] [--threads 2] [--edits blocks,attention,mlp] [--out F]

Exits 1 when the goal is missed. Both ways run the same code on the same chunks of the text, in the order of a scan;
from scratch means an evaluator with empty caches for every removal. Each removal is timed both ways back to back, and
which way goes first alternates, so that other work on the machine weighs on both. The dense model's own evaluation is
counted in both, once.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch

from analysis.text import Windows, load_text, make_windows
from benchmarks import measuring
from surgery.evaluation.evaluator import Evaluator, chunks
from surgery.evaluation.scan import KINDS, single_removals
from surgery.models.loading import load
from surgery.structure.removal import Removal, RemovalKind, without
from surgery.structure.structure import Structure
from surgery.workbench.open_model import OpenModel

GOAL = 0.65
"""Most that a scan may take, as a share of the time from scratch."""


@dataclass
class Timing:
    """One removal, all chunks of the text: seconds from the cache and from scratch, and its mean loss."""

    part: Removal
    live: float = 0.0
    scratch: float = 0.0
    losses: float = 0.0
    tokens: int = 0

    def document(self) -> dict[str, Any]:
        """JSON values."""
        nll = self.losses / self.tokens
        return {
            "kind": self.part.kind,
            "block": self.part.block,
            "live_seconds": self.live,
            "scratch_seconds": self.scratch,
            "nll": nll,
        }


def compare(model: OpenModel, windows: Windows, kinds: Sequence[RemovalKind]) -> tuple[float, list[Timing]]:
    """Seconds of the dense evaluation, and every removal both ways, in the order of `surgery.evaluation.scan.measured`.

    Raises:
        RuntimeError: the two ways give different losses.
    """
    evaluator = model.evaluator
    timings = [Timing(part) for part in single_removals(model.architecture, kinds)]
    edited = [without(evaluator.dense, timing.part) for timing in timings]
    base = 0.0
    for number, (start, end) in enumerate(chunks(windows.count, windows.length)):
        ids = windows.ids[start:end]
        base += _timed(lambda ids=ids: evaluator.token_losses(evaluator.dense, ids))[0]  # type: ignore[misc]
        for index, (timing, (structure, position)) in enumerate(zip(timings, edited, strict=True)):
            print(f"\rpart {number + 1}, removal {index + 1} of {len(timings)} ", end="", file=sys.stderr, flush=True)
            _both_ways(evaluator, timing, structure, position, ids, live_first=index % 2 == 0)
    print(file=sys.stderr)
    return base, timings


def _both_ways(
    evaluator: Evaluator, timing: Timing, structure: Structure, position: int, ids: torch.Tensor, live_first: bool
) -> None:
    def live() -> torch.Tensor:
        return evaluator.token_losses(structure, ids, keep=position)

    def scratch() -> torch.Tensor:
        return Evaluator(evaluator.runner).token_losses(structure, ids)

    found: dict[bool, tuple[float, torch.Tensor]] = {}
    for of_live in (live_first, not live_first):
        found[of_live] = _timed(live if of_live else scratch)
    if not torch.equal(found[True][1], found[False][1]):
        raise RuntimeError(f"Live and from-scratch losses differ for {timing.part}.")
    timing.live += found[True][0]
    timing.scratch += found[False][0]
    timing.losses += float(found[True][1].double().sum())
    timing.tokens += found[True][1].numel()


def _timed(work: Callable[[], torch.Tensor]) -> tuple[float, torch.Tensor]:
    results: list[torch.Tensor] = []
    seconds = measuring.seconds(lambda: results.append(work()))
    return seconds, results[0]


def benchmark(options: argparse.Namespace) -> dict[str, Any]:
    """Everything measured, as JSON values."""
    torch.set_num_threads(options.threads)
    loaded = load("default")
    windows = make_windows(loaded.tokenizer, load_text("embedded"), options.window, options.windows)
    warm = OpenModel(loaded)
    warm.evaluator.token_losses(warm.evaluator.dense, windows.ids[:1])
    kinds = cast(list[RemovalKind], options.edits.split(","))
    base, timings = compare(OpenModel(loaded), windows, kinds)
    rows = [_summary(kind, [timing for timing in timings if timing.part.kind == kind]) for kind in kinds]
    whole = _summary("whole scan", timings, base)
    return {
        "machine": measuring.machine(),
        "windows": windows.count,
        "window": windows.length,
        "dense_seconds": base,
        "kinds": rows,
        "whole": whole,
        "goal": GOAL,
        "met": whole["ratio"] <= GOAL,
        "removals": [timing.document() for timing in timings],
    }


def _summary(name: str, timings: Sequence[Timing], base: float = 0.0) -> dict[str, Any]:
    live = base + sum(timing.live for timing in timings)
    scratch = base + sum(timing.scratch for timing in timings)
    return {
        "removals": name,
        "count": len(timings),
        "live s": live,
        "from scratch s": scratch,
        "ratio": live / scratch,
        "median ratio": measuring.median([timing.live / timing.scratch for timing in timings]),
    }


def main() -> int:
    """Run the command."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scan", description=__doc__.split("\n")[0])
    parser.add_argument("--windows", type=int, default=4)
    parser.add_argument("--window", type=int, default=256)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--edits", default=",".join(KINDS))
    parser.add_argument("--out", type=Path, default=None, help="JSON file; benchmarks/results/scan.json if absent")
    options = parser.parse_args()
    result = benchmark(options)
    measuring.table(
        [*result["kinds"], result["whole"]],
        f"A scan from the live cache against from scratch: {result['windows']} windows of {result['window']}, "
        f"{result['machine']['threads']} threads",
    )
    print(f"ratio {result['whole']['ratio']:.3f}, goal {GOAL}: {'met' if result['met'] else 'MISSED'}")
    measuring.write("scan", result, options.out)
    return 0 if result["met"] else 1


if __name__ == "__main__":
    sys.exit(main())
