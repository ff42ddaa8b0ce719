"""The guided operation of a first visit: its steps in words, and its card as HTML. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from ui.presenters.text import Html


@dataclass(frozen=True)
class Step:
    """One step. `control` is the selector of what it is about, and `done` matches once the person has done it; None
    where only the person knows."""

    title: str
    words: str
    control: str
    done: str | None = None


STEPS = (
    Step(
        "Analyse the model",
        "Press Analyse. It reads a sample text once, in some seconds, and measures the influence of each attention and "
        "MLP: how much it changes what passes through.",
        "#analyse",
        "#map [data-analysed='true']",
    ),
    Step(
        "Switch a weak block off",
        "Point at a tile, and the line below the map says its influence. Find a block with little influence, shown "
        "pale, near the middle, and click its number: the whole block goes. One more click brings it back.",
        "#map-card",
        "#map button[data-state='removed']",
    ),
    Step(
        "Read what it costs",
        "Perplexity says how well the model predicts a text, and lower is better: below it stands the dense model's. "
        "The tile of the device says whether the model fits. Grey numbers are still being measured.",
        "#tiles",
    ),
    Step(
        "Compare",
        "Press Undo: the number before is back at once. Then Redo brings your cut back. Try other blocks in the same "
        "way; nothing you do here changes the model itself.",
        "#undo",
        "#redo:not([disabled])",
    ),
    Step(
        "Repair it, or take it away",
        "Open Heal: training for two minutes wins a part of the loss back. Open Ship: files for llama.cpp and for "
        "transformers. Export recipe keeps the cut for another day.",
        "#tools",
        "#tools [role='tab'][aria-selected='true']:is([id^='tool-heal'], [id^='tool-ship'])",
    ),
)
END = Step(
    "That was the whole operation",
    "The Guide button at the top shows it again. Next: let Suggest choose what goes, or open your own model.",
    "#tools",
)
BUTTON = Html('<button type="button" id="guide-open" aria-controls="guide-card" aria-expanded="false">Guide</button>')
"""Opens the guide again; it belongs into the page's header."""


def card() -> Html:
    """The card, hidden until its script knows whether this is a first visit. All steps stand in one place, so that the
    page below never moves from step to step."""
    return Html(
        '<section class="ms-guide" id="guide-card" aria-label="Guided operation" hidden>'
        '<div class="ms-guide-steps" aria-live="polite">{}</div>'
        '<div class="ms-guide-buttons">'
        '<button type="button" id="guide-show">Show me</button>'
        '<button type="button" id="guide-back">Back</button>'
        '<button type="button" id="guide-next">Next</button>'
        '<button type="button" id="guide-skip">Skip the guide</button>'
        "</div></section>"
    ).format(Html().join(_step(number, step) for number, step in enumerate((*STEPS, END))))


def _step(number: int, step: Step) -> Html:
    done = "" if step.done is None else Html(' data-done="{}"').format(step.done)
    place = f"Step {number + 1} of {len(STEPS)}: " if number < len(STEPS) else ""
    whole = Html('<div class="ms-guide-step" data-control="{}"{}><h2>{}{}</h2><p>{}</p></div>')
    return whole.format(step.control, done, place, step.title, step.words)
