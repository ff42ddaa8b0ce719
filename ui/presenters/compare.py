"""What Compare shows: the steps, everything tried as a drawing, and two recipes beside each other. Pure."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from surgery.session.compare import Attempt, Tried
from surgery.session.view import View
from ui.presenters.text import Html, bytes_text, count_text, loss_text, note, notes, number_text, table

WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 380, 250, 46, 12, 12, 38
"""Of the drawing, and of its margins, in its own units."""
SPREAD = 3.0
"""Ratio of perplexities above which their axis is logarithmic."""
COUNTS: dict[str, Callable[[Attempt], int]] = {
    "Blocks": lambda one: len(one.structure.blocks),
    "Query heads": lambda one: sum(len(spec.query_heads) for spec in one.structure.blocks),
    "KV heads": lambda one: sum(one.structure.kv_heads),
    "MLP neurons": lambda one: sum(len(spec.neurons) for spec in one.structure.blocks),
}
"""Parts that stay, by their names."""
Row = tuple[str, str, str, str, str]
"""Title, A, B, their difference, and where the numbers come from."""


def steps(view: View) -> Html:
    """The history as a list of buttons, with perplexity and file size where they are known."""
    if view.history is None:
        return Html()
    rows = []
    for place, recipe in enumerate(view.history.recipes):
        attempt = view.compare.of(recipe.key)
        current = place == view.history.position
        words = "Dense model" if not recipe.edits else attempt.words if attempt else "not measured on this text"
        numbers = f"{_perplexity(attempt)}, {bytes_text(attempt.fit.weights_bytes)}" if attempt else ""
        mark = Html(' aria-current="step"') if current else ""
        button = Html('<li><button type="button" data-key="{}"{}><span>{}. {}</span><b>{}</b></button></li>')
        rows.append(button.format(recipe.key, mark, place, words, numbers))
    return Html('<ol class="ms-steps" aria-label="Steps of this session">{}</ol>').format(Html().join(rows))


def _perplexity(attempt: Attempt) -> str:
    return f"perplexity {number_text(attempt.estimate.perplexity)}"


def drawing(view: View) -> Html:
    """Size against perplexity of everything tried; points are chosen like buttons."""
    tried = view.compare
    shown = [one for one in tried.attempts if math.isfinite(one.estimate.perplexity)]
    if len(shown) < 2:
        return note("Everything that is measured appears here, size against perplexity: change something.")
    current = view.history.current.key if view.history is not None else ""
    across = _axis([one.fit.weights_bytes for one in shown], LEFT, WIDTH - RIGHT)
    values = [one.estimate.perplexity for one in shown]
    logarithmic = max(values) > SPREAD * min(values)
    bend: Callable[[float], float] = math.log if logarithmic else float
    up = _axis([bend(value) for value in values], HEIGHT - BOTTOM, TOP)

    def place(one: Attempt) -> tuple[float, float]:
        return across(one.fit.weights_bytes), up(bend(one.estimate.perplexity))

    front = {one.key for one in tried.front}
    line = " ".join(f"{x:.1f},{y:.1f}" for x, y in map(place, (one for one in tried.front if one in shown)))
    points = Html().join(_point(one, *place(one), one.key in front, one.key == current, tried) for one in shown)
    ticks = _ticks(shown, across, up, bend)
    picture = Html(
        '<svg class="ms-tried" viewBox="0 0 {width} {height}" role="group" '
        'aria-label="Everything tried: file size against perplexity">{ticks}<polyline points="{line}" />{points}'
        '<text x="{x}" y="{below}" text-anchor="middle">Weights, arithmetic</text>'
        '<text transform="translate(10 {y}) rotate(-90)" text-anchor="middle">Perplexity, measured{scale}</text></svg>'
    ).format(
        width=WIDTH, height=HEIGHT, ticks=ticks, line=line, points=points, x=(LEFT + WIDTH - RIGHT) / 2,
        below=HEIGHT - 4, y=(HEIGHT - BOTTOM + TOP) / 2, scale=" (logarithmic)" if logarithmic else "",
    )  # fmt: skip
    return picture + note(
        "Everything measured on the text in force. Filled points on the line: no smaller file has a lower "
        "perplexity. A point leads back to its recipe."
    )


def _axis(values: Sequence[float], start: float, end: float) -> Callable[[float], float]:
    """From values to places, with some room at both ends."""
    low, high = min(values), max(values)
    room = 0.06 * (high - low) or 0.05 * abs(high) or 1.0
    low, high = low - room, high + room
    return lambda value: start + (end - start) * (value - low) / (high - low)


def _ticks(
    shown: Sequence[Attempt], across: Callable[[float], float], up: Callable[[float], float],
    bend: Callable[[float], float],
) -> Html:  # fmt: skip
    """The smallest, the middle and the largest value of both axes."""
    sizes = [one.fit.weights_bytes for one in shown]
    values = [one.estimate.perplexity for one in shown]
    marks = []
    for size in dict.fromkeys((min(sizes), max(sizes))):
        words = Html('<text x="{:.1f}" y="{}" text-anchor="middle">{}</text>')
        marks.append(words.format(across(size), HEIGHT - 20, bytes_text(size)))
    middle = math.exp((math.log(min(values)) + math.log(max(values))) / 2)
    for value in dict.fromkeys((min(values), middle, max(values))):
        y = up(bend(value))
        marks.append(Html('<line x1="{0}" x2="{1}" y1="{2:.1f}" y2="{2:.1f}" />').format(LEFT, WIDTH - RIGHT, y))
        words = Html('<text x="{}" y="{:.1f}" text-anchor="end">{:,.1f}</text>')
        marks.append(words.format(LEFT - 4, y + 4, value))
    return Html().join(marks)


def _point(one: Attempt, x: float, y: float, front: bool, current: bool, tried: Tried) -> Html:
    pinned = "".join(pin.upper() for pin, key in tried.pins.items() if key == one.key)
    words = f"{one.words}: {bytes_text(one.fit.weights_bytes)}, {_perplexity(one)}"
    if current:
        words += ", in force"
    circle = Html('<circle class="{}" cx="{:.1f}" cy="{:.1f}" r="{}" />')
    ring = circle.format("ms-now", x, y, 9) if current else ""
    letter = Html('<text x="{:.1f}" y="{:.1f}">{}</text>').format(x + 8, y - 7, pinned) if pinned else ""
    group = Html('<g role="button" tabindex="0" data-key="{}" aria-label="{}"><title>{}</title>{}{}{}</g>')
    dot = circle.format("ms-front" if front else "ms-behind", x, y, 5)
    return group.format(one.key, words, words, ring, dot, letter)


def pinned_text(view: View) -> Html:
    """A and B, or one of them and the recipe in force, with their difference."""
    tried, history = view.compare, view.history
    if history is None or not tried.pins:
        return note("Pin a recipe as A and another one as B to see their differences.")
    now = history.current.key
    names = {place: "" if place in tried.pins else " (in force)" for place in ("a", "b")}
    first, second = (tried.of(tried.pins.get(place, now)) for place in ("a", "b"))
    if first is None or second is None:
        return note("What is pinned was not measured on this text: go to it, and it is measured.")
    line = Html('<tr><td>{}</td><td>{}</td><td>{}</td><td>{}</td><td class="ms-kind">{}</td></tr>')
    words = notes(f"{letter}: {one.words}." for letter, one in (("A", first), ("B", second)))
    heads = ("", f"A{names['a']}", f"B{names['b']}", "B against A", "")
    rows = (line.format(*found) for found in _rows(first, second))
    return words + Html('<div class="ms-scroll ms-wide">{}</div>').format(table(heads, rows))


def _rows(first: Attempt, second: Attempt) -> list[Row]:
    def row(title: str, read: Callable[[Attempt], float], text: Callable[[float], str], kind: str) -> Row:
        a, b = read(first), read(second)
        return title, text(a), text(b), _share(a, b), kind

    a, b = first.estimate, second.estimate
    loss_a, loss_b = (loss_text(one.difference, one.difference_standard_error) for one in (a, b))
    return [
        *(row(title, count, lambda n: f"{n:,}", "arithmetic") for title, count in COUNTS.items()),
        row("Parameters", lambda one: one.structure.parameters, lambda n: count_text(int(n)), "arithmetic"),
        row("Weights", lambda one: one.fit.weights_bytes, bytes_text, "arithmetic"),
        row("Memory", lambda one: one.fit.needed_bytes, bytes_text, "estimated"),
        row("Decode, tokens/s", lambda one: one.fit.speed.decode, lambda n: f"{n:,.1f}", "estimated"),
        ("Perplexity", number_text(a.perplexity), number_text(b.perplexity), loss_text(*b.against(a)), "measured"),
        ("Loss against dense", loss_a, loss_b, "", "measured"),
    ]


def _share(a: float, b: float) -> str:
    return "the same" if a == b else f"{100 * (b - a) / a:+.1f}%" if a else ""
