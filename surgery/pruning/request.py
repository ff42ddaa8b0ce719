"""What a method is asked: the model, how much should go, by which rules, and on which text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from threading import Event

from analysis.importance import similarity
from analysis.importance.registry import Evidence
from analysis.statistics.collect import Statistics
from analysis.text import Windows
from surgery.common.progress import Report
from surgery.pruning.allocation import Layer, allocate
from surgery.pruning.budget import Budget, Rules, parameter_target
from surgery.recipe.base import ChosenBy
from surgery.workbench.open_model import OpenModel


@dataclass(frozen=True)
class Request:
    """All that one suggestion depends on, and the origin that its edits record."""

    model: OpenModel
    budget: Budget
    rules: Rules
    windows: Windows | None
    origin: ChosenBy
    stop: Event | None
    report: Report

    @property
    def evidence(self) -> Evidence:
        """What is known of the model on the text."""
        return self.model.evidence(self.windows, self.rules.seed)

    @property
    def statistics(self) -> Statistics:
        """The text's statistics, which `suggest` has gathered for a method or an allocation that needs them."""
        found = self.evidence.statistics
        assert found is not None  # gathered
        return found

    @property
    def excess(self) -> int:
        """Parameters that should go."""
        parameters = self.model.architecture.parameters
        assert self.budget.params is not None  # asked only of parameter budgets
        return parameters - parameter_target(self.budget.params, parameters)

    def allocated(self, layers: Sequence[Layer], kept: float) -> dict[int, int]:
        """Units that stay in each layer."""
        importance = None
        if self.rules.allocation == "cfsp":
            importance = dict(enumerate(similarity.coarse_importance(self.statistics.similarities).tolist()))
        return allocate(layers, kept, self.budget.divisor, self.rules, importance)
