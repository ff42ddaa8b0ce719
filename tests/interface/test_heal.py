"""The Heal panel on the real embedded model: the forecast, the training and its curve, cancel, undo."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import pytest

from tests.interface.driving import (
    LONG_TEXT,
    choose,
    export,
    heal_words,
    part,
    tool,
    upload_text,
    wait_for_message,
    wait_measured,
)

pytestmark = pytest.mark.slow
WAIT = 150_000
"""Milliseconds that a forecast, or a first step, may take on busy cores."""


def test_ask_heal_cancel_undo(page: Any, tmp_path: Path) -> None:
    tool(page, "Heal")
    heal_words(page, "Nothing is cut")
    assert page.locator("#heal").is_disabled()
    part(page, 12).click()
    part(page, 13).click()
    cut = wait_measured(page, "28 blocks kept")
    choose(page, "heal-method", "Distillation (the dense model's predictions)")
    choose(page, "heal-method", "LoRA (cross-entropy)")
    choose(page, "heal-preset", "Two minutes")
    choose(page, "heal-text", "Uploaded file")
    page.wait_for_selector("#heal-upload", state="visible")
    picture = tmp_path / "picture.txt"
    picture.write_bytes(bytes(range(256)))
    upload_text(page, "heal-upload", picture)
    page.click("#heal-forecast:not([disabled])")
    wait_for_message(page, "UTF-8 text")
    choose(page, "heal-text", "Pasted text")
    page.fill("#heal-pasted textarea", "Too short.")
    page.press("#heal-pasted textarea", "Tab")
    page.click("#heal-forecast:not([disabled])")
    wait_for_message(page, "longer text")
    page.fill("#heal-pasted textarea", LONG_TEXT)
    page.press("#heal-pasted textarea", "Tab")
    page.click("#heal-forecast:not([disabled])")
    heal_words(page, "About 2 minutes on this machine")
    page.click("#heal:not([disabled])")
    heal_words(page, "Step 2 of")
    page.wait_for_selector("#heal-curve .js-plotly-plot", timeout=WAIT)
    page.click("#cancel:not([disabled])")
    heal_words(page, "Healed in")
    healed = wait_measured(page)
    assert float(healed.replace(",", "")) != float(cut.replace(",", ""))
    kept = export(page, tmp_path / "recipe.json")
    assert [edit["op"] for edit in kept["edits"]] == ["remove_blocks", "heal"]
    page.click("#heal-adapter")
    with page.expect_download() as started:
        page.click("#heal-download")
    with zipfile.ZipFile(started.value.path()) as archive:
        assert {Path(name).name for name in archive.namelist()} >= {"adapter_config.json", "adapter_model.safetensors"}
    page.click("#undo:not([disabled])")
    page.wait_for_function(
        "v => document.querySelector('[data-tile=perplexity] .ms-tile-value')?.innerText.startsWith(v)", arg=cut
    )
    assert wait_measured(page, "28 blocks kept") == cut
    assert "Healed in" not in page.locator("#heal-words").inner_text()
