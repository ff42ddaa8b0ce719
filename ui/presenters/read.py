"""What the Read panel says: two answers beside each other, and where they part. Pure."""

from __future__ import annotations

from surgery.common.jobs import JobKind
from surgery.evaluation.generation import Answer
from surgery.session.view import View
from ui.presenters.text import Html, note

MOST_SHOWN = 120
"""Characters of the prompt that are repeated above the answers."""
EXAMPLE = "The capital of France is"


def answers_text(view: View) -> Html:
    """The answers, the words from the first difference on marked."""
    reading = view.read
    if reading is None:
        return note("The same prompt, answered by the dense and by the cut model, with the same draws.")
    dense, cut = reading.dense, reading.cut
    current = view.history is not None and view.history.current.key == reading.recipe
    old = Html() if current else note("The recipe has changed since: read again for the answer of the model in force.")
    columns = _column("Dense", dense, len(dense.text))
    if cut is None:
        words = "Nothing is cut, so there is one answer only."
    else:
        same = common(dense.text, cut.text)
        columns += _column("Cut", cut, same, current)
        words = "Underlined: from where the cut model says something else." if same < len(cut.text) else ""
    drawn = "the likeliest token each time" if reading.sampling.temperature == 0 else f"seed {reading.sampling.seed}"
    writing = "true" if view.working and view.job is not None and view.job.kind is JobKind.READ else "false"
    asked = f"Asked: “{_shortened(reading.prompt)}”." + (f" Cut: {reading.words}." if cut is not None else "")
    answers = Html('<div class="ms-answers" aria-live="polite" aria-busy="{}">{}</div>').format(writing, columns)
    return old + note(asked) + answers + note(f"{words} Drawn: {drawn}.".strip())


def _shortened(prompt: str) -> str:
    return prompt if len(prompt) <= MOST_SHOWN else prompt[: MOST_SHOWN - 1] + "…"


def common(first: str, second: str) -> int:
    """Characters at the start of the second text that the first one has too, whole words only."""
    same = 0
    while same < min(len(first), len(second)) and first[same] == second[same]:
        same += 1
    if same == len(second):
        return same
    return second.rfind(" ", 0, same + 1) + 1


def _column(title: str, answer: Answer, same: int, current: bool = True) -> Html:
    kept, other = answer.text[:same], answer.text[same:]
    marked = Html("<ins>{}</ins>").format(other) if other else ""
    state = "ended by itself" if answer.ended else f"{answer.tokens} tokens"
    measured = f"{state}, {answer.speed:.1f} tokens/s, measured" if answer.seconds else "nothing written yet"
    return Html(
        '<section class="ms-answer" data-answer="{}" data-state="{}"><h4>{}</h4><p>{}{}</p>'
        '<p class="ms-tile-kind">{}</p></section>'
    ).format(title.lower(), "current" if current else "stale", title, kept, marked, measured)
