"""The line under the map: what a recipe leaves of the model, in words. Pure."""

from __future__ import annotations

from surgery.pruning.recipe_summary import recipe_words
from surgery.session.view import View
from ui.presenters.text import Html


def removed_text(view: View) -> Html:
    """What the recipe leaves, in words."""
    if view.structure is None or view.dense is None or view.history is None:
        return Html()
    words = recipe_words(view.history.current, view.structure, view.dense)
    return Html('<p class="ms-removed">{}.</p>').format(words)
