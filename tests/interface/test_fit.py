"""Make it fit on the real embedded model: how much must go, options that fit, one of them taken and undone."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.interface.driving import ROOT, choose, export, opened, settings, upload, value, wait_measured
from tests.interface.test_tools import SETTINGS, on_little_text, said

pytestmark = pytest.mark.slow
DETAILS = "Memory on the device, itemised, and what fits"
WAIT = 240_000
"""Milliseconds that six measured options may take."""


def small_device(page: Any, folder: Path, megabytes: int) -> None:
    """Choose a device of one's own with little memory."""
    device = json.loads((ROOT / "presets" / "devices" / "raspberry-pi-5-8gb.json").read_text())
    device |= {"id": "small", "name": "Small board"}
    device["memory_bytes"]["value"] = device["reserved_bytes"]["value"] + megabytes * 10**6
    path = folder / "small.json"
    path.write_text(json.dumps(device))
    settings(page)
    upload(page, "own-device", path)
    page.wait_for_function("document.querySelector('#room')?.textContent.includes('Small board')")
    page.get_by_role("button", name=SETTINGS).click()


def found(page: Any) -> list[list[str]]:
    """The table's rows."""
    page.wait_for_function("document.querySelectorAll('#fit-options tbody tr').length >= 6", timeout=WAIT)
    rows = page.locator("#fit-options tbody tr").all()
    return [row.locator("td").all_inner_texts() for row in rows]


def test_options_that_fit_are_measured_and_taken(page: Any, tmp_path: Path) -> None:
    on_little_text(page, "What fits. ")
    dense = value(page)
    page.get_by_role("button", name=DETAILS).click()
    said(page, "#room", "It fits Raspberry Pi 5")
    assert not page.locator("#fit-choice").is_visible() and not page.locator("#fit-take").is_visible()
    small_device(page, tmp_path, 240)
    assert "are missing" in said(page, "#room", "It does not fit Small board")
    page.click("#make-fit")
    rows = found(page)
    page.wait_for_selector("#cancel[disabled]", state="attached", timeout=WAIT)
    rows = found(page)
    perplexities = [float(row[1].replace(",", "")) for row in rows]
    assert perplexities == sorted(perplexities) and len(set(perplexities)) == len(rows)
    assert any("as it is" in row[0] for row in rows) and any("fewer blocks" in row[0] for row in rows)
    cut = next(row for row in rows if "fewer blocks" in row[0])
    label = f"{cut[0]}: perplexity {cut[1]}"
    choose(page, "fit-choice", label)
    page.click("#fit-take")
    assert wait_measured(page, "quantised to") == cut[1]
    said(page, "#room", "It fits Small board")
    ops = [edit["op"] for edit in export(page, tmp_path / "recipe.json")["edits"]]
    assert ops[0] == "remove_blocks" and "quantize" in ops
    page.click("#undo")
    assert wait_measured(page, "30 blocks kept") == dense
    assert len(found(page)) == len(rows)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_has_room_on_a_phone(profile: Callable[..., Any], tmp_path: Path, scheme: str) -> None:
    page = opened(profile(viewport={"width": 390, "height": 844}), f"/?__theme={scheme}")
    on_little_text(page, "What fits. ")
    page.get_by_role("button", name=DETAILS).click()
    small_device(page, tmp_path, 240)
    page.click("#make-fit")
    found(page)
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    box = page.locator("#fit-options .ms-scroll").bounding_box()
    assert box is not None and box["x"] >= 0 and box["x"] + box["width"] <= 390
    page.screenshot(path=tmp_path / "phone.png", full_page=True)
