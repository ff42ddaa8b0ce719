"""What is shown of a measurement of every removal: its words, and the numbers that are drawn. Pure."""

from __future__ import annotations

import math

import torch

from analysis.importance.predictions import rank_correlation
from surgery.session.scan import Scanned
from surgery.structure.removal import RemovalKind
from ui.presenters.text import Html, note

KINDS: dict[RemovalKind, str] = {"blocks": "blocks", "attention": "attention parts", "mlp": "MLPs"}


def scan_text(scanned: Scanned | None) -> Html:
    """How well the predictions rank what was measured."""
    if scanned is None:
        return Html()
    tokens = scanned.scan.baseline.tokens
    words = f"Rise of the loss without each part, measured on {tokens:,} tokens"
    if scanned.predicted is None:
        return note(f"{words}. The predictions are missing: measure again to gather them.")
    parts = [
        f"{KINDS[kind]} {_correlation(scanned, kind, 'second')} (first order {_correlation(scanned, kind, 'first')})"
        for kind in KINDS
        if kind in scanned.scan.removals
    ]
    return note(
        f"{words}, and predicted to second order from one backward pass over the calibration text. "
        f"Rank correlation (Spearman): {', '.join(parts)}."
    )


def _correlation(scanned: Scanned, kind: RemovalKind, order: str) -> str:
    predicted, measured = pairs(scanned, kind, order)
    value = rank_correlation(predicted, measured)
    return f"{value:.2f}" if math.isfinite(value) else "none"


def pairs(scanned: Scanned, kind: RemovalKind, order: str = "second") -> tuple[torch.Tensor, torch.Tensor]:
    """Predicted and measured rises of the loss, (parts,) each, of the blocks that have the part."""
    assert scanned.predicted is not None  # the caller has checked
    found = [(block, row) for block, row in enumerate(scanned.scan.removals[kind]) if row is not None]
    predicted = getattr(getattr(scanned.predicted, order), kind)
    blocks = [block for block, _ in found]
    return predicted[blocks].double(), torch.tensor([row.difference for _, row in found], dtype=torch.float64)


def series(scanned: Scanned) -> dict[str, tuple[list[int], list[float] | None, list[float]]]:
    """What the chart shows of a scan, by part: blocks, predicted rises, measured ones."""
    found: dict[str, tuple[list[int], list[float] | None, list[float]]] = {}
    for kind in (kind for kind in KINDS if kind in scanned.scan.removals):
        rows = [(block, row.difference) for block, row in enumerate(scanned.scan.removals[kind]) if row is not None]
        predicted = pairs(scanned, kind)[0].tolist() if scanned.predicted is not None else None
        found[kind] = ([block for block, _ in rows], predicted, [rise for _, rise in rows])
    return found
