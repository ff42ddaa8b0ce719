"""The guided operation of a first visit: led through on the real page, by hand and by keyboard."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from tests.interface.driving import analyse, opened, part, tool, wait_measured
from ui.presenters.guide import STEPS

pytestmark = pytest.mark.slow


def at(page: Any, title: str) -> None:
    """Until the card shows the step of that title."""
    page.wait_for_function(
        "title => document.querySelector('.ms-guide-here h2')?.innerText.endsWith(title)"
        " && !document.querySelector('#guide-card').hidden",
        arg=title,
    )


def marked(page: Any) -> list[str]:
    return page.locator("[data-guided]").evaluate_all("nodes => nodes.map(node => node.id)")


def top_of(page: Any, selector: str) -> float:
    return page.evaluate("s => document.querySelector(s).getBoundingClientRect().top + scrollY", selector)


def test_a_first_visit_is_led_through_an_operation(profile: Callable[..., Any]) -> None:
    context = profile()
    page = opened(context)
    at(page, STEPS[0].title)
    assert marked(page) == ["analyse"] and page.locator("#guide-back").is_disabled()
    if page.locator("#map [data-analysed=true]").count():  # another user of this server has had it analysed
        page.click("#guide-next")
    else:
        analyse(page)
    at(page, STEPS[1].title)
    assert marked(page) == ["map-card"]
    before = top_of(page, "#map")
    part(page, 13).click()
    at(page, STEPS[2].title)
    assert marked(page) == ["tiles"] and top_of(page, "#map") == before, "the page below the card does not move"
    wait_measured(page, "29 blocks kept")
    page.click("#guide-next")
    at(page, STEPS[3].title)
    page.click("#undo")
    at(page, STEPS[4].title)
    page.reload()  # it goes on where the person was
    at(page, STEPS[4].title)
    page.wait_for_selector("#map button[data-block]")
    tool(page, "Heal")
    at(page, "That was the whole operation")
    assert page.locator("#guide-next").is_disabled()
    page.click("#guide-back")
    at(page, STEPS[4].title)
    page.click("#guide-next")
    page.click("#guide-skip")
    page.wait_for_selector("#guide-card", state="hidden")
    assert marked(page) == []
    again = opened(context)
    assert not again.locator("#guide-card").is_visible(), "only a first visit is guided"
    again.click("#guide-open")
    at(again, STEPS[0].title)


def test_every_step_has_its_control_and_the_keyboard_is_enough(page: Any) -> None:
    for step in STEPS:
        at(page, step.title)
        assert page.locator(step.control).count() == 1
        page.locator("#guide-show").focus()
        page.keyboard.press("Enter")
        page.wait_for_function(
            "s => document.querySelector(s).getBoundingClientRect().top < innerHeight", arg=step.control
        )
        page.locator("#guide-next").focus()
        page.keyboard.press("Enter")
    page.locator("#guide-back").focus()
    page.keyboard.press("Escape")
    page.wait_for_selector("#guide-card", state="hidden")
    assert page.evaluate("document.activeElement.id") == "guide-open", "the focus goes where the guide can be opened"
    page.keyboard.press("Enter")
    at(page, STEPS[0].title)
    assert page.evaluate("document.activeElement.id") == "guide-show"


@pytest.mark.parametrize("width", [390, 1280])
def test_the_card_is_in_the_flow_and_covers_nothing(profile: Callable[..., Any], width: int) -> None:
    page = opened(profile(viewport={"width": width, "height": 844}, reduced_motion="reduce"))
    at(page, STEPS[0].title)
    for _ in STEPS:
        covered = page.evaluate(
            """() => {
              const card = document.querySelector('#guide-card').getBoundingClientRect();
              return [...document.querySelectorAll('main .block, main button')]
                .filter(node => !node.closest('#guide') && !node.contains(document.querySelector('#guide')))
                .filter(node => node.offsetParent && node.getBoundingClientRect().height)
                .map(node => [node.id, node.getBoundingClientRect()])
                .filter(([_, box]) => box.top < card.bottom - 1 && box.bottom > card.top + 1)
                .map(([name]) => name);
            }"""
        )
        assert covered == []
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        page.click("#guide-next")
