"""How fast a perplexity follows an edit: against evaluating from scratch, and against the way of OptiPFair 0.4.2.

    python -m benchmarks.live [--edits 200] [--windows 4] [--window 256] [--threads 2] [--seed 0] [--rival 12] [--out F]

Each edit starts from a random recipe that was evaluated before (untimed), as on the page. Times run from the recipe
to the number, resolving included. From scratch means the same code and chunks with empty caches, the dense model's
losses known. The order of what is compared alternates from edit to edit.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from analysis.text import Windows, fingerprint_of, load_text, make_windows
from benchmarks import live_report, measuring, rival
from benchmarks.edits import Case, NarrowingChoice, cases, random_choice
from benchmarks.live_report import Comparison, RivalComparison, Timing
from benchmarks.metered import Metered
from surgery.evaluation.evaluator import Evaluator, chunks
from surgery.models.loading import Loaded, load
from surgery.recipe.recipe import Recipe
from surgery.structure.resolve import resolve
from surgery.structure.structure import Structure


class Scratch(Evaluator):
    """An evaluator with empty caches to which only the dense model's losses are known."""

    def __init__(self, runner: Metered, dense_losses: dict[str, torch.Tensor]) -> None:
        """Of a runner; losses by the fingerprint of the token ids."""
        super().__init__(runner)
        self.dense_losses = dense_losses

    def token_losses(self, structure: Structure, ids: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        """As the evaluator does, but for the dense model."""
        if structure is self.dense:
            return self.dense_losses[fingerprint_of(ids)]
        return super().token_losses(structure, ids, *args, **kwargs)


class Bench:
    """One loaded model, its windows, and an evaluator whose caches live as long as a server's."""

    def __init__(self, loaded: Loaded, windows: Windows) -> None:
        """Evaluates the dense model once, as the page does when it opens."""
        self.loaded = loaded
        self.windows = windows
        self.runner = Metered(loaded.model, loaded.architecture)
        self.evaluator = Evaluator(self.runner)
        self.evaluator.measure(self.evaluator.dense, windows)
        groups = [windows.ids[start:end] for start, end in chunks(windows.count, windows.length)]
        self.dense_losses = {
            fingerprint_of(ids): self.evaluator.token_losses(self.evaluator.dense, ids) for ids in groups
        }

    def timed(self, evaluator: Evaluator, recipe: Recipe) -> Timing:
        """Evaluate a recipe and note when its numbers came."""
        self.runner.take()
        begun = time.perf_counter()
        estimates = evaluator.evaluate(resolve(self.loaded.architecture, recipe), self.windows)
        last = next(estimates)
        first = time.perf_counter() - begun
        for estimate in estimates:
            last = estimate
        return Timing(first, time.perf_counter() - begun, self.runner.take(), last.nll)

    def compare(self, case: Case, choose: NarrowingChoice, scratch_first: bool) -> Comparison:
        """Time an edit, its undo and the same from scratch, in either order."""
        before, after = case.before.recipe(choose), case.after.recipe(choose)
        self.timed(self.evaluator, before)
        scratch = self._from_scratch(after) if scratch_first else None
        edit = self.timed(self.evaluator, after)
        undo = self.timed(self.evaluator, before)
        scratch = scratch or self._from_scratch(after)
        if abs(edit.nll - scratch.nll) > 1e-4:
            raise RuntimeError(f"Live and from-scratch losses differ: {edit.nll} and {scratch.nll}.")
        return Comparison(case.kind, edit, undo, scratch)

    def compare_with_rival(self, case: Case, choose: NarrowingChoice, rival_first: bool) -> RivalComparison:
        """Time an edit live and the rival's way, in either order."""
        self.timed(self.evaluator, case.before.recipe(choose))
        theirs = self._rival(case) if rival_first else None
        edit = self.timed(self.evaluator, case.after.recipe(choose))
        seconds, nll = theirs or self._rival(case)
        if abs(edit.nll - nll) > 1e-3:
            raise RuntimeError(f"Live and {rival.__name__} losses differ: {edit.nll} and {nll}.")
        return RivalComparison(case.kind, edit, seconds, nll)

    def _from_scratch(self, recipe: Recipe) -> Timing:
        return self.timed(Scratch(self.runner, self.dense_losses), recipe)

    def _rival(self, case: Case) -> tuple[float, float]:
        begun = time.perf_counter()
        nll = rival.evaluate(self.loaded.model, case.after, self.windows)
        return time.perf_counter() - begun, nll


def compare_all(bench: Bench, options: argparse.Namespace) -> list[Comparison]:
    """All random edits against evaluation from scratch."""
    choose = random_choice(bench.loaded.architecture, options.seed)
    made = cases(bench.loaded.architecture, options.edits, options.seed)
    return [
        bench.compare(case, choose, scratch_first=number % 2 == 1)
        for number, case in enumerate(_progress(made, "edit"))
    ]


def compare_with_rival(bench: Bench, options: argparse.Namespace) -> list[RivalComparison]:
    """Random edits of the kinds that the rival can do; none when it is not installed."""
    if not options.rival:
        return []
    if not rival.installed():
        print("optipfair is not installed: its part is left out (see benchmarks/rival.py)", file=sys.stderr)
        return []
    choose = rival.its_choice(bench.loaded.model)
    made = cases(bench.loaded.architecture, options.rival, options.seed + 1, rival.KINDS)
    bench.compare_with_rival(made[0], choose, rival_first=True)  # warm-up
    return [
        bench.compare_with_rival(case, choose, rival_first=number % 2 == 1)
        for number, case in enumerate(_progress(made, "rival edit"))
    ]


def _progress(made: list[Case], what: str) -> Iterator[Case]:
    for number, case in enumerate(made, 1):
        print(f"\r{what} {number} of {len(made)} ", end="", file=sys.stderr, flush=True)
        yield case
    print(file=sys.stderr)


def benchmark(options: argparse.Namespace) -> dict[str, Any]:
    """Everything measured and summarised, as JSON values."""
    peak = measuring.gemm_peak(options.threads)
    loaded = load("default")
    windows = make_windows(loaded.tokenizer, load_text("embedded"), options.window, options.windows)
    bench = Bench(loaded, windows)
    comparisons = compare_all(bench, options)
    rivals = compare_with_rival(bench, options)
    peak = peak.better_of(measuring.gemm_peak(options.threads))
    return {
        "machine": measuring.machine(),
        "options": {key: value for key, value in vars(options).items() if key != "out"},
        "first_estimate_windows": chunks(windows.count, windows.length)[0][1],
        "gemm_peak": asdict(peak),
        "rival_version": rival.version() if rivals else None,
        **live_report.summary(comparisons, rivals, peak.rate),
        "edits": [asdict(comparison) for comparison in comparisons],
        "rival_edits": [asdict(comparison) for comparison in rivals],
    }


def main() -> int:
    """Run the command."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.live", description=__doc__.split("\n")[0])
    parser.add_argument("--edits", type=int, default=200)
    parser.add_argument("--windows", type=int, default=4)
    parser.add_argument("--window", type=int, default=256)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--rival", type=int, default=12, help="edits that are also done the way of OptiPFair")
    parser.add_argument("--out", type=Path, default=None, help="JSON file; benchmarks/results/live.json if absent")
    options = parser.parse_args()
    result = benchmark(options)
    live_report.show(result)
    measuring.write("live", result, options.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
