"""Three ready settings by the time that they take, with words that say what they will do on this machine."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from surgery.recipe.healing import Heal

if TYPE_CHECKING:  # the command line names the presets before torch is loaded
    from surgery.healing.healer import Healer, TrainingSpeed

EVALUATIONS = 6
"""Held-out measurements of a timed training, the one before it included."""


@dataclass(frozen=True)
class Preset:
    """Settings for a time."""

    name: str
    title: str
    minutes: float
    settings: Mapping[str, Any] = field(default_factory=dict)


PRESETS: dict[str, Preset] = {
    preset.name: preset
    for preset in (
        Preset("two-minutes", "Two minutes", 2, {"where": "around", "rank": 8, "learning_rate": 1e-3}),
        Preset("ten-minutes", "Ten minutes", 10, {"where": "all", "rank": 8, "learning_rate": 1e-3}),
        Preset("an-hour", "An hour", 60, {"where": "all", "rank": 16, "alpha": 32.0, "learning_rate": 1e-3}),
    )
}


@dataclass(frozen=True)
class Forecast:
    """What a training will do on this machine, from a short measurement."""

    minutes: float
    steps: int
    evaluate_every: int
    tokens: int
    """That it will see."""
    tokens_per_second: float
    """Of the training steps."""
    trainable_parameters: int
    blocks: int
    """That are trained."""

    @property
    def words(self) -> str:
        """One sentence for a person."""
        return (
            f"About {self.minutes:g} minutes on this machine: {self.steps:,} steps, {self.tokens:,} tokens at "
            f"{self.tokens_per_second:,.0f} a second, {self.trainable_parameters:,} parameters trained in "
            f"{self.blocks} blocks."
        )


def forecast(healer: Healer, speed: TrainingSpeed, minutes: float) -> Forecast:
    """How many steps fit into some minutes with the healer's settings, at the speed that `measure_speed` gives."""
    edit = healer.edit
    left = minutes * 60 - EVALUATIONS * speed.evaluation
    steps = max(1, int(left / max(speed.step, 1e-9)))
    tokens = edit.batch * edit.text.window
    blocks = {place.position for place in healer.student.linears}
    every = max(1, -(-steps // (EVALUATIONS - 1)))
    return Forecast(
        minutes, steps, every, steps * tokens, tokens / max(speed.step, 1e-9), healer.student.trainable, len(blocks)
    )


def timed(edit: Heal, found: Forecast) -> Heal:
    """The edit with the steps of a forecast, and held-out measurements spread over them."""
    return edit.model_copy(update={"steps": found.steps, "evaluate_every": found.evaluate_every})
