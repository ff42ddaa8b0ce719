"""Import lines that model cards, the README and the page printed before, and those that they print now."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import surgery
from surgery.old_names import MOVED

ROOT = Path(__file__).resolve().parents[2]
BEFORE = [
    "from surgery.recipe import Recipe",
    "from surgery.ship_weights import ShipOptions",
    "from surgery.shipping import ship",
    "from surgery.workbench import TextChoice, Workbench",
    "from surgery.budget import Budget, Rules",
    "from surgery.suggestion import suggest",
    "import surgery.budget, surgery.ship_weights; surgery.budget.Budget, surgery.ship_weights.ShipOptions",
    "import surgery; surgery.load",
    "from surgery import load",
]
NOW = [
    "from surgery import Recipe, ShipOptions, TextChoice, Workbench, ship",
    "from surgery import Budget, Recipe, Rules, TextChoice, Workbench, suggest",
]
HEAVY = ("torch", "transformers", "gradio")


def fresh(code: str) -> subprocess.CompletedProcess[str]:
    """Run code in an interpreter of its own."""
    return subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("line", BEFORE + NOW)
def test_a_printed_line_still_works(line: str) -> None:
    done = fresh(line)
    assert done.returncode == 0, done.stderr


def test_the_lines_of_one_card_work_together_and_name_the_same_things() -> None:
    names = "Recipe, ShipOptions, ship, TextChoice, Workbench, Budget, Rules, suggest"
    done = fresh("\n".join([*BEFORE, f"old = {names}", *NOW, f"assert old == ({names}) and callable(ship)"]))
    assert done.returncode == 0, done.stderr


def test_importing_the_package_loads_nothing_heavy() -> None:
    done = fresh(f"import sys, surgery; dir(surgery); print([name for name in {HEAVY} if name in sys.modules])")
    assert done.stdout.strip() == "[]", done.stdout + done.stderr
    control = fresh(f"import sys, surgery; surgery.load; print([name for name in {HEAVY} if name in sys.modules])")
    assert "torch" in control.stdout, "a name that is used loads what it needs"


@pytest.mark.parametrize("name", sorted(surgery.PUBLIC))
def test_every_public_name_can_be_had(name: str) -> None:
    found = getattr(surgery, name)
    assert found.__name__ == name and found.__module__ == surgery.PUBLIC[name]
    assert name in surgery.__all__ and name in dir(surgery)


@pytest.mark.parametrize("module", ["surgery", *sorted(MOVED)])
def test_an_unknown_name_is_an_attribute_error(module: str) -> None:
    done = fresh(f"import importlib\nimportlib.import_module({module!r}).nonsense")
    assert done.returncode == 1
    assert done.stderr.strip().endswith(f"AttributeError: module {module!r} has no attribute 'nonsense'")
    done = fresh(f"from {module} import nonsense")
    assert done.returncode == 1 and "ImportError" in done.stderr
