"""The detail of a block on the real page: heads and neurons by pointer and keyboard, undone, on a phone, removed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.interface.driving import (
    analyse,
    choose,
    export,
    opened,
    part,
    set_ratio,
    value,
    wait_for_message,
    wait_measured,
)
from tests.interface.test_tools import on_little_text, said

pytestmark = pytest.mark.slow


def select(page: Any, block: int) -> None:
    """Choose a block in the list."""
    choose(page, "detail-block", f"Block {block}")
    page.wait_for_selector(f'#detail [data-block="{block}"]')


def numbers(page: Any, words: str) -> str:
    return said(page, "#detail-words", words)


def unit(page: Any, number: int) -> Any:
    """The button of a KV group."""
    return page.locator(f'#detail button[data-unit="{number}"]')


def strip(page: Any) -> Any:
    found = page.locator("#detail [data-strip]")
    found.scroll_into_view_if_needed()
    return found


def drag(page: Any, start: float, end: float) -> None:
    """Drag over the strip, between two shares of its width."""
    box = strip(page).bounding_box()
    page.mouse.move(box["x"] + start * box["width"], box["y"] + 40)
    page.mouse.down()
    page.mouse.move(box["x"] + end * box["width"], box["y"] + 40, steps=5)
    page.mouse.up()


def test_heads_and_neurons_of_a_block_are_cut_by_pointer_and_keyboard(page: Any, tmp_path: Path) -> None:
    on_little_text(page, "One block. ")
    dense = value(page)
    numbers(page, "Select a block")
    assert not page.locator("#detail [data-block-detail]").is_visible()
    assert not page.locator("#ranked-by").is_visible()
    select(page, 5)
    numbers(page, "all 9 query heads, all 3 KV groups")
    assert "Not ranked" in page.locator("#detail [data-neurons-note]").inner_text()
    analyse(page)
    page.wait_for_selector("#detail [data-strip][data-ranked=true]")
    assert "nats" in unit(page, 0).get_attribute("aria-label")
    choose(page, "coloured-by", "Output norm")
    said(page, "#detail [data-scale]", "Output norm")

    unit(page, 1).click()
    numbers(page, "6 of 9 query heads, 2 of 3 KV groups")
    assert wait_measured(page, "1 KV group removed") != dense
    page.keyboard.press("ArrowRight")
    page.keyboard.press(" ")
    numbers(page, "1 of 3 KV groups")
    assert unit(page, 0).get_attribute("aria-disabled") == "true", "the last one stays"
    page.click("#detail [data-all-heads]")
    numbers(page, "all 3 KV groups")
    for turn in range(21):
        unit(page, turn % 2).click()
    page.wait_for_selector('#detail button[data-unit="0"][aria-pressed=true]')
    numbers(page, "2 of 3 KV groups")

    drag(page, 0.95, 0.75)
    numbers(page, "1,152 of 1,536 neurons, expansion ratio 200.0%")
    slider = strip(page)
    slider.focus()
    page.keyboard.press("Shift+ArrowLeft")
    numbers(page, "1,151 of 1,536 neurons")
    page.keyboard.press("End")
    numbers(page, "all 1,536 neurons")
    page.keyboard.press("PageDown")
    numbers(page, "1,416 of 1,536 neurons")
    assert slider.get_attribute("aria-valuenow") == "1416"
    assert "120 go (7.8%)" in slider.get_attribute("aria-valuetext")
    edits = {edit["op"]: edit for edit in export(page, tmp_path / "recipe.json")["edits"]}
    assert edits["prune_kv_groups"]["removed"] == {"5": "0"} and set(edits["prune_neurons"]["removed"]) == {"5"}
    assert edits["prune_neurons"]["chosen_by"]["method"] == "cfsp_fine"
    choose(page, "ranked-by", "Variance of weights (VOW)")
    said(page, "#detail [data-neurons-note]", "not chosen by this method")

    page.click("#reset")
    numbers(page, "all 1,536 neurons")
    page.wait_for_selector('#detail [data-strip][aria-valuenow="1536"]')
    page.click("#undo")
    page.wait_for_selector('#detail [data-strip][aria-valuenow="1416"]')
    page.click("#detail [data-full-width]")
    numbers(page, "all 1,536 neurons")
    part(page, 5, "mlp").click()
    said(page, "#detail", "is removed: bring it back")
    assert strip(page).get_attribute("aria-disabled") == "true"


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_has_room_on_a_phone(profile: Callable[..., Any], tmp_path: Path, scheme: str) -> None:
    page = opened(
        profile(viewport={"width": 390, "height": 844}, has_touch=True, is_mobile=True), f"/?__theme={scheme}"
    )
    select(page, 3)
    choose(page, "ranked-by", "Maximum absolute weight (MAW)")
    page.wait_for_selector("#detail [data-strip][data-ranked=true]")
    unit(page, 2).tap()
    numbers(page, "2 of 3 KV groups")
    box = strip(page).bounding_box()
    page.touchscreen.tap(box["x"] + box["width"] / 2, box["y"] + 40)
    numbers(page, "of 1,536 neurons")
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    page.screenshot(path=tmp_path / "phone.png", full_page=True)


def test_a_lock_a_suggestion_and_the_miniature_are_on_the_map(page: Any) -> None:
    on_little_text(page, "The map. ", 2)
    analyse(page)
    select(page, 5)
    page.locator("#detail-lock input").click()
    page.wait_for_selector('#map button[data-part=block][data-block="5"][data-locked=true]')
    unit(page, 1).click()
    wait_measured(page, "1 KV group removed")
    fill = part(page, 5, "attention").locator(".bm-fill")
    assert fill.evaluate("node => getComputedStyle(node).maskImage").startswith("linear-gradient")
    assert "67% of its KV groups" in part(page, 5, "attention").get_attribute("aria-label")

    page.locator("#amount-blocks").locator("input, textarea").fill("20")
    page.click("#suggest:not([disabled])")
    page.wait_for_selector("#map button[data-part=mlp][data-going=removed] >> nth=19")
    assert part(page, 5).get_attribute("data-going") == "", "it is locked"
    assert "a suggestion would remove it" in page.locator("#map [data-going=removed]").first.get_attribute("aria-label")
    page.click("#suggest-discard")
    page.wait_for_selector("#map button[data-going=removed]", state="detached")
    page.reload()
    page.wait_for_selector('#map button[data-part=block][data-block="5"][data-locked=true]')


def test_the_map_is_coloured_otherwise_and_a_range_is_narrowed(page: Any) -> None:
    on_little_text(page, "A range. ", 2)
    choose(page, "map-colour", "Coloured by measured loss without it")
    page.wait_for_function(
        "document.querySelector('#map [data-unknown]').textContent === 'measured loss not measured yet'"
    )
    page.locator("#narrow-blocks").locator("input, textarea").fill("10-12")
    page.keyboard.press("Enter")
    choose(page, "method", "L2 norms")
    set_ratio(page, 100)
    wait_measured(page, "expansion ratio 100.0% to 266.7%")
    narrow = page.locator("#map button[data-narrowed=true]")
    assert narrow.evaluate_all("nodes => nodes.map(node => node.dataset.block).join()") == "10,11,12"
    page.locator("#narrow-blocks").locator("input, textarea").fill("40")
    page.keyboard.press("Enter")
    wait_for_message(page, "give a range of them")
