"""The page on the real embedded model, worked as a person works it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.crowding import slowed
from tests.interface.driving import (
    DENSE,
    LONG_TEXT,
    ROOT,
    WINDOWS,
    analyse,
    changes,
    choose,
    export,
    opened,
    part,
    paste_text,
    ratio,
    removed,
    set_ratio,
    settings,
    text_of,
    tile,
    upload,
    upload_text,
    value,
    wait_for_message,
    wait_measured,
)
from tests.interface.test_tools import on_little_text

pytestmark = pytest.mark.slow


def test_analyse_remove_narrow_export_reset_import_and_the_command_line(page: Any, tmp_path: Path) -> None:
    dense = value(page)
    assert "measured on 255 tokens" in tile(page, "perplexity")
    analyse(page)
    page.wait_for_selector("#chart-blocks .js-plotly-plot")
    part(page, 13).click()
    one_less = wait_measured(page, "29 blocks kept, 1 removed")
    assert one_less != dense and "97.4% of 134.5 M" in tile(page, "parameters")
    set_ratio(page, 200)
    narrow = wait_measured(page, "expansion ratio 200.0%, neurons chosen by CFSP fine-grained.")
    assert narrow not in (dense, one_less)

    recipe = tmp_path / "recipe.json"
    document = export(page, recipe)
    assert [edit["op"] for edit in document["edits"]] == ["remove_blocks", "prune_neurons"]
    assert f"{document['results']['perplexity']:.3f}" == narrow

    page.click("#reset")
    assert wait_measured(page, DENSE) == dense and ratio(page) == 267 and removed(page) == []
    upload(page, "import", recipe)
    assert wait_measured(page, "29 blocks kept, 1 removed; expansion ratio 200.0%") == narrow
    assert ratio(page) == 200 and removed(page) == [(13, "attention"), (13, "block"), (13, "mlp")]

    arguments = ["--text", "embedded", "--window", "256", "--windows", "1", "--json"]
    done = subprocess.run(
        [sys.executable, "-m", "surgery", "evaluate", "default", "--recipe", str(recipe), *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert f"{json.loads(done.stdout)['perplexity']:.3f}" == narrow


def test_undo_and_redo_bring_numbers_map_and_slider_back(page: Any) -> None:
    numbers = [value(page)]
    choose(page, "method", "Maximum absolute weight (MAW)")
    part(page, 12, "attention").click()
    numbers.append(wait_measured(page, "1 attention part removed"))
    set_ratio(page, 220)
    numbers.append(wait_measured(page, "neurons chosen by Maximum absolute weight"))
    part(page, 12, "attention").click()
    numbers.append(wait_measured(page, "30 blocks kept, 0 removed; expansion ratio 220.0%"))
    assert len(set(numbers)) == 4
    page.click("#undo")
    assert wait_measured(page, "1 attention part removed") == numbers[2]
    assert removed(page) == [(12, "attention")] and ratio(page) == 220
    page.click("#undo")
    assert wait_measured(page, "expansion ratio 266.7%") == numbers[1] and ratio(page) == 267
    page.click("#undo")
    assert wait_measured(page, DENSE) == numbers[0]
    assert page.locator("#undo").is_disabled() and removed(page) == []
    for number, words in zip(
        numbers[1:], ("1 attention part", "220.0%", "0 removed; expansion ratio 220.0%"), strict=True
    ):
        page.click("#redo")
        assert wait_measured(page, words) == number
    assert page.locator("#redo").is_disabled()
    set_ratio(page, 267)
    assert wait_measured(page, DENSE) == numbers[0], "at the maximum nothing is narrowed"


def test_the_keyboard_alone_is_enough(page: Any) -> None:
    dense = value(page)
    here = "(() => { const e = document.activeElement; return e.id || e.closest('[id]')?.id || e.tagName; })()"
    ring = "(() => { const s = getComputedStyle(document.activeElement); return s.outlineStyle + s.boxShadow; })()"

    def tab_to(wanted: Callable[[str], bool], key: str = "Tab") -> str:
        for _ in range(60):
            page.keyboard.press(key)
            found = page.evaluate(here)
            if wanted(found):
                assert page.evaluate(ring) != "nonenone", f"the focus on {found} is not visible"
                return found
        raise AssertionError("the Tab key does not get there")

    for wanted in ("setup", "analyse", "export"):
        tab_to(lambda found, wanted=wanted: found == wanted)
    tab_to(lambda _: page.evaluate("!!document.activeElement.closest('#map')"))
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowDown")
    page.keyboard.press("Space")
    page.wait_for_selector('#map button[data-state="removed"]')
    [gone] = removed(page)
    assert gone == (1, "mlp")
    changed = wait_measured(page, "1 MLP removed")
    assert changed != dense
    assert page.evaluate("document.activeElement.dataset.block") == "1", "the focus stays on the tile"
    tab_to(lambda found: found == "undo", "Shift+Tab")
    page.keyboard.press("Enter")
    assert wait_measured(page, DENSE) == dense
    choose(page, "method", "Maximum absolute weight (MAW)")
    page.locator("#ratio input[type=range]").focus()
    for _ in range(7):
        page.keyboard.press("ArrowLeft")
    wait_measured(page, "expansion ratio 260.1%")
    page.get_by_role("tab", name="Block influence", exact=True).focus()
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    page.wait_for_selector('[role=tab][aria-selected=true]:has-text("Attention and MLP")')


def test_twenty_fast_clicks_lose_none(page: Any, tmp_path: Path) -> None:
    blocks = list(range(4, 24))
    for block in blocks:
        part(page, block, "attention").click()
    assert removed(page) == [(block, "attention") for block in blocks]
    shown = wait_measured(page, "20 attention parts removed")
    assert removed(page) == [(block, "attention") for block in blocks]
    document = export(page, tmp_path / "recipe.json")
    assert document["edits"] == [{"op": "remove_attention", "blocks": "4-23"}]
    assert f"{document['results']['perplexity']:,.3f}" == shown or document["results"]["perplexity"] >= 1e6


def test_a_drag_over_the_map_is_one_step(page: Any) -> None:
    start, end = part(page, 20, "mlp").bounding_box(), part(page, 23, "mlp").bounding_box()
    page.mouse.move(start["x"] + 5, start["y"] + 10)
    page.mouse.down()
    page.mouse.move(end["x"] + 5, end["y"] + 10, steps=6)
    page.mouse.up()
    wait_measured(page, "4 MLPs removed")
    page.click("#undo")
    wait_measured(page, DENSE)


def test_an_analysis_can_be_cancelled_and_started_again(page: Any) -> None:
    settings(page)
    paste_text(page, "Cancelled. " + LONG_TEXT, 256, WINDOWS)
    page.wait_for_selector("#chart-note .ms-empty")
    assert "press Analyse" in page.inner_text("#chart-note .ms-empty")
    for _ in range(2):
        page.click("#analyse")
        page.wait_for_selector("#status [role=progressbar]")
        page.wait_for_selector("#cancel:not([disabled])")
        begun = time.monotonic()
        page.click("#cancel")
        wait_for_message(page, "Analysing was cancelled")
        took = time.monotonic() - begun
        assert took < 3 * slowed(), "a second, and some more for busy cores"
        page.wait_for_selector("#analyse:not([disabled])")
        page.wait_for_selector("#cancel[disabled]", state="attached")
    paste_text(page, "Short. " + LONG_TEXT, 64, 2)
    page.wait_for_selector("#status [data-state=ready]")
    analyse(page)


def test_the_slider_starts_an_analysis_where_the_method_needs_one(page: Any) -> None:
    settings(page)
    paste_text(page, "Narrowed. " + LONG_TEXT, 64, 3)
    page.wait_for_selector("#map [data-block-map][data-analysed=false]")
    set_ratio(page, 180)
    wait_measured(page, "expansion ratio 180.0%, neurons chosen by CFSP fine-grained.")
    assert ratio(page) == 180
    page.wait_for_selector("#map [data-block-map][data-analysed=true]")
    choose(page, "divisor", "128")
    wait_measured(page, "expansion ratio 177.8%")
    assert ratio(page) == 180, "what was asked for"
    choose(page, "method", "L2 norms")
    wait_measured(page, "neurons chosen by L2 norms")


CONTRAST = """selector => {
  const parse = colour => colour.match(/[\\d.]+/g).map(Number);
  const light = ([r, g, b]) => [r, g, b].map(v => v / 255)
    .map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
    .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
  const node = document.querySelector(selector);
  let behind = node;
  while (behind && (parse(getComputedStyle(behind).backgroundColor)[3] ?? 1) === 0) behind = behind.parentElement;
  const a = light(parse(getComputedStyle(node).color)), b = light(parse(getComputedStyle(behind).backgroundColor));
  return (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
}"""


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1280])
def test_it_is_legible_and_fits_the_screen(profile: Callable[..., Any], theme: str, width: int) -> None:
    phone = {"has_touch": True, "is_mobile": True} if width == 390 else {}
    page = opened(profile(viewport={"width": width, "height": 844}, **phone), f"/?__theme={theme}")
    assert page.evaluate("document.body.classList.contains('dark')") == (theme == "dark")

    def fits() -> None:
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        assert page.evaluate("innerWidth") == width, "a phone does not zoom out"

    fits()
    for selector in (".ms-tile-value", ".ms-tile-kind", ".ms-tile-detail", ".ms-model", ".ms-message", ".ms-removed",
                     ".ms-head p", "#analyse", "#export", "#map .bm-number"):  # fmt: skip
        assert page.evaluate(CONTRAST, selector) >= 4.5, f"{selector} is hard to read"
    settings(page)
    page.get_by_role("button", name="Memory on the device, itemised, and what fits").click()
    page.wait_for_selector("#fit-table tr", state="visible")
    fits()
    tapped = part(page, 14, "mlp")
    tapped.tap() if phone else tapped.click()
    wait_measured(page, "1 MLP removed")
    fits()


def test_a_remembered_recipe_of_other_weights_is_left_out(profile: Callable[..., Any]) -> None:
    context = profile()
    kept = {
        "source": "default",
        "recipe": {
            "schema": "model-surgery/recipe/1",
            "model": {"id": "default", "fingerprint": "0123456789abcdef"},
            "edits": [{"op": "remove_blocks", "blocks": "1"}],
        },
        "job": "nobody",
    }
    script = f"sessionStorage.setItem('model-surgery', {json.dumps(json.dumps(kept))});"
    context.add_init_script(f"if (location.hostname) {script}")  # a blank page has no storage
    page = opened(context)
    assert "left out" in wait_for_message(page, "other weights") and removed(page) == []


def _recipe(*edits: dict[str, Any], **changes: Any) -> str:
    document = {"schema": "model-surgery/recipe/1", "model": {"id": "default"}, "edits": list(edits)} | changes
    return json.dumps(document)


BAD_RECIPES = {
    "malformed": ("{", "not valid JSON"),
    "another document": ("[1, 2]", "not valid at"),
    "another schema": (_recipe(schema="mergekit"), "schema"),
    "other weights": (_recipe(model={"id": "x", "fingerprint": "0123456789abcdef"}), "other weights"),
    "out of range": (_recipe({"op": "remove_blocks", "blocks": "99"}), "out of range"),
    "everything": (_recipe({"op": "remove_blocks", "blocks": "0-29"}), "every block"),
    "unknown op": (_recipe({"op": "<img src=x onerror=alert(1)>"}), "unknown op"),
    "too many": (_recipe({"op": "remove_blocks", "blocks": "0-1048575"}), "range"),
    "deep": ("[" * 100_000, "not valid JSON"),
    "huge": (" " * (9 * 2**20), "larger than"),
    "template": (_recipe(**{"${alert(1)}{{x}}": 1}), "unknown key"),
}


@pytest.fixture
def refused(page: Any) -> Callable[[str], str]:
    """On a page with one block removed: what was done last is refused in these words, and has changed nothing."""
    part(page, 9).click()
    number = wait_measured(page, "29 blocks kept, 1 removed")

    def refused(words: str) -> str:
        message = wait_for_message(page, words)
        assert "Traceback" not in message and "\n" not in message
        # An answer that was computed before may come after it; what is shown then is sent again.
        page.wait_for_function("document.querySelectorAll('#status [role=alert]').length === 1")
        assert wait_measured(page, "29 blocks kept, 1 removed") == number
        # The next thing that works makes the error go away.
        page.click("#undo")
        page.wait_for_selector("#status [role=alert]", state="detached")
        wait_measured(page, DENSE)
        page.click("#redo")
        wait_measured(page, "29 blocks kept, 1 removed")
        return message

    return refused


def test_a_bad_recipe_is_one_sentence_and_changes_nothing(
    page: Any, refused: Callable[[str], str], tmp_path: Path
) -> None:
    said: set[str] = set()
    for name, (text, words) in BAD_RECIPES.items():
        path = tmp_path / f"{name}.json"
        path.write_text(text)
        upload(page, "import", path)
        said.add(refused(words))
    assert len(said) >= len(BAD_RECIPES) - 1


def test_a_bad_model_or_text_is_one_sentence_and_changes_nothing(
    page: Any, refused: Callable[[str], str], tmp_path: Path
) -> None:
    settings(page)
    page.fill("#model input, #model textarea", "nobody/nothing-of-the-kind")
    page.press("#model input, #model textarea", "Tab")  # the field's value is taken over when it loses the focus
    page.click("#open")
    refused("not in the local cache")
    page.fill("#model input, #model textarea", "")
    page.click("#open")
    refused("Name a model")
    page.fill("#model input, #model textarea", "default")
    paste_text(page, "  ", 256, 4)
    refused("Paste some text first")
    paste_text(page, "Too short.", 256, 4)
    refused("give a longer text")
    paste_text(page, LONG_TEXT, 256, 100_000)
    refused("at most 131,072 tokens")
    page.locator("#windows input").fill("4")
    choose(page, "text", "Uploaded file")
    page.click("#use-text")
    refused("Upload a text file first")
    binary = tmp_path / "picture.txt"
    binary.write_bytes(bytes(range(256)) * 20)
    upload_text(page, "upload", binary)
    page.click("#use-text")
    refused("not UTF-8 text")


def test_a_bad_device_is_one_sentence_and_changes_nothing(
    page: Any, refused: Callable[[str], str], tmp_path: Path
) -> None:
    settings(page)
    device = tmp_path / "device.json"
    for text in ("{", '{"schema": "model-surgery/device/1", "id": "<b>"}'):
        device.write_text(text)
        upload(page, "own-device", device)
        refused("not a device file")
    page.locator("#context input").fill("0")
    refused("context")


FIT, MEMORY, PERPLEXITY = (text_of(f"[data-tile={name}]") for name in ("fit", "memory", "perplexity"))
WORDS, MESSAGE, STATUS = (
    text_of(selector) for selector in ("#removed .ms-removed", "#status .ms-message", "#status .ms-status")
)


def number(page: Any, component: str, text: str) -> None:
    page.locator(f"#{component} input").fill(text)


def test_the_device_and_the_types_change_what_fits(page: Any, tmp_path: Path) -> None:
    settings(page)
    changes(page, FIT, lambda: choose(page, "device", "Raspberry Pi 4, 4 GB"))
    changes(page, MEMORY, lambda: choose(page, "type", "Q8_0"))
    changes(page, FIT, lambda: number(page, "context", "8192"))
    changes(page, FIT, lambda: choose(page, "kv-type", "Q8_0"))
    mine = json.loads((ROOT / "presets" / "devices" / "raspberry-pi-5-8gb.json").read_text())
    device = tmp_path / "mine.json"
    device.write_text(json.dumps(mine | {"id": "mine", "name": "My own board"}))
    changes(page, FIT, lambda: upload(page, "own-device", device))
    assert "My own board" in tile(page, "fit")
    page.get_by_role("button", name="Memory on the device, itemised, and what fits").click()
    page.wait_for_selector("#fit-table tr", state="visible")


def test_another_text_changes_the_perplexity(page: Any, tmp_path: Path) -> None:
    settings(page)

    def on_fewer() -> None:
        number(page, "window", "128")
        number(page, "windows", "3")
        page.click("#use-text")

    changes(page, PERPLEXITY, on_fewer)
    page.wait_for_function("document.querySelector('[data-tile=perplexity]').innerText.includes('381 tokens')")
    choose(page, "text", "Pasted text")
    page.wait_for_selector("#pasted textarea")
    choose(page, "text", "Uploaded file")
    page.wait_for_selector("#upload", state="visible")
    mine = tmp_path / "mine.txt"
    mine.write_text(LONG_TEXT[:5000])
    upload_text(page, "upload", mine)
    number(page, "window", "64")
    changes(page, PERPLEXITY, lambda: page.click("#use-text"))
    page.wait_for_function("document.querySelector('[data-tile=perplexity]').innerText.includes('189 tokens')")


def test_every_edit_changes_the_recipe(page: Any, tmp_path: Path) -> None:
    on_little_text(page, "Every edit. ")
    changes(page, STATUS, lambda: analyse(page))
    changes(page, WORDS, lambda: part(page, 6).click())
    changes(page, WORDS, lambda: set_ratio(page, 150))
    wait_measured(page, "expansion ratio 150.0%")
    changes(page, WORDS, lambda: choose(page, "method", "Variance of weights (VOW)"))
    changes(page, WORDS, lambda: choose(page, "divisor", "128"))
    changes(page, WORDS, lambda: page.click("#undo"))
    changes(page, WORDS, lambda: page.click("#redo"))
    wait_measured(page)
    recipe = tmp_path / "recipe.json"
    assert export(page, recipe)["edits"]
    changes(page, WORDS, lambda: page.click("#reset"))
    changes(page, WORDS, lambda: upload(page, "import", recipe))


def test_every_chart_is_drawn_and_changed(page: Any) -> None:
    on_little_text(page, "Every chart. ")
    analyse(page)
    for name, title in (("sublayers", "Attention and MLP"), ("runs", "Runs of blocks"), ("neurons", "Neurons"),
                        ("heads", "Heads"), ("blocks", "Block influence")):  # fmt: skip
        page.get_by_role("tab", name=title, exact=True).click()
        page.wait_for_selector(f"#chart-{name} .js-plotly-plot", state="visible")
    page.get_by_role("tab", name="Neurons", exact=True).click()
    title = text_of("#chart-neurons .gtitle")
    changes(page, title, lambda: choose(page, "neuron-method", "Wanda, structured"))
    page.get_by_role("tab", name="Heads", exact=True).click()
    changes(page, text_of("#chart-heads .gtitle"), lambda: choose(page, "head-statistic", "Output norm"))
    page.click("#chart-note summary")
    page.wait_for_function("document.querySelector('#chart-note tbody')?.rows.length === 9")  # query heads
    assert page.locator("#chart-note tbody").is_visible()


def test_another_model_is_refused_and_the_first_one_is_opened_again(page: Any) -> None:
    settings(page)
    page.locator("#revision input, #revision textarea").fill("main")
    page.fill("#model input, #model textarea", "nobody/nothing")
    changes(page, MESSAGE, lambda: page.click("#open"))
    wait_for_message(page, "not in the local cache")
    changes(page, MESSAGE, lambda: (page.fill("#model input, #model textarea", "default"),
                                    page.fill("#revision input, #revision textarea", ""),
                                    page.click("#open")))  # fmt: skip
    wait_measured(page, DENSE)


@pytest.mark.skipif(os.environ.get("MODEL_SURGERY_SCREENSHOTS") != "1", reason="MODEL_SURGERY_SCREENSHOTS is not 1")
def test_the_screenshot_of_the_readme(profile: Callable[..., Any]) -> None:
    page = opened(profile(viewport={"width": 1280, "height": 1080}), "/?__theme=light")
    page.click("#guide-skip")
    analyse(page)
    for block, kind in ((13, "block"), (14, "block"), (5, "attention"), (7, "attention")):
        part(page, block, kind).click()
    wait_measured(page, "28 blocks kept, 2 removed; 2 attention parts removed")
    set_ratio(page, 230)
    wait_measured(page, "expansion ratio 230.0%")
    page.get_by_role("tab", name="Attention and MLP", exact=True).click()
    page.wait_for_selector("#chart-sublayers .js-plotly-plot .scatterlayer")
    page.locator("h1").hover()
    path = ROOT / "docs" / "screenshot.png"
    path.parent.mkdir(exist_ok=True)
    page.screenshot(path=path, full_page=True)
    assert path.stat().st_size < 500_000
