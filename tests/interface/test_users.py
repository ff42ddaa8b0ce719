"""Many users on one server: nobody disturbs anybody, jobs survive a reload, closed tabs are freed, nothing is run."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from benchmarks.sessions import wait_until
from surgery.workbench import workbench
from surgery.workbench.workbench import Workbench
from tests.interface.driving import (
    DENSE,
    LONG_TEXT,
    PROGRESS,
    WINDOWS,
    heal_words,
    opened,
    part,
    paste_text,
    removed,
    settings,
    tool,
    value,
    wait_analysed,
    wait_for_message,
    wait_for_words,
    wait_measured,
)
from tests.interface.serving import served
from tests.tiny_workbench import loaded
from ui.tabs import Sessions

pytestmark = pytest.mark.slow


def long_analysis(page: Any, name: str, windows: int = WINDOWS) -> None:
    """Start an analysis that takes some seconds, on a text that nobody has analysed."""
    settings(page)
    paste_text(page, f"{name}. {LONG_TEXT}", 256, windows)
    page.wait_for_selector("#map [data-block-map][data-analysed=false]")
    page.click("#analyse")
    page.wait_for_selector(PROGRESS)


def cancel(page: Any) -> None:
    page.click("#cancel:not([disabled])")
    page.wait_for_selector(PROGRESS, state="detached")


def test_two_people_and_two_tabs_do_not_mix(profile: Callable[..., Any]) -> None:
    first, other = profile(), profile()
    one, two, stranger = opened(first), opened(first), opened(other)
    part(one, 3).click()
    wait_measured(one, "29 blocks kept, 1 removed")
    part(two, 7, "mlp").click()
    wait_measured(two, "30 blocks kept, 0 removed; 1 MLP removed")
    assert removed(stranger) == [] and value(stranger) != value(one)
    for page, words, shown in ((one, "29 blocks kept", 3), (two, "1 MLP removed", 1), (stranger, DENSE, 0)):
        page.reload()
        wait_measured(page, words)
        assert len(removed(page)) == shown
    again = opened(first)
    assert len(removed(again)) in (1, 3), "a new tab goes on with what was done last"


def test_the_job_of_one_is_not_the_job_of_another_and_waits_its_turn(profile: Callable[..., Any]) -> None:
    one, two, third = (opened(profile()) for _ in range(3))
    long_analysis(one, "First in the queue", 60)  # of the 69 that the text has
    long_analysis(two, "Second in the queue")
    assert "waiting, 1 before it" in wait_for_message(two, "waiting")
    assert third.locator(PROGRESS).count() == 0 and third.locator("#cancel").is_disabled()
    part(third, 8).click()
    wait_measured(third, "29 blocks kept, 1 removed")  # a click does not wait for other people's jobs
    assert one.locator(PROGRESS).count() == 1 and "waiting" in two.locator("#status .ms-message").inner_text()
    cancel(one)
    assert "Analysing was cancelled" in wait_for_message(one, "cancelled")
    wait_analysed(two)  # it was not cancelled with the other
    assert removed(one) == removed(two) == []
    one.wait_for_selector("#map [data-block-map][data-analysed=false]")


def test_a_reload_in_the_middle_of_an_analysis_goes_on_with_it(page: Any) -> None:
    part(page, 5).click()
    edited = wait_measured(page, "29 blocks kept")
    long_analysis(page, "Reloaded")
    page.reload()
    page.wait_for_selector(PROGRESS)
    wait_for_words(page, "29 blocks kept, 1 removed")
    assert removed(page) == [(5, "attention"), (5, "block"), (5, "mlp")]
    wait_analysed(page)
    page.wait_for_selector("#chart-blocks .js-plotly-plot")
    assert wait_measured(page) == edited, "the reloaded page measures on the embedded text again"


def test_an_analysis_can_be_cancelled_after_a_reload(page: Any) -> None:
    long_analysis(page, "Reloaded and cancelled", 24)
    page.reload()
    page.wait_for_selector(PROGRESS)
    cancel(page)
    wait_for_message(page, "Analysing was cancelled")
    page.wait_for_selector("#analyse:not([disabled])")


def test_a_healing_is_followed_and_cancelled_after_a_reload(page: Any) -> None:
    part(page, 12).click()
    cut = wait_measured(page, "29 blocks kept")
    tool(page, "Heal")
    page.click("#heal:not([disabled])")
    heal_words(page, "Step 2 of")
    page.reload()
    page.wait_for_selector(PROGRESS)
    wait_for_words(page, "29 blocks kept")
    tool(page, "Heal")
    heal_words(page, "Step ")
    page.click("#cancel:not([disabled])")
    heal_words(page, "Healed in")
    assert wait_measured(page) != cut and removed(page) == [(12, "attention"), (12, "block"), (12, "mlp")]


def test_a_closed_tab_is_freed(browser: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workbench, "load", lambda source, *rest: loaded(name=source))
    sessions = Sessions(Workbench(), grace=0.5)
    with served(sessions) as address:
        contexts = [browser.new_context() for _ in range(3)]
        pages = [context.new_page() for context in contexts]
        for number, page in enumerate(pages, 1):
            page.goto(address)
            page.wait_for_selector("#map button[data-block]")
            assert len(sessions) == number
        for left, context in zip((2, 1, 0), contexts, strict=True):
            context.close()
            wait_until(lambda left=left: len(sessions) == left)
    sessions.bench.jobs.close()


HOSTILE = (
    "<img src=x onerror=window.hacked=1>",
    "${window.hacked=1}{{window.hacked=1}}`",
    "'\"><script>window.hacked=1</script>",
)


def test_what_is_typed_in_a_field_is_never_run(page: Any) -> None:
    def safe() -> None:
        assert page.evaluate("window.hacked") is None
        assert page.locator("main img[src=x], main script").count() == 0

    settings(page)
    for text in HOSTILE:
        page.fill("#model input, #model textarea", text)
        page.fill("#revision input, #revision textarea", text)
        page.press("#revision input, #revision textarea", "Enter")
        page.wait_for_selector("#status [role=alert]")
        safe()
        paste_text(page, text, 256, 4)
        wait_for_message(page, "give a longer text")
        safe()
        page.locator("#text input").fill(text)
        page.press("#text input", "Enter")
        page.click("#use-text")
        page.wait_for_function("!document.querySelector('#status .ms-message').innerText.includes('longer text')")
        page.wait_for_selector("#status [role=alert]")
        safe()
    assert removed(page) == [] and wait_measured(page, DENSE)


def test_what_the_browser_remembers_is_never_run(profile: Callable[..., Any]) -> None:
    context = profile()
    kept = json.dumps({"source": HOSTILE[0], "revision": HOSTILE[1], "recipe": {HOSTILE[2]: HOSTILE}, "job": HOSTILE})
    script = f"sessionStorage.setItem('model-surgery', {json.dumps(kept)});"
    context.add_init_script(f"if (location.hostname) {script}")  # a blank page has no storage
    page = context.new_page()
    page.goto("/")
    page.wait_for_selector("#status .ms-message")
    page.wait_for_selector("#status [role=alert], [data-tile=perplexity][data-state=current]")
    assert page.evaluate("window.hacked") is None and page.locator("main img[src=x]").count() == 0
