"""A method and how wide it should leave every MLP, and the edit that this makes of an open model."""

from __future__ import annotations

from dataclasses import dataclass

from analysis.registry import Method
from analysis.text import Windows
from surgery.recipe import ChosenBy, PruneNeurons
from surgery.selection import WidthBudget, prune_neurons
from surgery.text_names import text_reference
from surgery.workbench import OpenModel


@dataclass(frozen=True)
class Narrowing:
    """What a person asked for."""

    method: Method
    budget: WidthBudget

    @property
    def stroke(self) -> str:
        """The same for two positions of one slider."""
        return f"{self.method.name} {self.budget.divisor}"

    def nothing(self, model: OpenModel) -> bool:
        """Whether every MLP is left as wide as it is."""
        mlps = [block.mlp for block in model.architecture.blocks if block.mlp is not None]
        return all(self.budget.width(mlp) == mlp.width for mlp in mlps)

    def possible(self, model: OpenModel, windows: Windows | None) -> bool:
        """Whether the scores can be had without a new analysis."""
        return model.knows(self.method, windows)

    def edit(self, model: OpenModel, windows: Windows | None) -> PruneNeurons | None:
        """The edit, with its origin; None when nothing would go.

        Args:
            model: what is narrowed.
            windows: analysed windows, for a method that needs text.

        Raises:
            InputError: the budget makes no sense for this model, or an analysis is missing.
        """
        scores = model.neuron_scores(self.method, windows)
        text = None
        if self.method.needs_text and windows is not None:
            text = text_reference(windows).model_dump()
        origin = {"method": self.method.name, "budget": self.budget.document(), "text": text}
        return prune_neurons(model.architecture, scores, self.budget, ChosenBy.model_validate(origin))
