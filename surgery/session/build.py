"""The smaller model as one file to take away, and its recipe as a file."""

from __future__ import annotations

from pathlib import Path

from surgery.common.files import refuse_without_room
from surgery.common.jobs import Context, Job, JobKind
from surgery.common.progress import part_of
from surgery.recipe.recipe import Recipe
from surgery.recipe.texts import shown_source
from surgery.session.jobs import SessionJobs
from surgery.session.measure import SessionMeasure
from surgery.session.state import SessionState
from surgery.shipping.download import Archive, Download, checkpoint_bytes, pack


class SessionBuild:
    """Builds the current recipe. A session keeps one file."""

    def __init__(self, state: SessionState, jobs: SessionJobs, measure: SessionMeasure) -> None:
        self.state, self.jobs, self.measure = state, jobs, measure
        self._download: Download | None = None

    def start(self, base: Path | None = None) -> Job:
        """Make the smaller model as one file to take away (as a job). A session keeps one: the last one is deleted.

        Raises:
            InputError: there is not enough room, or another job is under way.
        """
        state = self.state
        model = state.need_model()
        with state.lock:
            self.jobs.refuse_second()
            recipe, structure = self._documented(), state.need_editor().structure
            self._download = None  # its room is needed
            download = Download(base)
            refuse_without_room(download.folder, 2 * checkpoint_bytes(model, structure))
            known, texts = self.measure.known_complete(model, structure), state.texts_for(structure)

            def work(job: Context) -> None:
                compensating = 0.0 if known else 0.5
                completed = known or model.complete(structure, texts, part_of(job.report, 0.0, 0.5), job.stop)
                pack(model, completed.structure, recipe, download, part_of(job.report, compensating, 1.0))

            self._download = download
            return self.jobs.start(JobKind.BUILD, "Building", work, download)

    def exported(self) -> str:
        """The recipe file's text, with its measured results when they are complete."""
        return self._documented().to_json()

    def hold(self, job: Job) -> None:
        """Keep the file of a job that is found again, which its own session may let go of."""
        if job.kind is JobKind.BUILD:
            self._download = job.product

    def close(self) -> None:
        """Let go of the file."""
        self._download = None

    def shown(self) -> Archive | None:
        """The last build, if its file is complete."""
        return self._download.packed if self._download is not None else None

    def _documented(self) -> Recipe:
        with self.state.lock:
            recipe, found, text = self.state.need_editor().history.current, self.measure.shown(), self.state.text
        if found.measured and found.estimate is not None and found.estimate.complete and not found.measuring:
            results = found.estimate.document() | {"text": shown_source(text.source), "window": text.window}
            recipe = recipe.model_copy(update={"results": results})
        return recipe
