"""Reading: one prompt answered by the dense and by the cut model, from a person's session."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from surgery.common.jobs import Context, Job
from surgery.errors import Cancelled
from surgery.evaluation.generation import Answer, Writer, prompt_ids, side_by_side
from surgery.evaluation.sampling import Sampling
from surgery.pruning.recipe_summary import recipe_words
from surgery.session.fit import FittingSession
from surgery.structure.structure import Structure, dense
from surgery.workbench.open_model import OpenModel
from surgery.workbench.workbench import Workbench

READING = "Reading"
"""Title of the job."""


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


class ReadingSession(FittingSession):
    """See the module.

    Args:
        bench: what all sessions share.
    """

    def __init__(self, bench: Workbench) -> None:
        super().__init__(bench)
        self._reading: Reading | None = None

    def read(self, prompt: str, chat: bool = False, sampling: Sampling | None = None) -> Job:
        """Let the dense and the cut model answer (as a job), a token each in turn. Cancelled, what was written stays.

        Args:
            prompt: what is asked.
            chat: write it as a person's turn, by the model's chat template.
            sampling: how tokens are drawn, in both models alike.

        Raises:
            InputError: nothing is asked, it is too long, or another job is under way.
        """
        model, drawing = self._need_model(), sampling or Sampling()
        recipe = self.current_recipe()
        structure = model.resolve(recipe)
        words = recipe_words(recipe, structure, dense(model.architecture))
        ids = prompt_ids(model.loaded.tokenizer, prompt, chat)
        writers = [self._writer(model, model.loaded.model, ids, drawing)]

        def show(job: Context, answers: tuple[Answer, ...]) -> Reading:
            cut = answers[1] if recipe.edits else None
            reading = Reading(model.loaded.fingerprint, recipe.key, words, prompt, drawing, answers[0], cut)
            job.partial(reading)
            with self._lock:
                self._reading = reading
                self._changed()
            return reading

        def work(job: Context) -> Reading:
            if recipe.edits:
                writers.append(self._cut_writer(job, model, structure, ids, drawing))
            reading = show(job, tuple(writer.answer for writer in writers))

            def check() -> None:
                if job.stop.is_set():
                    raise Cancelled("Cancelled.")

            for answers in side_by_side(tuple(writers), check):
                reading = show(job, answers)
                job.report(max(answer.tokens for answer in answers) / drawing.tokens, "Writing")
            return reading

        return self._start(READING, work)

    def _cut_writer(
        self, job: Context, model: OpenModel, structure: Structure, ids: torch.Tensor, drawing: Sampling
    ) -> Writer:
        from surgery.checkpoints.build import readable_model

        job.report(0.0, "Building the cut model")
        done = model.complete(structure, self._texts_for(structure), job.report, job.stop).structure
        return self._writer(model, readable_model(model.loaded.model, model.architecture, done), ids, drawing)

    def _writer(self, model: OpenModel, reader: Any, ids: torch.Tensor, drawing: Sampling) -> Writer:
        return Writer(reader, model.loaded.tokenizer, ids, drawing, model.evaluator.turn)

    def _shown_reading(self) -> Reading | None:
        """The last answers of the open model, also those that are being written since before a reload."""
        job = self._followed
        known = job.partial if job is not None and isinstance(job.partial, Reading) else self._reading
        return known if known and self._model and known.fingerprint == self._model.loaded.fingerprint else None
