"""What gathering every statistic costs over a plain forward pass of the same model on the same windows.

    python -m benchmarks.analysis [--windows 8] [--window 512] [--threads 2] [--out F]

Exits 1 when a limit is missed. Time is the median of alternating rounds after a warm-up; memory is the peak resident
size of a fresh process during the pass, less its resident size once the model is loaded and every weight was touched.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import torch

from analysis.model.runner import Prepared, Runner
from analysis.statistics import collect as statistics
from analysis.text import Windows, load_text, make_windows
from benchmarks import measuring
from surgery.models.loading import Loaded, load

ROUNDS = 3
TIME_LIMIT = 1.5
"""Most that collecting may take, as a multiple of the plain pass."""
MEMORY_LIMIT = 300.0
"""Most MB (2^20 bytes) that collecting may need over the loaded model."""
PASSES = ("collect", "plain", "backbone")
"""What is measured: all statistics; the model's own forward, head included; the same without the head."""


class GroupNote(Runner):
    """A runner that notes how many windows go through the model together."""

    largest = 0

    def prepare(self, ids: torch.Tensor) -> Prepared:
        """As the runner does."""
        self.largest = max(self.largest, ids.shape[0])
        return super().prepare(ids)


def passes(loaded: Loaded, windows: Windows, group: int) -> dict[str, Callable[[], object]]:
    """Each pass as a function without arguments, all in the same groups of windows."""
    runner = Runner(loaded.model, loaded.architecture)
    backbone = loaded.model.get_submodule(loaded.architecture.backbone)
    return {
        "collect": lambda: statistics.collect(runner, windows, group=group),
        "plain": lambda: _forward(loaded.model, windows, group),
        "backbone": lambda: _forward(backbone, windows, group),
    }


@torch.inference_mode()
def _forward(model: torch.nn.Module, windows: Windows, group: int) -> None:
    for ids in windows.ids.split(group):
        model(input_ids=ids, use_cache=False)


def own_group(loaded: Loaded, windows: Windows) -> int:
    """Windows that `collect` puts through together by itself; also warms it up."""
    runner = GroupNote(loaded.model, loaded.architecture)
    statistics.collect(runner, windows)
    return runner.largest


def timings(work: dict[str, Callable[[], object]]) -> dict[str, list[float]]:
    """Seconds of each pass in alternating rounds, after one warm-up."""
    for run in work.values():
        run()
    taken: dict[str, list[float]] = {name: [] for name in work}
    for _ in range(ROUNDS):
        for name, run in work.items():
            taken[name].append(measuring.seconds(run))
    return taken


def peak_in_fresh_process(name: str, options: argparse.Namespace, group: int) -> dict[str, float]:
    """MB after loading and at the peak of one pass, measured in a process of its own."""
    arguments = ["--windows", options.windows, "--window", options.window, "--threads", options.threads]
    command = [sys.executable, "-m", "benchmarks.analysis", *map(str, arguments), "--measure", f"{name}:{group}"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"The memory run of {name!r} failed: {done.stderr.strip()[-500:]}")
    result: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return result


def measure_here(task: str, options: argparse.Namespace) -> dict[str, float]:
    """One pass in this process, once: seconds (cold), MB before it, and MB of its peak above that."""
    name, _, group = task.partition(":")
    loaded, windows = _inputs(options)
    work = passes(loaded, windows, int(group))[name]
    _touch(loaded.model)
    _reset_peak()
    before = psutil.Process().memory_info().rss
    seconds = measuring.seconds(work)
    over = _peak() - before
    return {"seconds": seconds, "loaded": before / measuring.MEGABYTE, "over": over / measuring.MEGABYTE}


def _inputs(options: argparse.Namespace) -> tuple[Loaded, Windows]:
    torch.set_num_threads(options.threads)
    loaded = load("default")
    return loaded, make_windows(loaded.tokenizer, load_text("embedded"), options.window, options.windows)


def _touch(model: torch.nn.Module) -> None:
    """Bring weights that are mapped from a file into memory, so that no pass is charged for them."""
    for parameter in model.parameters():
        parameter.sum()


def _reset_peak() -> None:
    """Let the kernel's high-water mark of this process start again from now (Linux)."""
    Path("/proc/self/clear_refs").write_text("5", "ascii")


def _peak() -> int:
    """The kernel's high-water mark of resident bytes (Linux)."""
    lines = Path("/proc/self/status").read_text("ascii").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))


def benchmark(options: argparse.Namespace) -> dict[str, Any]:
    """Everything measured, as JSON values."""
    loaded, windows = _inputs(options)
    group = own_group(loaded, windows)
    taken = timings(passes(loaded, windows, group))
    medians = {name: measuring.median(values) for name, values in taken.items()}
    memory = {name: peak_in_fresh_process(name, options, group) for name in PASSES}
    ratio = medians["collect"] / medians["plain"]
    return {
        "machine": measuring.machine(),
        "windows": windows.count,
        "window": windows.length,
        "tokens": windows.ids.numel(),
        "group": group,
        "seconds": taken,
        "median_seconds": medians,
        "ratio_to_plain": ratio,
        "ratio_to_backbone": medians["collect"] / medians["backbone"],
        "memory_mb": memory,
        "limits": {"ratio_to_plain": TIME_LIMIT, "collect_mb": MEMORY_LIMIT},
        "met": {"time": ratio <= TIME_LIMIT, "memory": memory["collect"]["over"] <= MEMORY_LIMIT},
    }


def show(result: dict[str, Any]) -> None:
    """Print the table and the verdicts."""
    plain = result["median_seconds"]["plain"]
    rows = [
        {
            "pass": name,
            "median s": result["median_seconds"][name],
            "fastest s": min(result["seconds"][name]),
            "x plain": result["median_seconds"][name] / plain,
            "tokens/s": f"{result['tokens'] / result['median_seconds'][name]:,.0f}",
            "peak MB over the model": f"{result['memory_mb'][name]['over']:,.0f}",
        }
        for name in PASSES
    ]
    measuring.table(
        rows,
        f"Statistics against a plain forward pass: {result['windows']} windows of {result['window']}, "
        f"groups of {result['group']}, {result['machine']['threads']} threads",
    )
    print(f"time    {result['ratio_to_plain']:.2f} x plain, limit {TIME_LIMIT}: {_verdict(result['met']['time'])}")
    over = result["memory_mb"]["collect"]["over"]
    print(f"memory  {over:.0f} MB over the model, limit {MEMORY_LIMIT:.0f}: {_verdict(result['met']['memory'])}")


def _verdict(met: bool) -> str:
    return "met" if met else "MISSED"


def main() -> int:
    """Run the command."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.analysis", description=__doc__.split("\n")[0])
    parser.add_argument("--windows", type=int, default=8)
    parser.add_argument("--window", type=int, default=512)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, default=None, help="JSON file; benchmarks/results/analysis.json if absent")
    parser.add_argument("--measure", default=None, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        print(json.dumps(measure_here(options.measure, options)))
        return 0
    result = benchmark(options)
    show(result)
    measuring.write("analysis", result, options.out)
    return 0 if all(result["met"].values()) else 1


if __name__ == "__main__":
    sys.exit(main())
