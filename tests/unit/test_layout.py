"""Imports go one way: app.py -> ui -> surgery -> analysis, and inside these from package to package as `ORDER` says.

No two files import each other in a circle, no folder is crowded, and the headless packages know nothing of gradio.
"""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from surgery import PUBLIC
from surgery.old_names import MOVED

ROOT = Path(__file__).resolve().parent.parent.parent
ORDER = (
    "analysis", "analysis.errors", "analysis.files", "analysis.seeds", "analysis.model", "analysis.text",
    "analysis.statistics", "analysis.gradients", "analysis.importance", "analysis.figures",
    "surgery.old_names", "surgery", "surgery.errors", "surgery.common", "surgery.recipe", "surgery.folders",
    "surgery.gguf", "surgery.models", "surgery.structure", "surgery.evaluation", "surgery.checkpoints",
    "surgery.calibration",
    "surgery.compensation", "surgery.quantization", "surgery.training", "surgery.formats", "surgery.fit",
    "surgery.workbench",
    "surgery.pruning", "surgery.healing", "surgery.shipping", "surgery.search", "surgery.session", "surgery.cli",
    "surgery.__main__",
    "ui", "ui.errors", "ui.scripts", "ui.theme", "ui.tabs", "ui.presenters", "ui.widgets", "ui.inputs", "ui.api",
    "ui.panel", "ui.panels", "ui.handlers", "ui.page",
    "app",
)  # fmt: skip
"""Packages, and the files that stand beside them, from the lowest to the highest: each may import itself and lower
ones. Benchmarks and tests may import anything, and nothing imports them."""
RANK = {package: place for place, package in enumerate(ORDER)}
LAYERS = ("analysis", "surgery", "ui", "app")
MOST_MODULES = 24
"""Modules that a folder may hold."""
OUTSIDE = ("benchmarks", "tests")
PANELS = "ui.panels"
"""The package whose modules never import each other."""
FACE = {f"surgery.{name}": module for name, module in PUBLIC.items()} | {
    f"{old}.{name}": module for old, names in MOVED.items() for name, module in names.items()
}
"""By a name as it may be imported lazily, the module that defines it."""
HEADLESS = ("analysis", "surgery")
IO_CALLS = {
    "open", "print", "input", "exec", "eval", "read_text", "read_bytes", "write_text", "write_bytes", "mkdir",
    "unlink", "touch", "iterdir", "glob", "rglob", "stat", "exists", "is_file", "is_dir", "listdir", "scandir", "walk",
    "urlopen", "system", "popen", "Popen", "check_output", "check_call", "from_pretrained", "hf_hub_download",
    "load_dataset", "basicConfig", "launch",
}  # fmt: skip


def imported(tree: ast.AST, package: str) -> Iterator[tuple[int, str]]:
    """Line and full name of everything a module imports, wherever in the file; `package` resolves relative imports.

    A name of the public face, which is imported when it is used, counts as the module that defines it.
    """
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            name = ".".join([*base, *([node.module] if node.module else [])])
            yield node.lineno, name
            names = (f"{name}.{alias.name}".lstrip(".") for alias in node.names)
            yield from ((node.lineno, FACE.get(full, full)) for full in names)
        elif isinstance(node, ast.Attribute) and ast.unparse(node) in FACE:
            yield node.lineno, FACE[ast.unparse(node)]
        elif isinstance(node, ast.Call) and called(node) in {"import_module", "__import__"} and node.args:
            first = node.args[0]
            if isinstance(first, ast.Constant) and isinstance(first.value, str):
                yield node.lineno, first.value


def called(node: ast.Call) -> str:
    """The last part of a called name."""
    function = node.func
    return function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")


def package_of(name: str) -> str | None:
    """The entry of `ORDER` that a module or an imported name belongs to; None outside the project, or if unknown."""
    parts = name.removesuffix(".__init__").split(".")
    return next((known for known in (".".join(parts[:2]), parts[0]) if known in RANK), None)


def import_violations(source: str, module: str) -> list[str]:
    """What a module may not import. `module` is its dotted name, like `surgery.recipe.recipe`."""
    layer, package = module.split(".")[0], module.rpartition(".")[0] or module
    own = package_of(module)
    found = []
    for line, name in imported(ast.parse(source), package):
        top, other = name.split(".")[0], package_of(name)
        upwards = other is not None and own is not None and RANK[other] > RANK[own]
        beside = name.startswith(f"{PANELS}.") and package == PANELS
        if (
            upwards
            or beside
            or top in OUTSIDE
            or (layer in HEADLESS and (top == "gradio" or top.startswith("gradio_")))
        ):
            found.append(f"{module}:{line} imports {name}")
    return sorted(set(found))


def import_graph(sources: dict[str, str]) -> dict[str, set[str]]:
    """The modules that each module imports, by dotted name; `sources` are the texts of them all."""
    graph: dict[str, set[str]] = {}
    for module, source in sources.items():
        package = module.rpartition(".")[0] or module
        names = {name for _, name in imported(ast.parse(source), package)}
        known = {name if name in sources else f"{name}.__init__" for name in names}
        graph[module] = {name for name in known if name in sources and name != module}
    return graph


def circles(graph: dict[str, set[str]]) -> list[str]:
    """Pairs of modules that reach each other by imports, one sentence for each direct import inside a circle."""
    reach: dict[str, set[str]] = {}
    for start in graph:
        seen: set[str] = set()
        pending = list(graph[start])
        while pending:
            name = pending.pop()
            if name not in seen:
                seen.add(name)
                pending += graph[name]
        reach[start] = seen
    return sorted(
        f"{one} imports {other}, which leads back" for one in graph for other in graph[one] if one in reach[other]
    )


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
    files = [ROOT / "app.py"]
    for layer in LAYERS:
        files += sorted((ROOT / layer).rglob("*.py"))
    for path in files:
        parts = path.relative_to(ROOT).with_suffix("").parts
        yield path, ".".join(parts)


FILES = dict((name, path) for path, name in modules())


def test_the_layers_are_there() -> None:
    assert {name.split(".")[0] for name in FILES} == set(LAYERS)
    assert len(FILES) > 20


def test_every_package_has_a_place_in_the_order() -> None:
    found = {".".join(name.split(".")[:2]) for name in FILES} - {f"{layer}.__init__" for layer in LAYERS}
    assert found | {"analysis", "surgery", "ui"} == set(ORDER)
    assert len(set(ORDER)) == len(ORDER)


def test_the_documented_packages_are_those_of_the_order() -> None:
    rows = re.findall(r"^\| `(\S+)` \| (.+) \|$", (ROOT / "docs" / "architecture.md").read_text("utf-8"), re.M)
    expected = []
    for name in ORDER:
        folder = ROOT / name.replace(".", "/")
        file = folder / "__init__.py" if folder.is_dir() else folder.with_suffix(".py")
        words = ast.get_docstring(ast.parse(file.read_text("utf-8")))
        assert words is not None
        shown = name if folder.is_dir() else file.relative_to(ROOT).as_posix()
        expected.append((shown, words.split("\n\n")[0].replace("\n", " ")))
    assert rows == expected


def test_no_circle_of_imports() -> None:
    assert circles(import_graph({name: path.read_text("utf-8") for name, path in FILES.items()})) == []


def test_a_circle_is_seen_with_both_files() -> None:
    sources = {
        "surgery.a": "from surgery import b",
        "surgery.b": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from surgery.c import thing",
        "surgery.c": "def f():\n    import surgery.a",
        "surgery.d": "from surgery.a import name",
    }
    assert circles(import_graph(sources)) == [
        "surgery.a imports surgery.b, which leads back",
        "surgery.b imports surgery.c, which leads back",
        "surgery.c imports surgery.a, which leads back",
    ]


def test_a_circle_through_the_public_face_is_seen() -> None:
    sources = {
        "surgery.recipe.recipe": "def f():\n    from surgery import Session",
        "surgery.session.session": "from surgery.recipe.recipe import Recipe",
    }
    assert len(circles(import_graph(sources))) == 2


def test_no_folder_is_crowded() -> None:
    folders = Counter(name.rpartition(".")[0] for name in FILES)
    assert {folder: count for folder, count in folders.items() if count > MOST_MODULES} == {}


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
        ("surgery.common.jobs", "from surgery import pruning"),
        ("surgery.common.jobs", "from surgery import Session"),
        ("surgery.common.jobs", "import surgery\ndef f():\n    return surgery.Session"),
        ("surgery.common.jobs", "from surgery.budget import Budget"),
        ("surgery.errors", "from surgery.recipe import Recipe"),
        ("analysis.errors", "from analysis import importance"),
        ("ui.theme", "from ui import page"),
        ("ui.panels.fit", "from ui.panels import heal"),
        ("ui.panels.fit", "from ui.panels.heal import Heal"),
        ("ui.panels.fit", "from .heal import Heal"),
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
        ("ui.widgets.block_map", "import gradio as gr\nfrom . import other\nfrom ..theme import PLAIN\nimport surgery"),
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
