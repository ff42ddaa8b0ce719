"""docs/controls.md lists every control of the page, and the browser tests that it names work them."""

from __future__ import annotations

import re
from pathlib import Path

import gradio as gr

from ui.page import build

ROOT = Path(__file__).parents[2]
ROWS = re.findall(
    r"^\| (`.+?) \| .+ \| `(test_\w+\.py)::(test_\w+)` \|$", (ROOT / "docs/controls.md").read_text(), re.M
)
LISTED = {name: test for names, *test in ROWS for name in re.findall(r"`([\w*-]+)`", names)}
HIDDEN = {"exported", "answer", "report-text", "link-code"}
"""Carriers of what a script of the page reads."""
WORKED = (gr.Button, gr.UploadButton, gr.DownloadButton, gr.Textbox, gr.Number, gr.Slider, gr.Dropdown, gr.Checkbox,
          gr.CheckboxGroup, gr.File)  # fmt: skip


def test_every_control_is_listed() -> None:
    page = build()
    found = {
        str(block.elem_id) for block in page.blocks.values() if isinstance(block, WORKED) and block.elem_id is not None
    }
    patterns = [re.compile(re.escape(name).replace(r"\*", ".+")) for name in LISTED]
    missing = {name for name in found - HIDDEN if not any(pattern.fullmatch(name) for pattern in patterns)}
    assert len(found) > 80 and not missing


def test_the_tests_are_there_and_name_the_controls() -> None:
    texts = {path.name: path.read_text() for path in (ROOT / "tests/interface").glob("*.py")}
    assert len(LISTED) > 80
    for name, (file, test) in LISTED.items():
        assert f"def {test}(" in texts[file], f"{name}: {file} has no {test}"
        word = name.rstrip("*-").removeprefix("quantise-")
        assert re.search(rf"\b{re.escape(word)}\b", texts[file] + texts["driving.py"]), f"{file} does not name {name}"
