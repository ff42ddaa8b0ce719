"""The check that browser tests work every control of the page."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.interface.worked import Record, controls
from ui.page import build

ROOT = Path(__file__).resolve().parents[3]
TEST = """
from tests.interface.worked import RECORD

def test_{name}(request):
    request.config.stash[RECORD].add(controls=["one", "two"], worked=["{name}"])
"""


def checked(folder: Path, names: tuple[str, ...], *options: str) -> subprocess.CompletedProcess[str]:
    """A run of pytest in which each test works the control that it is named after."""
    for name in names:
        (folder / f"test_{name}.py").write_text(TEST.format(name=name))
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "tests.interface.worked", "--every-control", *options],
        cwd=folder, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True,
    )  # fmt: skip


@pytest.mark.parametrize("options", [(), ("-n", "2")])
def test_the_run_fails_where_no_test_has_worked_a_control(tmp_path: Path, options: tuple[str, ...]) -> None:
    done = checked(tmp_path, ("one", "more"), *options)
    assert done.returncode == 1 and "No browser test has worked these controls: two." in done.stdout
    assert done.stdout.splitlines()[-1].startswith("1 failed, 2 passed")


def test_what_several_processes_have_worked_is_added_up(tmp_path: Path) -> None:
    done = checked(tmp_path, ("one", "two"), "-n", "2")
    assert done.returncode == 0 and done.stdout.splitlines()[-1].startswith("3 passed")


def test_a_run_without_the_page_has_worked_nothing() -> None:
    assert Record().complaint() == "No browser test opened the page."


def test_the_pages_controls_are_found() -> None:
    found = controls(build().get_config_file())
    assert len(found) > 100
    assert found >= {"map", "detail", "tried", "steps", "ratio", "cancel", "bias", "rule-per-parameter", "heal-upload",
                     "import", "download", "setup", "tool-ship", "scan-kinds"}  # fmt: skip
    assert not found & {"exported", "answer", "report-text", "link-code", "shown-link", "status", "chart-blocks"}
