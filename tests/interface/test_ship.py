"""The Ship panel on the real embedded model: ship, verify, take away, upload with a token, cancel, a phone."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from surgery.recipe.texts import TextChoice
from surgery.shipping.verify import verify
from tests.interface.driving import PROGRESS, choose, export, opened, part, tool, value, wait_for_message, wait_measured
from tests.interface.test_tools import TEXT, on_little_text, said

pytestmark = pytest.mark.slow
SECRET = "hf_this-is-the-secret-token"
WAIT = 240_000
"""Milliseconds that shipping may take: it builds, writes and reads back the whole model."""


def finished(page: Any) -> str:
    page.wait_for_function(
        "document.querySelector('#ship-note')?.innerText.includes('Shipped and verified')", timeout=WAIT
    )
    return page.locator("#ship-note").inner_text()


def test_ship_verify_take_away_and_upload(page: Any, tmp_path: Path) -> None:
    words = "A shipment. "
    on_little_text(page, words)
    dense = value(page)
    part(page, 13).click()
    shown = wait_measured(page, "29 blocks kept")
    assert shown != dense
    tool(page, "Ship")
    assert "reads every file back" in said(page, "#ship-note", "Makes a folder")
    assert not page.locator("#hub").is_visible() and not page.locator("#ship-download").is_visible()
    page.locator("#ship-checkpoint input").click()
    page.click("#ship")
    wait_for_message(page, "There is nothing to ship")
    choose(page, "ship-type", "F16")
    page.click("#ship")
    text = finished(page)
    assert "GGUF, F16" in text and "Checkpoint, " not in text and "Modelfile" not in text.split("SHA-256")[0]
    row = [cell.inner_text() for cell in page.locator("#ship-note tbody td").all()]
    recorded, found, page_shows = (float(words.replace(",", "")) for words in (row[2], row[3], shown))
    assert found == pytest.approx(recorded, rel=1e-4) and recorded == pytest.approx(page_shows, rel=0.01)
    with page.expect_download() as download:
        page.click("#ship-download")
    packed = tmp_path / "shipped.zip"
    download.value.save_as(packed)
    with zipfile.ZipFile(packed) as archive:
        archive.extractall(tmp_path)
    [made] = [entry for entry in tmp_path.iterdir() if entry.is_dir()]
    again = verify(made, TextChoice("pasted", content=words + TEXT))
    assert again.holds and [one.kind for one in again.differences] == ["gguf"]
    kept = json.loads((made / "recipe.json").read_text())
    assert kept["edits"][:-1] == export(page, tmp_path / "recipe.json")["edits"]
    assert kept["edits"][-1]["type"] == "F16"
    assert not any(words.strip().encode() in path.read_bytes() for path in made.glob("*.json"))

    page.locator("#hub .label-wrap").click()
    page.locator("#ship-repository").locator("input, textarea").fill("owner/name")
    page.click("#push")
    wait_for_message(page, "needs a token of your own")
    page.locator("#ship-private input").click()
    assert not page.locator("#ship-private input").is_checked()
    token = page.locator("#ship-token input")
    assert token.get_attribute("type") == "password"
    token.fill(SECRET)
    page.click("#push")
    wait_for_message(page, "The Hub cannot be reached")  # the server of the tests is told to stay offline
    page.wait_for_function("document.querySelector('#ship-token input').value === ''")
    stored = page.evaluate("JSON.stringify([{...localStorage}, {...sessionStorage}]) + document.body.innerHTML")
    assert SECRET not in stored
    part(page, 20).click()
    said(page, "#ship-note", "It was made from an earlier recipe.")


def test_shipping_can_be_cancelled_and_is_followed_after_a_reload(page: Any) -> None:
    on_little_text(page, "Cancelled shipment. ", 2)
    tool(page, "Ship")
    page.click("#ship")
    page.wait_for_selector(PROGRESS)
    page.click("#cancel:not([disabled])")
    wait_for_message(page, "was cancelled")
    assert "Makes a folder" in page.locator("#ship-note").inner_text()
    page.click("#ship:not([disabled])")
    page.wait_for_selector(PROGRESS)
    page.reload()
    page.wait_for_selector("#map [data-block-map]")
    tool(page, "Ship")
    assert "Checkpoint, float32" in finished(page)
    page.wait_for_selector("#ship-download", state="visible")
    page.wait_for_selector("#hub", state="visible")
    page.locator("#ship-note summary").click()
    page.locator("#hub .label-wrap").click()
    for width in (1280, 390):
        page.set_viewport_size({"width": width, "height": 844})
        page.wait_for_function("width => document.documentElement.scrollWidth <= width", arg=width)


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_the_panel_has_room(profile: Callable[..., Any], theme: str, width: int) -> None:
    phone = {"has_touch": True, "is_mobile": True} if width < 500 else {}
    page = opened(profile(viewport={"width": width, "height": 844}, **phone), f"/?__theme={theme}")
    tool(page, "Ship")
    page.wait_for_selector("#ship")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    cut = page.evaluate(
        """() => [...document.querySelectorAll('#tools button, #tools .block')]
             .filter(node => node.offsetParent && node.scrollWidth > node.clientWidth + 1).map(node => node.id)"""
    )
    assert not cut, f"there is no room for {cut}"
