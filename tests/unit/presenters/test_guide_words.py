"""The guide's words and card."""

from __future__ import annotations

import re

from ui.presenters import guide as guide_words
from ui.presenters.guide import END, STEPS


def test_the_steps_are_few_and_said_in_some_lines() -> None:
    assert 4 <= len(STEPS) <= 5
    for step in (*STEPS, END):
        assert step.title and not step.title.endswith(".") and step.words.endswith(".")
        assert len(step.words) <= 240, "the card stands above the page, and must stay low"


def test_the_card_starts_hidden_and_holds_every_step_once() -> None:
    card = guide_words.card()
    assert 'id="guide-card" aria-label="Guided operation" hidden' in card
    assert card.count('class="ms-guide-step"') == len(STEPS) + 1
    assert card.count("data-done=") == sum(step.done is not None for step in STEPS)
    titles = re.findall(r"<h2>(.*?)</h2>", card)
    assert titles == [f"Step {n} of {len(STEPS)}: {step.title}" for n, step in enumerate(STEPS, 1)] + [END.title]


def test_nothing_in_the_card_is_a_template_for_gradio() -> None:
    assert not re.search(r"[${}`]", guide_words.card())
