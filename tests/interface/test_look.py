"""Compare, Read and Keep on the real page."""

from __future__ import annotations

import base64
import json
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.interface.driving import (
    CURRENT,
    DENSE,
    choose,
    opened,
    part,
    removed,
    tool,
    value,
    wait_for_message,
    wait_measured,
)

pytestmark = pytest.mark.slow


def shown(page: Any, selector: str, words: str) -> None:
    page.wait_for_function(
        "([selector, words]) => document.querySelector(selector)?.innerText.includes(words)", arg=[selector, words]
    )


def test_compare_go_back_pin_and_undo_by_keyboard(page: Any) -> None:
    dense = value(page)
    tool(page, "Compare")
    part(page, 13).click()
    one_less = wait_measured(page, "29 blocks kept, 1 removed")
    page.wait_for_function("document.querySelectorAll('#tried [data-key]').length === 2")
    assert page.locator("#steps button").count() == 2
    page.click("#pin-a")
    shown(page, "#pinned", "A")
    page.locator("#steps button").first.click()
    assert wait_measured(page, DENSE) == dense
    shown(page, "#pinned", "B (in force)")
    page.click("#pin-b")
    page.wait_for_function("!document.querySelector('#pinned').innerText.includes('in force')")
    page.locator("#tried [data-key]").nth(1).focus()
    page.keyboard.press("Enter")
    assert wait_measured(page, "29 blocks kept, 1 removed") == one_less
    page.locator("h1").click()
    page.keyboard.press("Control+z")
    assert wait_measured(page, DENSE) == dense and removed(page) == []
    page.keyboard.press("Control+Shift+z")
    assert wait_measured(page, "29 blocks kept, 1 removed") == one_less
    page.locator("#ratio input[type=number]").focus()
    page.keyboard.press("Control+z")
    assert wait_measured(page, "29 blocks kept, 1 removed") == one_less, "while a number is typed it is the field's"


def test_read_both_models(page: Any) -> None:
    tool(page, "Read")
    page.fill("#read-prompt textarea", "The capital of France is")
    page.get_by_role("button", name="More").last.click()
    for name, text in (("tokens", "12"), ("temperature", "0.7"), ("top-p", "0.9"), ("seed", "3")):
        page.locator(f"#read-{name} input").fill(text)
    page.click("#read:not([disabled])")
    shown(page, "#answers", "Nothing is cut")
    shown(page, "[data-answer=dense]", "12 tokens")
    first = page.locator("[data-answer=dense] p").first.inner_text()
    part(page, 13).click()
    part(page, 14).click()
    wait_measured(page, "28 blocks kept")
    shown(page, "#answers", "has changed since")
    page.locator("#read-chat input").check()
    page.locator("#read-chat input").uncheck()
    page.click("#read:not([disabled])")
    page.wait_for_selector("[data-answer=cut][data-state=current]")
    shown(page, "[data-answer=cut]", "12 tokens")
    assert page.locator("[data-answer=dense] p").first.inner_text() == first
    page.fill("#read-prompt textarea", " ")
    page.click("#read:not([disabled])")
    wait_for_message(page, "Write a prompt first")


def test_keep_a_link_a_ready_recipe_and_a_report(profile: Callable[..., Any], tmp_path: Path) -> None:
    context = profile()
    page = opened(context)
    tool(page, "Keep")
    shown(page, "#lines", "python -m surgery evaluate default --text embedded --window 256 --windows 1")
    choose(page, "ready-choice", page.locator("#ready-choice input").input_value())
    page.click("#ready-take")
    ready = wait_measured(page, "attention part")
    page.click("#make-link")
    page.wait_for_function("location.hash.startsWith('#recipe=')")
    field = "document.querySelector('#shown-link input, #shown-link textarea')"
    page.wait_for_function(f"{field}.value.includes('#recipe=')")
    link = page.evaluate("location.href")
    with page.expect_download() as download:
        page.click("#report")
    path = tmp_path / "report.html"
    download.value.save_as(path)
    assert ready in path.read_text("utf-8")
    other = profile().new_page()
    other.goto(link)
    assert wait_measured(other, "attention part") == ready
    assert other.evaluate("location.hash") == "", "a reload does not undo what is done from here on"
    report = context.new_page()
    report.set_content(path.read_text("utf-8"))
    assert report.locator("h2").count() >= 6


def test_a_hostile_link_is_one_sentence_and_the_page_works(profile: Callable[..., Any]) -> None:
    script = {"schema": "model-surgery/recipe/1", "model": {"id": "<img src=x onerror=alert(1)>"}, "edits": []}
    for text, words in (
        (json.dumps(script).encode(), "The link's recipe is of the model"),
        (b" " * (9 * 2**20), "larger than"),
        (b'{"schema": "x"}', "schema"),
    ):
        code = base64.urlsafe_b64encode(zlib.compress(text)).decode().rstrip("=")
        page = profile().new_page()
        page.goto(f"/#recipe={code}")
        wait_for_message(page, words)
        page.wait_for_selector(CURRENT)
        assert removed(page) == [] and page.locator("#status img").count() == 0
        page.close()


def test_on_a_phone_nothing_is_cut_off(profile: Callable[..., Any]) -> None:
    page = opened(profile(viewport={"width": 390, "height": 800}, color_scheme="dark"))
    part(page, 13).click()
    wait_measured(page, "29 blocks kept")
    for name in ("Compare", "Read", "Keep"):
        tool(page, name)
        page.wait_for_function("document.documentElement.scrollWidth <= 390")
