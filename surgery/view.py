"""What a session shows at one moment: values only, for the page or any other front."""

from __future__ import annotations

from dataclasses import dataclass

from analysis.statistics import Statistics
from analysis.text import Windows
from surgery.devices import Device
from surgery.history import History
from surgery.jobs import Job
from surgery.live import Estimate
from surgery.memory import Fit
from surgery.structure import Structure
from surgery.workbench import OpenModel, TextChoice


@dataclass(frozen=True)
class Target:
    """Where the model is to run."""

    device: str = "raspberry-pi-5-8gb"
    context: int = 2048
    type: str = "F16"


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

    @property
    def working(self) -> bool:
        """Whether a heavy job is queued or running."""
        return self.job is not None and not self.job.over
