"""What the benchmarks share: the machine, its best matrix product, quantiles, tables, result files."""

from __future__ import annotations

import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import torch
from rich.console import Console
from rich.table import Table

RESULTS = Path(__file__).resolve().parent / "results"
GEMM_SHAPES = ((2048, 2048, 2048), (1024, 576, 1536), (1024, 1536, 576), (1024, 576, 4096))
"""Rows, inner and columns of the products that are tried: a large square one and those of the embedded model."""
GEMM_ROUNDS = 5
MEGABYTE = 2**20


@dataclass(frozen=True)
class Peak:
    """Best GEMM rate in FLOP/s, and the best rate of each shape."""

    rate: float
    by_shape: dict[str, float]

    def better_of(self, other: Peak) -> Peak:
        """The best of two measurements, shape by shape."""
        best = {shape: max(rate, other.by_shape.get(shape, 0.0)) for shape, rate in self.by_shape.items()}
        return Peak(max(self.rate, other.rate), best)


def gemm_peak(threads: int, dtype: torch.dtype = torch.float32) -> Peak:
    """Best rate over `GEMM_SHAPES` and rounds; output tensors are allocated once."""
    torch.set_num_threads(threads)
    best = {
        "x".join(map(str, shape)): max(_gemm_rate(*shape, dtype) for _ in range(GEMM_ROUNDS)) for shape in GEMM_SHAPES
    }
    return Peak(max(best.values()), best)


def _gemm_rate(rows: int, inner: int, columns: int, dtype: torch.dtype) -> float:
    """FLOP/s of one short burst of h @ W^T, the layout of a linear."""
    left, right = torch.randn(rows, inner).to(dtype), torch.randn(columns, inner).to(dtype).T
    out = torch.empty(rows, columns, dtype=dtype)
    flops = 2 * rows * inner * columns
    repeats = max(1, int(10e9 / flops))
    torch.mm(left, right, out=out)
    begun = time.perf_counter()
    for _ in range(repeats):
        torch.mm(left, right, out=out)
    return flops * repeats / (time.perf_counter() - begun)


def machine() -> dict[str, Any]:
    """The machine and the software that were measured."""
    import transformers

    return {
        "cpu": _cpu_name(),
        "cores": os.cpu_count(),
        "memory_bytes": psutil.virtual_memory().total,
        "load_average": os.getloadavg()[0],
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "threads": torch.get_num_threads(),
    }


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown")


def seconds(work: Callable[[], object]) -> float:
    """Wall time of one call."""
    begun = time.perf_counter()
    work()
    return time.perf_counter() - begun


def median(values: Sequence[float]) -> float:
    """The median; NaN of nothing."""
    return statistics.median(values) if values else float("nan")


def percentile(values: Sequence[float], share: float) -> float:
    """The value at a share of the sorted ones, interpolated; NaN of nothing."""
    return float(torch.tensor(values, dtype=torch.float64).quantile(share)) if values else float("nan")


def table(rows: Sequence[dict[str, Any]], title: str = "") -> None:
    """Print rows of equal keys; the first column is text, the rest stand right."""
    if not rows:
        return
    shown = Table(title=title, title_justify="left")
    for position, name in enumerate(rows[0]):
        shown.add_column(name, justify="right" if position else "left", no_wrap=True)
    for row in rows:
        shown.add_row(*(_cell(value) for value in row.values()))
    Console(width=None if Console().is_terminal else 160).print(shown)


def _cell(value: Any) -> str:
    return f"{value:,.3f}" if isinstance(value, float) else str(value)


def write(name: str, document: dict[str, Any], out: Path | None = None) -> Path:
    """Write a result as JSON, to `out` or to `benchmarks/results/<name>.json`."""
    path = out or RESULTS / f"{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document, indent=1) + "\n", "utf-8")
    print(f"Written to {path}")
    return path
