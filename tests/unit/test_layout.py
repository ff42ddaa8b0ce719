"""Imports go one way, app.py -> ui -> surgery -> analysis; the headless packages know nothing of gradio."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
RANK = {"analysis": 0, "surgery": 1, "ui": 2, "app": 3}
"""A layer may import itself and lower ones. Benchmarks and tests may import anything, and nothing imports them."""
OUTSIDE = ("benchmarks", "tests")
HEADLESS = ("analysis", "surgery")
IO_CALLS = {
    "open", "print", "input", "exec", "eval", "read_text", "read_bytes", "write_text", "write_bytes", "mkdir",
    "unlink", "touch", "iterdir", "glob", "rglob", "stat", "exists", "is_file", "is_dir", "listdir", "scandir", "walk",
    "urlopen", "system", "popen", "Popen", "check_output", "check_call", "from_pretrained", "hf_hub_download",
    "load_dataset", "basicConfig", "launch",
}  # fmt: skip


def imported(tree: ast.AST, package: str) -> Iterator[tuple[int, str]]:
    """Line and full name of everything a module imports, wherever in the file; `package` resolves relative imports."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            name = ".".join([*base, *([node.module] if node.module else [])])
            yield node.lineno, name
            yield from (
                (node.lineno, f"{name}.{alias.name}".lstrip("."))
                for alias in node.names
                if node.level and not node.module
            )
        elif isinstance(node, ast.Call) and called(node) in {"import_module", "__import__"} and node.args:
            first = node.args[0]
            if isinstance(first, ast.Constant) and isinstance(first.value, str):
                yield node.lineno, first.value


def called(node: ast.Call) -> str:
    """The last part of a called name."""
    function = node.func
    return function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")


def import_violations(source: str, module: str) -> list[str]:
    """What a module may not import. `module` is its dotted name, like `surgery.recipe.recipe`."""
    layer = module.split(".")[0]
    package = module.rpartition(".")[0] or module
    found = []
    for line, name in imported(ast.parse(source), package):
        top = name.split(".")[0]
        upwards = top in RANK and RANK[top] > RANK[layer]
        if upwards or top in OUTSIDE or (layer in HEADLESS and (top == "gradio" or top.startswith("gradio_"))):
            found.append(f"{module}:{line} imports {name}")
    return sorted(set(found))


def module_level(statements: list[ast.stmt]) -> Iterator[ast.AST]:
    """Everything that runs when a module is imported: no bodies of functions or lambdas, no `__main__` part."""
    pending: list[ast.AST] = list(statements)
    while pending:
        node = pending.pop()
        if isinstance(node, ast.If) and "__main__" in ast.unparse(node.test):
            continue
        yield node
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            pending += [*node.decorator_list, *node.args.defaults]
        elif not isinstance(node, ast.Lambda):
            pending += ast.iter_child_nodes(node)


def io_violations(source: str, module: str) -> list[str]:
    """Calls at import time that read, write, print or load."""
    nodes = module_level(ast.parse(source).body)
    return [
        f"{module}:{n.lineno} calls {called(n)}" for n in nodes if isinstance(n, ast.Call) and called(n) in IO_CALLS
    ]


def modules() -> Iterator[tuple[Path, str]]:
    """Every Python file of the four layers with its dotted name."""
    files = [ROOT / "app.py"] if (ROOT / "app.py").exists() else []
    for layer in RANK:
        files += sorted((ROOT / layer).rglob("*.py"))
    for path in files:
        parts = path.relative_to(ROOT).with_suffix("").parts
        yield path, ".".join(parts)


FILES = dict((name, path) for path, name in modules())


def test_the_layers_are_there() -> None:
    assert {name.split(".")[0] for name in FILES} >= {"analysis", "surgery"}
    assert len(FILES) > 20


@pytest.mark.parametrize("module", FILES)
def test_imports_go_one_way(module: str) -> None:
    assert import_violations(FILES[module].read_text("utf-8"), module) == []


@pytest.mark.parametrize("module", [name for name in FILES if name.split(".")[0] in HEADLESS])
def test_importing_a_headless_module_performs_no_input_or_output(module: str) -> None:
    assert io_violations(FILES[module].read_text("utf-8"), module) == []


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("analysis.text", "import surgery"),
        ("analysis.text", "import surgery.recipe.recipe as r"),
        ("analysis.text", "from surgery.errors import RecipeError"),
        ("analysis.text", "from ui.presenters import charts"),
        ("analysis.text", "import gradio as gr"),
        ("analysis.text", "from gradio.components import HTML"),
        ("analysis.deep.er", "def f():\n    from ...surgery import recipe"),
        ("analysis.text", "from .. import surgery"),
        ("surgery.recipe.recipe", "import os, ui.presenters.charts"),
        ("surgery.recipe.recipe", "def f():\n    import gradio"),
        ("surgery.recipe.recipe", "import gradio_client"),
        ("surgery.recipe.recipe", "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from app import main"),
        ("surgery.recipe.recipe", "try:\n    import ui\nexcept ImportError:\n    pass"),
        ("surgery.recipe.recipe", "import importlib\nimportlib.import_module('ui.presenters.charts')"),
        ("surgery.recipe.recipe", "__import__('gradio')"),
        ("surgery.recipe.recipe", "from benchmarks import speed"),
        ("surgery.__init__", "from tests.tiny_models import build"),
        ("ui.widgets.block_map", "import app"),
        ("ui.page", "from tests import tiny_models"),
        ("app", "import benchmarks"),
    ],
)
def test_the_checker_sees_an_import_against_the_arrow(module: str, source: str) -> None:
    assert len(import_violations(source, module)) >= 1


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("app", "import gradio\nfrom ui.page import build\nfrom surgery.recipe import recipe\nimport analysis.text"),
        ("ui.widgets.block_map", "import gradio as gr\nfrom . import other\nfrom ..page import build\nimport surgery"),
        ("surgery.recipe.recipe", "from analysis.text import Text\nfrom .ranges import Indices\nimport torch"),
        ("analysis.text", "import application, uinput, surgery_tools\nfrom .errors import TextError  # not gradio"),
    ],
)
def test_the_checker_allows_the_arrow(module: str, source: str) -> None:
    assert import_violations(source, module) == []


@pytest.mark.parametrize(
    ("source", "seen"),
    [
        ("X = open('a')", True),
        ("from pathlib import Path\nX = {'a': [Path('a').read_text()]}", True),
        ("class A:\n    x = Path('a').exists()", True),
        ("def f(x=Path('a').read_text()): pass", True),
        ("if True:\n    print('hello')", True),
        ("def f():\n    return open('a')", False),
        ("class A:\n    def f(self):\n        print('a')", False),
        ("F = lambda path: path.read_text()", False),
        ("if __name__ == '__main__':\n    print('a')", False),
        ("from pathlib import Path\nX = Path(__file__).resolve().parent", False),
    ],
)
def test_the_checker_sees_input_and_output_at_import(source: str, seen: bool) -> None:
    assert bool(io_violations(source, "surgery.x")) is seen


def test_the_headless_modules_import_without_gradio_or_a_word() -> None:
    names = [name.removesuffix(".__init__") for name in FILES if name.split(".")[0] in HEADLESS]
    names = [name for name in names if not name.endswith("__main__")]
    script = (
        "import importlib, sys\n"
        f"for name in {names!r}: importlib.import_module(name)\n"
        "found = {name.split('.')[0] for name in sys.modules} & {'gradio', 'gradio_client', 'ui', 'app', 'tests'}\n"
        "sys.exit(f'imported {found}' if found else 0)\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""
