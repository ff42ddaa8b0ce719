"""What a session shows at one moment: values only, for the page or any other front."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Literal

from analysis.importance.predictions import Predictions
from analysis.statistics.collect import Statistics
from analysis.text import Windows
from surgery.common.jobs import Job
from surgery.compensation.compensator import Compensated
from surgery.evaluation.estimate import Estimate
from surgery.evaluation.scan import Scan
from surgery.fit.devices import Device
from surgery.fit.fit import Fit
from surgery.fit.room import Room
from surgery.recipe.recipe import Edit, Recipe
from surgery.recipe.texts import TextChoice
from surgery.search.make_it_fit import Fitting
from surgery.session.history import History
from surgery.shipping.download import Archive
from surgery.shipping.shipment import Shipment
from surgery.structure.structure import Structure
from surgery.workbench.open_model import OpenModel

if TYPE_CHECKING:  # the healing package takes seconds to import
    from surgery.healing.presets import Forecast
    from surgery.session.heal import AdapterFile
    from surgery.session.read import Reading
    from surgery.training.trainer import Outcome, Progress


@dataclass(frozen=True)
class Target:
    """Where the model is to run."""

    device: str = "raspberry-pi-5-8gb"
    context: int = 2048
    type: str = "F16"
    kv_type: str = "F16"


@dataclass(frozen=True)
class Scanned:
    """Every single removal measured, and what the gradients predict of it once they are gathered."""

    fingerprint: str
    """Of the model."""
    text: TextChoice
    """That was measured on."""
    scan: Scan
    predicted: Predictions | None

    def of(self, model: OpenModel, text: TextChoice) -> bool:
        """Whether it belongs to that model and text."""
        return (self.fingerprint, self.text) == (model.loaded.fingerprint, text)

    def joined(self, earlier: Scanned) -> Scanned:
        """This one and what an earlier one of the same model and text measured besides."""
        if (self.fingerprint, self.text) != (earlier.fingerprint, earlier.text):
            return self
        scan = replace(self.scan, removals={**earlier.scan.removals, **self.scan.removals})
        return replace(self, scan=scan, predicted=self.predicted or earlier.predicted)


@dataclass(frozen=True)
class Fitted:
    """Options that fit a target, and what they were asked of."""

    fingerprint: str
    """Of the model."""
    target: Target
    text: TextChoice
    """That was measured on."""
    asked: Recipe
    fitting: Fitting

    def of(self, model: OpenModel, target: Target, text: TextChoice) -> bool:
        """Whether they hold for that model, device, context and text: the weight type is what they choose."""
        same = replace(self.target, type=target.type) == target
        return same and (self.fingerprint, self.text) == (model.loaded.fingerprint, text)


Pin = Literal["a", "b"]


@dataclass(frozen=True)
class Attempt:
    """A recipe that was measured to the end, on one text. Its sizes are worked out again for the device in force."""

    recipe: Recipe
    structure: Structure
    words: str
    text: TextChoice
    estimate: Estimate
    fit: Fit

    @property
    def key(self) -> str:
        """Of the recipe."""
        return self.recipe.key


@dataclass(frozen=True)
class Tried:
    """All attempts on the text in force, the oldest first; which ones are pinned, by their keys."""

    attempts: tuple[Attempt, ...] = ()
    pins: Mapping[Pin, str] = field(default_factory=dict)

    def of(self, key: str | None) -> Attempt | None:
        """The attempt of a recipe."""
        return next((attempt for attempt in self.attempts if attempt.key == key), None)

    @property
    def front(self) -> tuple[Attempt, ...]:
        """Those that no smaller file beats in perplexity, by size (the Pareto front)."""
        found: list[Attempt] = []
        for attempt in sorted(self.attempts, key=lambda one: (one.fit.weights_bytes, one.estimate.nll)):
            if not found or attempt.estimate.nll < found[-1].estimate.nll:
                found.append(attempt)
        return tuple(found)


@dataclass(frozen=True)
class Cost:
    """What a structure, named by its key, was measured to cost on a text."""

    structure: str
    text: TextChoice
    estimate: Estimate


@dataclass(frozen=True)
class Suggestion:
    """What a method would take out of the recipe in force, before anybody has agreed to it."""

    base: str
    """Key of the recipe that it starts from."""
    ops: tuple[str, ...]
    """Edits of these kinds are replaced."""
    edits: tuple[Edit, ...]
    recipe: Recipe
    """As it would be."""
    structure: Structure
    before: Structure
    cost: Cost | None = None
    """Measured before anybody has agreed; None until then, and where something is to be computed first."""


@dataclass(frozen=True)
class View:
    """Everything there is to show; the model's parts are None before one is open."""

    version: int
    model: OpenModel | None
    history: History | None
    structure: Structure | None
    dense: Structure | None
    device: Device
    fit: Fit | None
    dense_fit: Fit | None
    estimate: Estimate | None
    measured: bool
    """Whether the estimate belongs to the current recipe and text (else it is the last one's)."""
    measuring: bool
    measure_error: str
    statistics: Statistics | None
    analysed: Windows | None
    pending_ratio: float | None
    """The expansion ratio that is applied when the running analysis ends."""
    job: Job | None
    """The running heavy job, or the last one until something else is done."""
    queue: int
    can_cancel: bool
    error: str
    text: TextChoice
    target: Target
    pending_widths: Mapping[int, int] = field(default_factory=dict)
    """Widths, by block, that are applied when the running analysis ends."""
    locked: tuple[int, ...] = ()
    """Blocks that must stay, ascending."""
    compensated: Compensated | None = None
    """The current structure with its compensations and its quantisation, once they are computed."""
    compensating: bool = False
    """Whether they are being computed."""
    tried: Mapping[tuple[str, bool], float] = field(default_factory=dict)
    """Perplexities of GGUF types of the current recipe that were measured in this session, by type and importance
    matrix; the empty type stands for no quantisation."""
    scanned: Scanned | None = None
    """Every removal of the current model on the current text, if they were measured."""
    packed: Archive | None = None
    """The last build, if its file is complete."""
    shipment: Shipment | None = None
    """The last shipment, if it is complete."""
    room: Room | None = None
    """What the device has room for."""
    fitted: Fitted | None = None
    """Options that fit the device, if they were looked for."""
    heal_progress: Progress | None = None
    """Of the running training."""
    heal_forecast: Forecast | None = None
    """What the preset that was last asked about would do."""
    healed: Outcome | None = None
    """How the last training ended, while its result is in the recipe."""
    adapter: AdapterFile | None = None
    """The result of the recipe's healing as a file, if it was asked for."""
    reading: Reading | None = None
    """What the dense and the cut model wrote last."""
    suggestion: Suggestion | None = None
    """Of the recipe in force, if a method was asked."""
    compared: Tried = Tried()
    """Every recipe that was measured in this session on the text in force."""

    @property
    def uncompensated(self) -> bool:
        """Whether the recipe has compensations or a quantisation that are neither computed nor under way."""
        pending = self.structure is not None and self.structure.pending
        return pending and self.compensated is None and not self.compensating

    @property
    def unfinished(self) -> str:
        """What of the recipe takes a pass over the calibration text: its compensation, or its quantisation."""
        return "compensation" if self.structure is not None and self.structure.compensations else "quantisation"

    @property
    def working(self) -> bool:
        """Whether a heavy job is queued or running."""
        return self.job is not None and not self.job.over
