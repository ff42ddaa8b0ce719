"""How the tests read and work the page. Waits are for states, never for time."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from playwright.sync_api import TimeoutError

ROOT = Path(__file__).resolve().parent.parent.parent
LONG_TEXT = (ROOT / "presets" / "text" / "calibration.txt").read_text("utf-8") * 2
WINDOWS = 10
"""Of 256 tokens: enough that their analysis takes some seconds."""
DENSE = "30 blocks kept, 0 removed; expansion ratio 266.7%."
PROGRESS = "#status [role=progressbar]"
CURRENT = "[data-tile=perplexity][data-state=current]"


def opened(context: Any, address: str = "/") -> Any:
    """A new tab on the page, with its model measured."""
    page = context.new_page()
    page.goto(address)
    page.wait_for_selector(CURRENT)
    return page


def value(page: Any) -> str:
    """The perplexity tile's number, without its error."""
    return page.locator("[data-tile=perplexity] .ms-tile-value").inner_text().split(" ")[0]


def tile(page: Any, name: str) -> str:
    return page.locator(f"[data-tile={name}]").inner_text()


def part(page: Any, block: int, kind: str = "block") -> Any:
    return page.locator(f'#map button[data-block="{block}"][data-part="{kind}"]')


def removed(page: Any) -> list[tuple[int, str]]:
    """What the map shows as removed."""
    found = page.locator('#map button[data-state="removed"]').evaluate_all(
        "nodes => nodes.map(node => [Number(node.dataset.block), node.dataset.part])"
    )
    return sorted((block, kind) for block, kind in found)


def wait_for_words(page: Any, words: str) -> None:
    """Until the line below the map says this."""
    _wait_for_text(page, "#removed .ms-removed", words)


def wait_for_message(page: Any, words: str) -> str:
    """Until the status says this; the whole message."""
    _wait_for_text(page, "#status .ms-message", words)
    return page.locator("#status .ms-message").inner_text()


def _wait_for_text(page: Any, selector: str, words: str) -> None:
    script = "([selector, words]) => document.querySelector(selector)?.innerText.includes(words)"
    try:
        page.wait_for_function(script, arg=[selector, words])
    except TimeoutError as error:
        shown = " | ".join(page.locator(f"#status, {selector}").all_inner_texts())
        raise AssertionError(f"{words!r} was expected, and the page says: {shown}") from error


def wait_measured(page: Any, words: str = "") -> str:
    """Until the numbers are those of the recipe that the line below the map describes; the perplexity."""
    if words:
        wait_for_words(page, words)
    page.wait_for_selector(CURRENT)
    return value(page)


def analyse(page: Any) -> None:
    page.click("#analyse")
    wait_analysed(page)


def wait_analysed(page: Any) -> None:
    page.wait_for_selector("#map [data-block-map][data-analysed=true]")
    page.wait_for_selector("#cancel[disabled]", state="attached")


def settings(page: Any) -> None:
    """Open the model, text and device settings."""
    page.get_by_role("button", name="Model, text and device").click()
    page.wait_for_selector("#open", state="visible")


def set_ratio(page: Any, percent: int) -> None:
    box = page.locator("#ratio input[type=number]")
    box.fill(str(percent))
    box.press("Enter")


def ratio(page: Any) -> int:
    return int(page.locator("#ratio input[type=number]").input_value())


def choose(page: Any, component: str, option: str) -> None:
    """Pick an option of a drop-down list."""
    page.locator(f"#{component} input").click()
    page.get_by_role("option", name=option, exact=True).click()


def tool(page: Any, name: str) -> None:
    """Open one of the tools below the map."""
    page.get_by_role("tab", name=name, exact=True).click()


def suggest(page: Any, amount: str | None = None, words: str = "") -> None:
    """Press Suggest, after another amount in the budget's field, take it, and wait for the words below the map."""
    if amount is not None:
        page.locator("#tools [id^=amount-]:visible").locator("input, textarea").fill(amount)
    page.click("#suggest:not([disabled])")
    page.click("#suggest-take")
    if words:
        wait_for_words(page, words)


def text_of(selector: str) -> str:
    """A JavaScript expression for what the first such element says."""
    return f"document.querySelector({json.dumps(selector)})?.textContent ?? ''"


def changes(page: Any, look: str, act: Callable[[], Any]) -> None:
    """Act, and wait until a JavaScript expression has another value than before."""
    before = page.evaluate(look)
    act()
    page.wait_for_function("([look, before]) => eval(look) !== before", arg=[look, before])


def export(page: Any, path: Path) -> dict[str, Any]:
    with page.expect_download() as download:
        page.click("#export")
    download.value.save_as(path)
    return json.loads(path.read_text("utf-8"))


def upload(page: Any, component: str, path: Path) -> None:
    """Press an upload button and choose a file."""
    with page.expect_file_chooser() as chooser:
        page.click(f"#{component}")
    chooser.value.set_files(path)


def upload_text(page: Any, component: str, path: Path) -> None:
    """Put a file into a file field, which must be visible, and wait until the server has it."""
    with page.expect_response(lambda response: "/upload" in response.url):
        page.locator(f"#{component} input[type=file]").set_input_files(path)
    page.wait_for_selector(f"#{component} .file-preview, #{component} [class*=file]")


def paste_text(page: Any, text: str, window: int, windows: int) -> None:
    """Measure on a pasted text; the settings must be open."""
    if not page.locator("#pasted textarea").is_visible():
        choose(page, "text", "Pasted text")
    page.locator("#pasted textarea").fill(text)
    page.wait_for_function("text => document.querySelector('#pasted textarea').value === text", arg=text)
    page.locator("#window input").fill(str(window))
    page.locator("#windows input").fill(str(windows))
    page.locator("#windows input").press("Tab")  # a number that is still being typed is not sent
    page.click("#use-text")


def heal_words(page: Any, words: str) -> None:
    """Until the Heal panel says this; a forecast, or a first step, may take long on busy cores."""
    page.wait_for_function(
        "words => document.querySelector('#heal-words')?.innerText.includes(words)", arg=words, timeout=150_000
    )
