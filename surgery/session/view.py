"""What a session shows at one moment: values only, for the page or any other front."""

from __future__ import annotations

from dataclasses import dataclass

from surgery.common.jobs import Job
from surgery.fit.devices import Device
from surgery.recipe.texts import TextChoice
from surgery.session.analyse import AnalyseView
from surgery.session.compare import Tried
from surgery.session.fit import FitView
from surgery.session.heal import HealView
from surgery.session.history import History
from surgery.session.measure import MeasureView
from surgery.session.read import Reading
from surgery.session.scan import Scanned
from surgery.session.state import Target
from surgery.session.suggest import Suggestion
from surgery.shipping.download import Archive
from surgery.shipping.shipment import Shipment
from surgery.structure.structure import Structure
from surgery.workbench.open_model import OpenModel


@dataclass(frozen=True)
class View:
    """What all features share, the jobs, and one part a feature. The model's values are None before one is open."""

    version: int
    error: str
    model: OpenModel | None
    dense: Structure | None
    history: History | None
    structure: Structure | None
    """What the recipe in force makes of the model."""
    locked: tuple[int, ...]
    """Blocks that must stay, ascending."""
    text: TextChoice
    target: Target
    device: Device
    job: Job | None
    """The running heavy job, or the last one until something else is done."""
    working: bool
    """Whether it was queued or running when the rest was looked at; it goes on meanwhile."""
    queue: int
    """Jobs before it."""
    can_cancel: bool
    measure: MeasureView
    analyse: AnalyseView
    suggest: Suggestion | None
    """Of the recipe in force, if a method was asked."""
    scan: Scanned | None
    """Every removal of the current model on the current text, if they were measured."""
    build: Archive | None
    """The last build, if its file is complete."""
    heal: HealView
    ship: Shipment | None
    """The last shipment, if it is complete."""
    fit: FitView
    read: Reading | None
    """What the dense and the cut model wrote last."""
    compare: Tried
    """Every recipe that was measured in this session on the text in force."""

    @property
    def uncompensated(self) -> bool:
        """Whether the recipe has compensations or a quantisation that are neither computed nor under way."""
        pending = self.structure is not None and self.structure.pending
        return pending and self.measure.compensated is None and not self.measure.compensating

    @property
    def unfinished(self) -> str:
        """What of the recipe takes a pass over the calibration text: its compensation, or its quantisation."""
        return "compensation" if self.structure is not None and self.structure.compensations else "quantisation"
