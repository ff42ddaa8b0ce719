"""Puts the repository's root on the import path, whatever folder pytest is started from, and keeps torch polite."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # threads that wait must not take the cores of other processes
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import pytest

pytest_plugins = ["tests.interface.worked"]
SECOND = {"test_detail.py", "test_fit.py", "test_heal.py", "test_quantise.py", "test_ship.py", "test_tools.py"}
"""Files of browser tests that take about as long as all others together."""


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """One process more than there are cores: the browser tests of two of them often wait."""
    return len(os.sched_getaffinity(0)) + 1


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Browser tests in two groups, each in one process with one server and one browser; every other test by itself.

    With pytest 9.2 and xdist 3.8 the marks of `--dist loadgroup` group nothing.
    """
    from xdist.scheduler import LoadScopeScheduling

    class SideBySide(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = PurePosixPath(nodeid.partition("::")[0])
            return f"page {1 + (file.name in SECOND)}" if file.parent.name == "interface" else nodeid

    return SideBySide(config, log)


@pytest.fixture(autouse=True)
def _one_thread_for_tiny_models(request: pytest.FixtureRequest) -> Iterator[None]:
    """Tiny models are the same in every run, whichever process makes them. They are slower on two threads, many times
    so when something else runs; slow tests keep all threads.
    """
    import torch

    torch.manual_seed(0)
    if request.node.get_closest_marker("slow"):
        yield
        return
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
