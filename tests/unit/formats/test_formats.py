"""The table of storage formats: one row holds what a format is, and nobody else tells formats apart by name."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path
from typing import get_args

import pytest

from surgery.fit.weight_types import TYPES
from surgery.formats.format import StorageFormat
from surgery.formats.table import FORMATS, PLAIN, format_of
from surgery.recipe.storage import STORABLE, Format, PackedFormat, Quantize
from ui.presenters.quantise import SETTINGS

ROOT = Path(__file__).resolve().parents[3]


def told_apart(source: str) -> list[int]:
    """Lines that compare something that is called a format with a format's name."""
    return [
        node.lineno
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Compare)
        and ast.unparse(node.left).endswith(("format", "format_name"))
        and any(
            isinstance(c, ast.Constant) and c.value in FORMATS for other in node.comparators for c in ast.walk(other)
        )
    ]


def test_the_table_and_the_recipe_name_the_same_formats() -> None:
    assert tuple(FORMATS) == tuple(STORABLE) == get_args(Format)
    assert {row.library for row in FORMATS.values() if not row.one_file} == set(get_args(PackedFormat))
    assert format_of(None) is PLAIN and all(name == row.name for name, row in FORMATS.items())


@pytest.mark.parametrize("row", [PLAIN, *FORMATS.values()], ids=lambda row: row.name)
def test_a_row_is_complete(row: StorageFormat) -> None:
    assert row.title and row.does and row.default_type in row.types and set(row.settings) <= set(SETTINGS)
    assert len({kind.name for kind in row.weight_types}) == len(row.types)
    for kind in row.weight_types:
        assert kind.format is row and TYPES[kind.name] == kind
        types, sizes = row.weigh(kind, {"blk.0.ffn_up.weight": (64, 256), "output_norm.weight": (256,)}, 1, 2)
        assert bool(types) == row.one_file and sizes["output_norm.weight"] in (512, 1024)
        assert sizes["blk.0.ffn_up.weight"] <= 4 * 64 * 256
        if row is not PLAIN:
            assert format_of(Quantize(format=row.name, type=kind.type)) is row


def test_the_table_is_light() -> None:
    code = (
        "import sys, surgery.formats.table; assert not {'torch', 'transformers', 'gguf', 'numpy'} & sys.modules.keys()"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_nobody_tells_formats_apart_by_name() -> None:
    files = [path for folder in ("surgery", "ui") for path in (ROOT / folder).rglob("*.py")]
    assert len(files) > 100
    found = [f"{path}:{line}" for path in files for line in told_apart(path.read_text("utf-8"))]
    # The verb `export` writes GGUF, mergekit and cards: those are no storage formats.
    assert [place for place in found if "/cli/export.py" not in place] == []


def test_that_test_sees_a_comparison() -> None:
    assert told_apart('if edit.format == "gguf":\n    pass') == [1]
    assert told_apart('x = 1 if format_name in ("torchao", "none") else 2') == [1]
    assert told_apart('if part.kind == "gguf" or edit.format == other:\n    pass') == []
