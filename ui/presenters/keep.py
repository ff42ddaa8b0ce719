"""What the Keep panel says: the link, the ready recipes, the lines that reproduce. Pure."""

from __future__ import annotations

from collections.abc import Mapping

from surgery.recipe.recipe import Recipe
from surgery.session.reproduce import lines_of
from surgery.session.view import View
from ui.presenters.text import Html, notes


def ready_choices(ready: Mapping[str, Recipe]) -> list[tuple[str, str]]:
    """Ready recipes with what they were measured to cost, and their names."""
    return [(_ready_words(recipe), name) for name, recipe in ready.items()]


def _ready_words(recipe: Recipe) -> str:
    results, target = recipe.results or {}, recipe.target or {}
    share, perplexity = target.get("parameters_percent"), results.get("perplexity")
    dense, text = results.get("dense_perplexity"), results.get("text")
    protocol = ""
    if isinstance(text, dict):
        protocol = f" (measured: {text.get('source')}, {text.get('windows')} x {text.get('window')} tokens)"
    return f"{share:g}% of the parameters: perplexity {dense:.2f} \N{RIGHTWARDS ARROW} {perplexity:.2f}{protocol}"


def lines_text(view: View) -> Html:
    """The command line and the Python lines, each in a box."""
    lines = lines_of(view)
    if lines is None:
        return Html()
    boxes = (("Command line", "\n".join(lines.commands)), ("Python", lines.python))
    box = Html('<h4 class="ms-lines-title">{0}</h4><pre class="ms-lines" tabindex="0" aria-label="{0}">{1}</pre>')
    return notes(lines.notes) + Html().join(box.format(title, text) for title, text in boxes)
