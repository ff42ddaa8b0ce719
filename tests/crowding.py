"""How busy the cores are: tests that run side by side hold time limits against what a computation gets of them."""

from __future__ import annotations

import time

PROBE = 0.1
"""Seconds of processor time of one look."""


def slowed() -> float:
    """How many times longer than alone a computation takes now, because others use the cores too; at least 1."""
    begun, used = time.perf_counter(), time.process_time()
    while time.process_time() - used < PROBE:
        pass
    return max(1.0, (time.perf_counter() - begun) / PROBE)
