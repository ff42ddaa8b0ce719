"""The tools below the map on the real embedded model: suggest, compensate, build, predicted beside measured."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoModelForCausalLM

from tests.interface.driving import (
    ROOT,
    changes,
    choose,
    export,
    opened,
    part,
    paste_text,
    removed,
    set_ratio,
    settings,
    suggest,
    text_of,
    tile,
    tool,
    upload,
    value,
    wait_for_message,
    wait_measured,
)

pytestmark = pytest.mark.slow
TEXT = (ROOT / "presets" / "text" / "calibration.txt").read_text("utf-8")
SETTINGS = "Model, text and device"


def on_little_text(page: Any, words: str, windows: int = 3) -> None:
    """Measure on a few short windows of a text that no other test has."""
    settings(page)
    paste_text(page, words + TEXT, 64, windows)
    page.wait_for_function(
        "tokens => document.querySelector('[data-tile=perplexity]').innerText.includes(tokens)",
        arg=f"on {63 * windows:,} tokens",
    )
    page.get_by_role("button", name=SETTINGS).click()


def said(page: Any, selector: str, words: str) -> str:
    """Until an element says this; all that it says."""
    page.wait_for_function(
        "([selector, words]) => document.querySelector(selector)?.innerText.includes(words)", arg=[selector, words]
    )
    return page.locator(selector).inner_text()


def test_suggest_narrow_compensate_build_and_load(page: Any, tmp_path: Path) -> None:
    on_little_text(page, "A tour. ")
    dense = value(page)
    page.locator("#amount-blocks").locator("input, textarea").fill("2")
    page.keyboard.press("Enter")
    said(page, "#suggestion", "28 blocks kept, 2 removed")
    page.click("#suggest-take")
    two_less = wait_measured(page, "28 blocks kept, 2 removed (by Block influence)")
    assert two_less != dense and len(removed(page)) == 6 and "94.7% of 134.5 M" in tile(page, "parameters")
    page.wait_for_selector("#map [data-block-map][data-analysed=true]")

    choose(page, "method", "L2 norms")
    set_ratio(page, 100)  # so narrow that the refits are quick
    plain = wait_measured(page, "expansion ratio 100.0%, neurons chosen by L2 norms.")
    tool(page, "Compensate")
    page.locator("#least-squares input").focus()
    page.keyboard.press("Space")
    refitted = wait_measured(page, "neurons chosen by L2 norms; compensated by least squares.")
    assert refitted != plain
    reached = said(page, "#compensation", "Least squares: applied in")
    assert " of 28 places" in reached and "192 tokens of the pasted text" in reached
    page.click("#undo")
    assert wait_measured(page, "L2 norms.") == plain and not page.locator("#least-squares input").is_checked()
    page.click("#redo")
    assert wait_measured(page, "least squares.") == refitted and page.locator("#least-squares input").is_checked()
    page.locator("#bias input").click()
    wait_measured(page, "compensated by bias.")
    assert not page.locator("#least-squares input").is_checked(), "they make up for the same loss"
    page.click("#undo")
    wait_measured(page, "least squares.")

    tool(page, "Ship")
    assert "The recipe makes a checkpoint of about" in said(page, "#build-note", "parameters in float32")
    page.click("#build")
    page.wait_for_selector("#download", state="visible")
    assert "transformers loads it as it is" in said(page, "#build-note", "Built:")
    with page.expect_download() as download:
        page.click("#download")
    packed = tmp_path / "built.zip"
    download.value.save_as(packed)
    with zipfile.ZipFile(packed) as archive:
        archive.extractall(tmp_path)
    [made] = [entry for entry in tmp_path.iterdir() if entry.is_dir()]
    assert download.value.suggested_filename == f"{made.name}.zip"
    document = export(page, tmp_path / "recipe.json")
    assert json.loads((made / "recipe.json").read_text())["edits"] == document["edits"]
    model = AutoModelForCausalLM.from_pretrained(made)
    count = sum(parameter.numel() for parameter in model.parameters())
    assert f"{count / 1e6:.1f} M" in tile(page, "parameters") and model.config.num_hidden_layers == 28
    part(page, 3).click()
    said(page, "#build-note", "It was built from an earlier recipe.")


def test_predicted_stands_beside_measured(page: Any) -> None:
    on_little_text(page, "Predicted. ", 2)
    page.get_by_role("tab", name="Predicted and measured", exact=True).click()
    said(page, "#chart-note", "measure every removal")
    page.locator("#scan-kinds").get_by_text("Blocks").click()
    page.click("#scan")
    wait_for_message(page, "Choose what is to be removed")
    page.locator("#scan-kinds").get_by_text("Blocks").click()
    page.click("#scan")
    page.wait_for_selector("#chart-predicted .js-plotly-plot")
    words = said(page, "#scan-note", "Rank correlation (Spearman): blocks")
    assert "measured on 126 tokens" in words and "first order" in words
    page.wait_for_function(
        "[...document.querySelectorAll('#chart-predicted .legendtext')].map(node => node.textContent).join()"
        " === 'Block, measured,Block, predicted'"
    )


def test_a_compensation_can_be_cancelled_and_is_out_of_date_until_it_is_computed(page: Any) -> None:
    on_little_text(page, "Cancelled. ", 64)
    choose(page, "method", "L2 norms")
    set_ratio(page, 100)
    wait_measured(page, "expansion ratio 100.0%")
    tool(page, "Compensate")
    page.locator("#least-squares input").click()
    wait_for_message(page, "Compensating")
    assert "out of date, compensating" in tile(page, "perplexity")
    page.click("#cancel:not([disabled])")
    wait_for_message(page, "the recipe is kept")
    assert "its compensation is not computed" in tile(page, "perplexity")
    assert page.locator("#least-squares input").is_checked()
    page.click("#compute")
    wait_for_message(page, "Compensating")
    page.reload()
    wait_measured(page, "neurons chosen by L2 norms; compensated by least squares.")
    tool(page, "Compensate")
    said(page, "#compensation", "4,096 tokens of the pasted text")
    assert page.locator("#least-squares input").is_checked(), "the reloaded page has followed it to its end"


def test_a_recipe_cannot_make_the_page_read_a_file(page: Any, tmp_path: Path) -> None:
    secret = tmp_path / "secret.txt"
    secret.write_text(TEXT)
    text = {"source": str(secret), "fingerprint": "0123456789abcdef", "window": 64, "windows": 4}
    edits = [{"op": "prune_neurons", "removed": {"3": "0-99"}}, {"op": "compensate", "how": "bias", "text": text}]
    document = {"schema": "model-surgery/recipe/1", "model": {"id": "default"}, "edits": edits}
    path = tmp_path / "recipe.json"
    path.write_text(json.dumps(document))
    upload(page, "import", path)
    assert "not the text given here" in wait_for_message(page, "not the text given here")
    page.click("#undo")
    wait_measured(page, "30 blocks kept, 0 removed; expansion ratio 266.7%.")


GONE = "[...document.querySelectorAll('#map button[data-state=removed]')].map(n => n.dataset.block).join()"
RULES = "[...document.querySelectorAll('#tools [id^=rule-], #tools [id^=amount-]')].map(n => n.id).join()"
WORDS, OFFERED, MESSAGE = text_of("#removed .ms-removed"), text_of("#suggestion"), text_of("#status .ms-message")


def fill(page: Any, component: str, text: str) -> None:
    page.locator(f"#{component}").locator("input, textarea").fill(text)


def again(page: Any, component: str, text: str, look: str) -> None:
    """Another number in a field makes another suggestion."""
    changes(page, look, lambda: (fill(page, component, text), suggest(page)))


def ticked(page: Any, component: str, look: str) -> None:
    """A tick makes another suggestion."""
    changes(page, look, lambda: (page.locator(f"#{component} input").click(), suggest(page)))


def picked(page: Any, component: str, option: str, look: str) -> None:
    """Another option makes another suggestion."""
    changes(page, look, lambda: (choose(page, component, option), suggest(page)))


def rules_of(page: Any, method: str) -> None:
    """Open the rules and choose a method: it brings its own."""
    page.locator("#more .label-wrap").click()
    changes(page, RULES, lambda: choose(page, "suggest-method", method))


def test_every_rule_for_blocks_changes_the_suggestion(page: Any) -> None:
    on_little_text(page, "Rules for blocks. ", 2)
    rules_of(page, "Blocks: Random (control)")
    changes(page, GONE, lambda: suggest(page))
    fill(page, "rule-seed", "7")
    changes(page, OFFERED, lambda: page.click("#suggest:not([disabled])"))
    changes(page, OFFERED, lambda: page.click("#suggest-discard"))
    again(page, "rule-seed", "1", GONE)
    again(page, "amount-blocks", "12", GONE)
    again(page, "rule-protect-first", "15", GONE)
    fill(page, "rule-protect-first", "0")
    again(page, "rule-protect-last", "17", GONE)
    fill(page, "rule-protect-last", "0")
    ticked(page, "rule-no-neighbours", GONE)


def test_every_rule_for_neurons_changes_the_suggestion(page: Any) -> None:
    on_little_text(page, "Rules for neurons. ", 2)
    rules_of(page, "Neurons: L2 norms")
    again(page, "amount-expansion-ratio", "220", WORDS)
    picked(page, "rule-divisor", "128", WORDS)
    picked(page, "rule-divisor", "1", WORDS)
    for unit, amount in (("Width", "1000"), ("Percent", "12"), ("Parameters", "-11%")):
        changes(page, RULES, lambda unit=unit: choose(page, "suggest-unit", unit))
        again(page, {"Parameters": "amount-params"}.get(unit, f"amount-{unit.lower()}"), amount, WORDS)
    ticked(page, "rule-same-width", WORDS)
    page.locator("#rule-same-width input").click()
    picked(page, "rule-allocation", "By influence (CFSP)", WORDS)
    again(page, "rule-sharpness", "4", WORDS)


def test_every_rule_for_heads_changes_the_suggestion(page: Any) -> None:
    on_little_text(page, "Rules for heads. ", 2)
    rules_of(page, "Heads: Magnitude, heads")
    choose(page, "suggest-unit", "Number")
    again(page, "amount-heads", "6", WORDS)
    picked(page, "rule-unit", "Query heads", WORDS)
    page.click("#reset")
    changes(page, RULES, lambda: choose(page, "suggest-method", "KV heads: Merged KV heads, mean"))
    again(page, "amount-kv-heads", "1", WORDS)


def test_every_rule_for_a_search_changes_what_it_says(page: Any) -> None:
    on_little_text(page, "Rules for a search. ", 2)
    rules_of(page, "Blocks: Perplexity scan, step by step")
    fill(page, "rule-keep-candidates", "3")
    fill(page, "amount-blocks", "8")
    for _ in ("perplexity", "perplexity per parameter"):
        changes(page, MESSAGE, lambda: page.click("#suggest:not([disabled])"))
        wait_for_message(page, " of 3")
        page.click("#cancel:not([disabled])")
        wait_for_message(page, "was cancelled")
        page.locator("#rule-per-parameter input").click()  # how it gets to the core is tested without a browser


def test_every_compensation_changes_the_words(page: Any) -> None:
    on_little_text(page, "Every compensation. ", 2)
    tool(page, "Compensate")
    part(page, 9).click()
    for component, name in (("least-squares", "least squares"), ("linear-patch", "linear patch"), ("bias", "bias")):
        changes(page, WORDS, lambda component=component: page.locator(f"#{component} input").click())
        wait_measured(page, name)


def test_a_phone_has_room_for_the_tools(profile: Callable[..., Any]) -> None:
    page = opened(profile(viewport={"width": 390, "height": 844}, has_touch=True, is_mobile=True), "/?__theme=dark")
    page.locator("#more .label-wrap").tap()
    choose(page, "suggest-method", "Heads: Magnitude, heads")
    page.wait_for_selector("#rule-unit")
    for name in ("Suggest", "Compensate", "Heal", "Ship"):
        tool(page, name)
        page.wait_for_selector({"Suggest": "#suggest", "Compensate": "#bias", "Heal": "#heal", "Ship": "#build"}[name])
        assert page.evaluate("document.documentElement.scrollWidth") <= 390
        cut = page.evaluate(
            """() => [...document.querySelectorAll('#tools button, #tools .block')]
                 .filter(node => node.offsetParent && node.scrollWidth > node.clientWidth + 1).map(node => node.id)"""
        )
        assert not cut, f"there is no room for {cut}"
