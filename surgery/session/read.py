"""Reading: one prompt answered by the dense and by the cut model, from a person's session."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from surgery.common.jobs import Context, Job, JobKind
from surgery.common.progress import checker_of
from surgery.evaluation.generation import Answer, Writer, prompt_ids, side_by_side
from surgery.evaluation.sampling import Sampling
from surgery.pruning.recipe_summary import recipe_words
from surgery.session.edit import SessionEdit
from surgery.session.jobs import SessionJobs
from surgery.session.state import SessionState
from surgery.structure.structure import Structure, dense
from surgery.workbench.open_model import OpenModel


@dataclass(frozen=True)
class Reading:
    """Two answers to one prompt; the cut model's is None where nothing is cut."""

    fingerprint: str
    recipe: str
    """Key of the recipe that was read."""
    words: str
    """What that recipe leaves of the model."""
    prompt: str
    sampling: Sampling
    dense: Answer
    cut: Answer | None


class SessionRead:
    """Keeps the last answers."""

    def __init__(self, state: SessionState, jobs: SessionJobs, edit: SessionEdit) -> None:
        self.state, self.jobs, self.edit = state, jobs, edit
        self._reading: Reading | None = None
        jobs.takes_over(JobKind.READ, self._keep, "partial")  # a cancelled one has no result, but what was written

    def start(self, prompt: str, chat: bool = False, sampling: Sampling | None = None) -> Job:
        """Let the dense and the cut model answer (as a job), a token each in turn. Cancelled, what was written stays.

        Args:
            prompt: what is asked.
            chat: write it as a person's turn, by the model's chat template.
            sampling: how tokens are drawn, in both models alike.

        Raises:
            InputError: nothing is asked, it is too long, or another job is under way.
        """
        model, drawing = self.state.need_model(), sampling or Sampling()
        recipe = self.edit.current_recipe()
        structure = model.resolve(recipe)
        words = recipe_words(recipe, structure, dense(model.architecture))
        ids = prompt_ids(model.loaded.tokenizer, prompt, chat)
        writers = [self._writer(model, model.loaded.model, ids, drawing)]

        def show(job: Context, answers: tuple[Answer, ...]) -> Reading:
            cut = answers[1] if recipe.edits else None
            reading = Reading(model.loaded.fingerprint, recipe.key, words, prompt, drawing, answers[0], cut)
            job.partial(reading)
            self._keep(reading)
            return reading

        def work(job: Context) -> Reading:
            if recipe.edits:
                writers.append(self._cut_writer(job, model, structure, ids, drawing))
            reading = show(job, tuple(writer.answer for writer in writers))
            for answers in side_by_side(tuple(writers), checker_of(job.stop)):
                reading = show(job, answers)
                job.report(max(answer.tokens for answer in answers) / drawing.tokens, "Writing")
            return reading

        return self.jobs.start(JobKind.READ, "Reading", work)

    def shown(self) -> Reading | None:
        """The last answers of the open model, also those that are being written since before a reload."""
        job, model, known = self.jobs.followed, self.state.model, self._reading
        if job is not None and job.kind is JobKind.READ and job.partial is not None:
            known = job.partial
        return known if known and model and known.fingerprint == model.loaded.fingerprint else None

    def _keep(self, reading: Reading) -> None:
        with self.state.lock:
            self._reading = reading
            self.state.changed()

    def _cut_writer(
        self, job: Context, model: OpenModel, structure: Structure, ids: torch.Tensor, drawing: Sampling
    ) -> Writer:
        from surgery.checkpoints.build import readable_model

        job.report(0.0, "Building the cut model")
        done = model.complete(structure, self.state.texts_for(structure), job.report, job.stop).structure
        return self._writer(model, readable_model(model.loaded.model, model.architecture, done), ids, drawing)

    def _writer(self, model: OpenModel, reader: Any, ids: torch.Tensor, drawing: Sampling) -> Writer:
        return Writer(reader, model.loaded.tokenizer, ids, drawing, model.evaluator.turn)
