"""Every single removal of a session's model, measured and predicted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from analysis.importance.predictions import Predictions, predicted_changes
from surgery.common.jobs import Context, Job, JobKind
from surgery.common.progress import part_of
from surgery.errors import InputError
from surgery.evaluation.scan import KINDS, Scan, scan
from surgery.recipe.texts import TextChoice
from surgery.session.jobs import SessionJobs
from surgery.session.state import SessionState
from surgery.structure.removal import RemovalKind
from surgery.workbench.open_model import OpenModel


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


class SessionScan:
    """Measures the removals, and keeps them for the model and text that they are of."""

    def __init__(self, state: SessionState, jobs: SessionJobs) -> None:
        self.state, self.jobs = state, jobs
        self._scanned: Scanned | None = None
        jobs.takes_over(JobKind.SCAN, self._finish)

    def start(self, kinds: Sequence[RemovalKind] = KINDS) -> Job:
        """Measure each single removal on the session's text, and predict it from the gradients on the calibration text
        (as a job). What has been measured is kept when the rest is cancelled.

        Raises:
            InputError: no kind is named, or another job is under way.
        """
        model, text = self.state.need_model(), self.state.text
        if not kinds:
            raise InputError("Choose what is to be removed: blocks, attentions or MLPs.")

        def work(job: Context) -> Scanned:
            found = scan(model.evaluator, model.windows(text), kinds, job.stop, part_of(job.report, 0.0, 0.7))
            result = Scanned(model.loaded.fingerprint, text, found, None)
            self._finish(result)
            gradients = model.gradients(self.state.calibration_windows(model), part_of(job.report, 0.7, 1.0))
            result = replace(result, predicted=predicted_changes(gradients))
            self._finish(result)
            return result

        return self.jobs.start(JobKind.SCAN, "Measuring every removal", work)

    def shown(self) -> Scanned | None:
        """Of the current model on the current text, if they were measured."""
        found, model = self._scanned, self.state.model
        return found if found is not None and model is not None and found.of(model, self.state.text) else None

    def _finish(self, result: Scanned) -> None:
        """Keep a scan, and what an earlier one on the same text has measured besides."""
        with self.state.lock:
            self._scanned = result if self._scanned is None else result.joined(self._scanned)
            self.state.changed()
