"""Healing from a person's session: what a preset would do on this machine, and the training itself."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from analysis.model.modules import device_of
from analysis.text import Text, make_windows
from surgery.common.files import disk_errors, zip_folder
from surgery.common.jobs import Context, Job, JobKind
from surgery.errors import Cancelled, InputError
from surgery.recipe.healing import Heal
from surgery.recipe.recipe import Edit, Recipe
from surgery.recipe.texts import HEALING_WINDOW, TextChoice, within
from surgery.session.edit import SessionEdit
from surgery.session.jobs import SessionJobs
from surgery.session.state import SessionState
from surgery.shipping.download import Download, file_name
from surgery.structure.choices import AFTER_CUTS, Choices
from surgery.structure.structure import Healing
from surgery.workbench.open_model import OpenModel

if TYPE_CHECKING:  # the healing package takes seconds to import
    from surgery.healing.healer import Healer
    from surgery.healing.presets import Forecast
    from surgery.training.trainer import Outcome, Progress

MOST_WINDOWS = 4096
HEAL_METHODS = ("lora", "distill")
NOTHING_CUT = "Nothing is cut, so there is nothing to heal: remove or narrow something first."


@dataclass(frozen=True)
class Forecasted:
    """Result of a job that asked what a preset would do."""

    cuts: tuple[Edit, ...]
    forecast: Forecast


@dataclass(frozen=True)
class HealedCuts:
    """Result of a healing. It does not hold the student: finished jobs are remembered for long."""

    fingerprint: str
    cuts: tuple[Edit, ...]
    """That were healed."""
    edit: Heal
    outcome: Outcome


@dataclass(frozen=True)
class AdapterFile:
    """A healing's result as one file to take away."""

    path: Path
    """A zip file with what peft loads, the recipe and the report of the training."""
    bytes: int
    healing: Healing
    """What made it, its result included."""
    download: Download
    """Holds the file's folder."""


@dataclass(frozen=True)
class HealView:
    """The training that runs, and what the last ones have left."""

    progress: Progress | None = None
    """Of the running training, also of one that was started before a reload."""
    forecast: Forecast | None = None
    """What the preset that was last asked about would do to the cuts in force."""
    outcome: Outcome | None = None
    """How the last training ended, while its result is in the recipe."""
    adapter: AdapterFile | None = None
    """The result of the recipe's healing as a file, if it was asked for."""


class SessionHeal:
    """Heals the current cuts and puts the result into the recipe."""

    def __init__(self, state: SessionState, jobs: SessionJobs, edit: SessionEdit) -> None:
        self.state, self.jobs, self.edit = state, jobs, edit
        self._forecasted: Forecasted | None = None
        self._healed: HealedCuts | None = None
        self._adapter: AdapterFile | None = None
        jobs.takes_over(JobKind.FORECAST, self._keep_forecast)
        jobs.takes_over(JobKind.HEAL, self._finish)

    def close(self) -> None:
        """Let go of the adapter's file."""
        self._adapter = None

    def pack_adapter(self, base: Path | None = None) -> None:
        """Put the result of the recipe's healing into one file to take away. A session keeps one.

        Raises:
            InputError: the recipe is not healed, its result is not on this machine, or the disk is full.
        """
        from surgery.training import results

        model, healing = self.state.need_model(), self.state.need_editor().structure.healing
        if healing is None:
            raise InputError("The recipe is not healed, so there is no adapter: heal first.")
        folder, _ = results.locate(healing)
        download = Download(base)
        path = download.folder / f"{file_name(model.loaded.id)}-{healing.key}-adapter.zip"
        with disk_errors("The adapter cannot be written", "free some disk space"):
            zip_folder(folder, path)
        with self.state.lock:
            self._adapter = AdapterFile(path, path.stat().st_size, healing, download)
            self.state.changed()

    def forecast(self, preset_name: str, method: str, text: TextChoice | None = None) -> Job:
        """Say what a preset would do on this machine (as a job), from a short measurement.

        Args:
            preset_name: of `surgery.healing.presets.PRESETS`.
            method: lora (cross-entropy of the text) or distill (the dense model's predictions).
            text: to learn from; the embedded calibration text when None.

        Raises:
            InputError: nothing is cut, there is no such preset or method, or another job is under way.
        """
        model, recipe = self._to_heal(preset_name, method)

        def work(job: Context) -> Forecasted:
            self._prepared(job, model, recipe, preset_name, method, text)
            assert self._forecasted is not None
            return self._forecasted

        return self.jobs.start(JobKind.FORECAST, "Asking what healing would do", work)

    def start(self, preset_name: str, method: str, text: TextChoice | None = None) -> Job:
        """Heal the current cuts (as a job), and put the result into the recipe as one step that can be undone.

        Cancelled during the training, the best state so far is kept; before it, nothing changes. The arguments and
        errors are those of `forecast`; a text that shares a document with the measured one fails the job.
        """
        model, recipe = self._to_heal(preset_name, method)

        def work(job: Context) -> HealedCuts:
            from surgery.healing.healer import heal_of
            from surgery.training import results

            healer = self._prepared(job, model, recipe, preset_name, method, text)

            def publish(progress: Progress) -> None:
                job.partial(progress)
                with self.state.lock:
                    self.state.changed()
                job.report(progress.step / progress.steps, f"Step {progress.step} of {progress.steps}")

            healed = healer.run(publish, job.stop)
            if not healed.outcome.steps:
                raise Cancelled("Cancelled.")
            results.remember(healed.recipe, healed.adapter, healed.student, healed.report())
            edit = heal_of(healed.recipe)
            result = HealedCuts(model.loaded.fingerprint, cuts_of(recipe), edit, healed.outcome)
            self._finish(result)
            return result

        with self.state.lock:
            job = self.jobs.start(JobKind.HEAL, "Healing", work)
            self._healed = None
            return job

    def shown(self) -> HealView:
        """What is known of the cuts in force."""
        job, editor, structure = self.jobs.job, self.state.editor, self.state.structure
        training = job is not None and job.kind is JobKind.HEAL and not job.over
        edits = editor.history.current.edits if editor is not None else ()
        asked, healed, file = self._forecasted, self._healed, self._adapter
        return HealView(
            progress=job.partial if job and training else None,
            forecast=asked.forecast if asked and editor and self._cuts() == asked.cuts else None,
            outcome=healed.outcome if healed and healed.edit in edits else None,
            adapter=file if file and structure and file.healing == structure.healing else None,
        )

    def _to_heal(self, preset_name: str, method: str) -> tuple[OpenModel, Recipe]:
        from surgery.healing.presets import PRESETS

        model, recipe = self.state.need_model(), self.state.need_editor().history.current
        if preset_name not in PRESETS:
            raise InputError(f"There is no preset {preset_name!r}: use one of {', '.join(PRESETS)}.")
        self.state.bench.limits.check_minutes(PRESETS[preset_name].minutes)
        if method not in HEAL_METHODS:
            raise InputError(f"There is no way of healing {method!r}: use one of {', '.join(HEAL_METHODS)}.")
        if not cuts_of(recipe):
            raise InputError(NOTHING_CUT)
        return model, recipe.with_edits(*Choices.of_edits(cuts_of(recipe)).edits())

    def _prepared(
        self, job: Context, model: OpenModel, recipe: Recipe, preset_name: str, method: str, text: TextChoice | None
    ) -> Healer:
        """A healer with the steps that the preset's time allows here; the forecast is shown."""
        from surgery.healing.healer import Healer, heal_of, measure_speed, with_heal
        from surgery.healing.presets import PRESETS, forecast, timed
        from surgery.recipe.texts import text_reference
        from surgery.training.data import check_apart, largest_count, load_healing_text
        from surgery.training.precision import best_precision

        preset, chosen = PRESETS[preset_name], text or TextChoice()
        job.report(0.0, "Reading the healing text")
        tokenizer = model.loaded.tokenizer
        window = within(HEALING_WINDOW, model.architecture.context_length)
        if chosen.content is None:
            count = largest_count(tokenizer, chosen.source, window, MOST_WINDOWS)
        else:
            given_text = Text(chosen.source, chosen.content)
            count = min(make_windows(tokenizer, given_text, window).count, MOST_WINDOWS)
        healing = load_healing_text(
            tokenizer, chosen.source, window, count, content=chosen.content, model=model.architecture
        )
        check_apart(healing.documents, model.text(self.state.text).content)
        precision = best_precision(device_of(model.loaded.model))
        settings = {"steps": 1, "evaluate_every": 1, "precision": precision, **preset.settings}
        if method == "distill":
            settings["distillation"] = {}
        reference = text_reference(healing.windows).model_dump()
        given = {"op": "heal", "method": method, "text": reference, **settings}
        edit = heal_of(recipe.with_edits(*recipe.edits, given))
        texts = list(self.state.texts.values())

        def healer_for(edit: Heal) -> Healer:
            return Healer(model, with_heal(recipe, edit), healing, texts, report=job.report, stop=job.stop)

        job.report(0.0, "Measuring the speed of a step")
        first = healer_for(edit)
        found = forecast(first, measure_speed(first), preset.minutes)
        self._keep_forecast(Forecasted(cuts_of(recipe), found))
        job.report(0.0, found.words)
        return healer_for(timed(edit, found))

    def _keep_forecast(self, found: Forecasted) -> None:
        with self.state.lock:
            self._forecasted = found
            self.state.changed()

    def _cuts(self) -> tuple[Edit, ...]:
        """The cuts in force."""
        return Choices.of_edits(cuts_of(self.state.need_editor().history.current)).edits()

    def _finish(self, result: HealedCuts) -> None:
        """Put a healing into the recipe if its cuts are still those that were healed."""
        with self.state.lock:
            model, cuts = self.state.need_model(), self._cuts()
            self._healed = result
            if model.loaded.fingerprint != result.fingerprint or cuts != result.cuts:
                self.state.error = "The cuts changed during the healing, so it was left out of the recipe: heal again."
                self.state.changed()
                return
            self.edit.apply(lambda editor: editor.change(lambda choices: choices.replaced(("heal",), (result.edit,))))


def cuts_of(recipe: Recipe) -> tuple[Edit, ...]:
    """A recipe's edits that a healing repairs: all but healings and what stores the weights."""
    return tuple(edit for edit in recipe.edits if edit.op not in AFTER_CUTS)
