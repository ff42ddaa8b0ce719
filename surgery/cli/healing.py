"""What the verbs `heal` and `iterate` share: the healing text, and a heal edit from options."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer

from surgery.healing.presets import EVALUATIONS
from surgery.recipe.base import TextReference
from surgery.recipe.healing import Heal
from surgery.recipe.recipe import Recipe
from surgery.recipe.texts import HEALING_WINDOW, text_reference, within

if TYPE_CHECKING:
    from surgery.training.data import HealingText
    from surgery.workbench.open_model import OpenModel

MOST_WINDOWS = 4096
"""Windows that are taken from a text where no number is given."""
PrecisionOption = Annotated[
    str, typer.Option(help="Of the products in training: float32, bfloat16, or auto, what is faster here.")
]


@dataclass(frozen=True)
class HealingTextOptions:
    """Which text is learnt from, and how it is cut."""

    text: Annotated[str, typer.Option("--text", help="The healing text: as elsewhere, hub: sets are streamed.")] = (
        "embedded"
    )
    window: Annotated[
        int | None,
        typer.Option(
            "--window", min=2, help=f"Tokens in a window; {HEALING_WINDOW} if absent, or what the model takes."
        ),
    ] = None
    windows: Annotated[int | None, typer.Option("--windows", min=2, help="Windows; all that there are if absent.")] = (
        None
    )

    def load(self, model: OpenModel, answers_only: bool = False) -> HealingText:
        """The text in windows. Raises TextError: unreadable, empty or too short."""
        from surgery.training.data import largest_count, load_healing_text

        words, inside = model.loaded.tokenizer, model.architecture
        window = self.window or within(HEALING_WINDOW, inside.context_length)
        count = self.windows or largest_count(words, self.text, window, MOST_WINDOWS)
        return load_healing_text(words, self.text, window, count, answers_only=answers_only, model=inside)

    def load_for(self, model: OpenModel, edit: Heal) -> HealingText:
        """The text that a recipe's heal edit names, cut as it says. Raises TextError as `load` does."""
        from surgery.training.data import load_healing_text

        named = edit.text
        return load_healing_text(
            model.loaded.tokenizer,
            self.text,
            named.window,
            named.windows,
            named.spread,
            edit.answers_only,
            model=model.architecture,
        )


def check_edit(recipe: Recipe, text: HealingTextOptions, precision: str, settings: dict[str, Any]) -> None:
    """Refuse settings that no text and no model make possible, before either is opened.

    Raises:
        RecipeError: a setting is not valid; the message names it.
    """
    windows = MOST_WINDOWS if text.windows is None else text.windows
    window = text.window or HEALING_WINDOW
    reference = TextReference(source="text", fingerprint="text", window=window, windows=windows)
    _edit(recipe, reference, 1, "float32" if precision == "auto" else precision, settings)


def edit_of(
    recipe: Recipe, model: OpenModel, text: HealingText, steps: int, precision: str, settings: dict[str, Any]
) -> Heal:
    """A heal edit from loose settings. Where they do not say so, the held-out measurements are spread over the steps.

    Args:
        model: where it runs, for the precision `auto`.
        precision: as `PrecisionOption`; dropout goes with float32 alone.
        settings: fields of the edit; None where one is not set.

    Raises:
        RecipeError: a setting is not valid; the message names it.
    """
    from analysis.model.modules import device_of
    from surgery.training.precision import best_precision

    if precision == "auto":
        precision = "float32" if settings.get("dropout") else best_precision(device_of(model.loaded.model))
    return _edit(recipe, text_reference(text.windows), steps, precision, settings)


def _edit(recipe: Recipe, text: TextReference, steps: int, precision: str, settings: dict[str, Any]) -> Heal:
    edit = {
        "op": "heal",
        "text": text.model_dump(),
        "steps": steps,
        "evaluate_every": max(1, -(-steps // (EVALUATIONS - 1))),
        "precision": precision,
    }
    given = {name: value for name, value in settings.items() if value is not None}
    found = recipe.with_edits(edit | given).find(Heal)
    assert found is not None  # it was just put in
    return found
