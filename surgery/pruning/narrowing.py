"""A method and how wide it should leave MLPs, and the edit that this makes of an open model."""

from __future__ import annotations

from dataclasses import dataclass

from analysis.importance.registry import Method
from analysis.text import Windows
from surgery.pruning.neurons import WidthBudget, prune_neurons
from surgery.recipe.base import ChosenBy
from surgery.recipe.edits import PruneNeurons
from surgery.recipe.texts import text_reference
from surgery.workbench.open_model import OpenModel


@dataclass(frozen=True)
class Narrowing:
    """What a person asked for."""

    method: Method
    budget: WidthBudget
    blocks: tuple[int, ...] | None = None
    """Whose MLPs are narrowed, while the others stay as they are; all when None."""

    @property
    def stroke(self) -> str:
        """The same for two positions of one slider."""
        return f"{self.method.name} {self.budget.divisor} {self.blocks or ''}"

    def nothing(self, model: OpenModel) -> bool:
        """Whether each of these MLPs is left as wide as its source."""
        mlps = [
            block.mlp
            for block in model.architecture.blocks
            if block.mlp is not None and (self.blocks is None or block.index in self.blocks)
        ]
        return all(self.budget.width(mlp) == mlp.width for mlp in mlps)

    def possible(self, model: OpenModel, windows: Windows | None) -> bool:
        """Whether the scores can be had without a new analysis."""
        return model.knows(self.method, windows)

    def edit(self, model: OpenModel, windows: Windows | None) -> PruneNeurons | None:
        """The edit, with its origin; None when nothing would go.

        Args:
            windows: analysed windows, for a method that needs text.

        Raises:
            InputError: the budget makes no sense for this model, or an analysis is missing.
        """
        if self.blocks is None:
            scores = model.neuron_scores(self.method, windows)
        else:
            scores = {block: model.block_scores(self.method, windows, block) for block in self.blocks}
        text = None
        if self.method.needs_text and windows is not None:
            text = text_reference(windows).model_dump()
        origin = {"method": self.method.name, "budget": self.budget.document(), "text": text}
        return prune_neurons(model.architecture, scores, self.budget, ChosenBy.model_validate(origin))
