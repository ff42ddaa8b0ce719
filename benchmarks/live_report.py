"""The numbers and tables of the live benchmark, from its timings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks import measuring
from benchmarks.measuring import median, percentile
from benchmarks.metered import Part, Work

TARGETS = {
    "full / from scratch": ("at most", 0.65),
    "first estimate / from scratch": ("at most", 0.25),
    "undo / from scratch": ("at most", 0.02),
    "full / OptiPFair": ("at most", 0.35),
    "share of GEMM peak": ("at least", 0.60),
}
"""Targets for the medians over the edits."""


def summary(comparisons: Sequence[Comparison], rivals: Sequence[RivalComparison], peak: float) -> dict[str, Any]:
    """Medians, ratios, targets, kinds and the breakdown, as JSON values."""
    ratios = _ratios(comparisons, rivals, peak)
    medians = {name: median(values) for name, values in ratios.items() if values}
    return {
        "seconds": {name: _spread(values) for name, values in _seconds(comparisons, rivals).items() if values},
        "ratios": {name: _spread(values) for name, values in ratios.items() if values},
        "targets": {name: {"value": value, "met": _met(name, value)} for name, value in medians.items()},
        "kinds": _kinds(comparisons),
        "breakdown": _breakdown(comparisons, peak),
    }


def _seconds(comparisons: Sequence[Comparison], rivals: Sequence[RivalComparison]) -> dict[str, list[float]]:
    return {
        "first estimate": [one.edit.first for one in comparisons],
        "full refinement": [one.edit.full for one in comparisons],
        "undo": [one.undo.full for one in comparisons],
        "from scratch": [one.scratch.full for one in comparisons],
        "full, rival's edits": [one.edit.full for one in rivals],
        "OptiPFair": [one.seconds for one in rivals],
    }


def _ratios(
    comparisons: Sequence[Comparison], rivals: Sequence[RivalComparison], peak: float
) -> dict[str, list[float]]:
    """Each edit's own ratios; edits that needed no computation have no rate."""
    return {
        "full / from scratch": [one.edit.full / one.scratch.full for one in comparisons],
        "first estimate / from scratch": [one.edit.first / one.scratch.full for one in comparisons],
        "undo / from scratch": [one.undo.full / one.scratch.full for one in comparisons],
        "full / OptiPFair": [one.edit.full / one.seconds for one in rivals],
        "share of GEMM peak": [
            one.edit.work.flops / one.edit.full / peak for one in comparisons if one.edit.work.flops
        ],
        "blocks, share of GEMM peak": [
            one.edit.work.blocks.rate / peak for one in comparisons if one.edit.work.blocks.calls
        ],
        "head, share of GEMM peak": [one.edit.work.head.rate / peak for one in comparisons if one.edit.work.head.calls],
        "head, share of time": [one.edit.work.head.seconds / one.edit.full for one in comparisons],
        "FLOPs edit / from scratch": [one.edit.work.flops / one.scratch.work.flops for one in comparisons],
    }


def _spread(values: Sequence[float]) -> dict[str, float]:
    return {"median": median(values), "p90": percentile(values, 0.9), "least": min(values), "most": max(values)}


def _met(name: str, value: float) -> bool | None:
    if name not in TARGETS:
        return None
    sense, limit = TARGETS[name]
    return value <= limit if sense == "at most" else value >= limit


def _kinds(comparisons: Sequence[Comparison]) -> list[dict[str, Any]]:
    """Medians by kind of edit."""
    rows = []
    for kind in sorted({one.kind for one in comparisons}):
        chosen = [one for one in comparisons if one.kind == kind]
        rows.append(
            {
                "kind": kind,
                "edits": len(chosen),
                "first s": median([one.edit.first for one in chosen]),
                "full s": median([one.edit.full for one in chosen]),
                "full p90 s": percentile([one.edit.full for one in chosen], 0.9),
                "scratch s": median([one.scratch.full for one in chosen]),
                "first / scratch": median([one.edit.first / one.scratch.full for one in chosen]),
                "full / scratch": median([one.edit.full / one.scratch.full for one in chosen]),
                "undo / scratch": median([one.undo.full / one.scratch.full for one in chosen]),
            }
        )
    return rows


def _breakdown(comparisons: Sequence[Comparison], peak: float) -> list[dict[str, Any]]:
    """Where the time of the edit of median duration went."""
    ordered = sorted(comparisons, key=lambda one: one.edit.full)
    edit = ordered[len(ordered) // 2].edit
    rest = edit.full - edit.work.blocks.seconds - edit.work.head.seconds
    parts = {
        "blocks": edit.work.blocks,
        "head and losses": edit.work.head,
        "rest": Part(0, rest, 0.0),
        "whole": Part(edit.work.blocks.calls + edit.work.head.calls, edit.full, edit.work.flops),
    }
    return [
        {
            "part": name,
            "calls": part.calls,
            "s": part.seconds,
            "share of time": part.seconds / edit.full,
            "GFLOP": part.flops / 1e9,
            "GFLOP/s": part.rate / 1e9,
            "share of peak": part.rate / peak,
        }
        for name, part in parts.items()
    ]


def show(result: dict[str, Any]) -> None:
    """Print every table and the verdicts."""
    options = result["options"]
    text = (
        f"{options['edits']} edits, {options['windows']} windows of {options['window']}, {options['threads']} threads"
    )
    measuring.table(
        [{"seconds": name, **spread} for name, spread in result["seconds"].items()],
        f"Live: {text}",
    )
    measuring.table([{"ratio, by edit": name, **spread} for name, spread in result["ratios"].items()], "Ratios")
    measuring.table(result["kinds"], "By kind of edit (medians)")
    measuring.table(result["breakdown"], "The edit of median duration")
    shapes = ", ".join(f"{shape} {rate / 1e9:.0f}" for shape, rate in result["gemm_peak"]["by_shape"].items())
    print(f"GEMM peak {result['gemm_peak']['rate'] / 1e9:.0f} GFLOP/s ({shapes})")
    for name, (sense, limit) in TARGETS.items():
        found = result["targets"].get(name)
        verdict = "not measured" if found is None else f"{found['value']:.3f}: {'met' if found['met'] else 'MISSED'}"
        print(f"{name}, {sense} {limit}: {verdict}")


@dataclass(frozen=True)
class Timing:
    """One evaluation: seconds to the first estimate and to the last, what was computed, and the result."""

    first: float
    full: float
    work: Work
    nll: float


@dataclass(frozen=True)
class Comparison:
    """One edit, its undo, and the same edited recipe from scratch."""

    kind: str
    edit: Timing
    undo: Timing
    scratch: Timing


@dataclass(frozen=True)
class RivalComparison:
    """One edit, live and the rival's way; both measure the same model."""

    kind: str
    edit: Timing
    seconds: float
    nll: float
