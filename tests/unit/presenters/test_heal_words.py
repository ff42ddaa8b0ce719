"""What the Heal panel says."""

from __future__ import annotations

from dataclasses import replace

from surgery.session.heal import HealView
from surgery.session.session import Session
from surgery.training.trainer import Outcome, Progress
from ui.presenters import heal as heal_words


def test_the_words_follow_the_training(session: Session) -> None:
    view = session.view()
    assert "Nothing is cut" in heal_words.words(view) and not heal_words.cut(view)
    session.edit.switch([1], [], [])
    view = session.view()
    assert heal_words.cut(view) and "Ask first" in heal_words.words(view)
    progress = Progress(3, 24, 3.7381, 40.1, 42.07, 108.4, 130.0, 2 * 2**30, ())
    shown = heal_words.words(replace(view, heal=HealView(progress)))
    assert "Step 3 of 24: loss 3.738, held-out perplexity 42.07 → 40.10, 108 tokens a second" in shown
    outcome = Outcome("cancelled", 3, 2, 42.07, 39.5, 108.4, 30.0, ())
    said = heal_words.words(replace(view, heal=HealView(progress, outcome=outcome)))
    assert "Healed in 3 steps: held-out perplexity 42.07 → 39.50 (best at step 2)." in said
    assert heal_words.time_left(45) == "45 s"
