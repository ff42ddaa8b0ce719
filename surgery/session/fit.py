"""How a person's model fits the device: sizes, the room there is, and options that fit, measured."""

from __future__ import annotations

from dataclasses import dataclass, replace

from surgery.common.jobs import Context, Job, JobKind
from surgery.errors import InputError
from surgery.fit.fit import Fit, fit
from surgery.fit.room import Room, room_on
from surgery.fit.weight_types import WeightType, type_of_edit
from surgery.recipe.recipe import Recipe
from surgery.recipe.texts import TextChoice
from surgery.search.make_it_fit import Fitting, make_it_fit
from surgery.session.edit import SessionEdit
from surgery.session.jobs import SessionJobs
from surgery.session.state import SessionState, Target
from surgery.structure.structure import Structure
from surgery.workbench.open_model import OpenModel

MOST_FITS = 400
"""Sizes of structures that are remembered."""


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


@dataclass(frozen=True)
class FitView:
    """Sizes on the device in force; None before a model is open."""

    now: Fit | None = None
    """Of the recipe in force."""
    dense: Fit | None = None
    room: Room | None = None
    """What the device has room for."""
    found: Fitted | None = None
    """Options that fit the device, if they were looked for."""


class SessionFit:
    """Works out sizes for the session's target, and looks for options that fit it."""

    def __init__(self, state: SessionState, jobs: SessionJobs, edit: SessionEdit) -> None:
        self.state, self.jobs, self.edit = state, jobs, edit
        self._fitted: Fitted | None = None
        self._room: tuple[tuple[str, Target], Room] | None = None
        self._fits: dict[tuple[str, Target, str], Fit] = {}
        jobs.takes_over(JobKind.FIT, self._finish)

    def start(self) -> Job:
        """Look for types and smaller models that fit the target, and measure them (as a job).

        What has been measured is kept when the rest is cancelled.
        """
        state = self.state
        model = state.need_model()
        with state.lock:
            recipe, target, text, calibration = self.edit.current_recipe(), state.target, state.text, state.calibration
            device = state.device

            def work(job: Context) -> Fitted:
                state.calibration_windows(model)  # the options' recipes name it

                def fitted(fitting: Fitting) -> Fitted:
                    return Fitted(model.loaded.fingerprint, target, text, recipe, fitting)

                found = make_it_fit(
                    model, recipe, device, target.context, target.kv_type, windows=model.windows(text),
                    calibration=calibration, report=job.report, stop=job.stop,
                    found=lambda fitting: self._finish(fitted(fitting)),
                )  # fmt: skip
                self._finish(fitted(found))
                return fitted(found)

            return self.jobs.start(JobKind.FIT, "Making it fit", work)

    def take_option(self, number: int) -> None:
        """Make one of the found options, numbered from 1, the current recipe; `InputError` if there is no such one."""
        with self.state.lock:
            options = self._fitted.fitting.options if self._fitted is not None else ()
            if not 1 <= number <= len(options):
                raise InputError("Choose one of the options from the list.")
            self.edit.take(options[number - 1].recipe)

    def of(self, shape: Structure) -> Fit:
        """A structure's sizes on the session's target; what a recipe quantises is counted as it says."""
        target, device = self.state.target, self.state.device
        key = (shape.key, target, device.name)
        if key not in self._fits:
            for oldest in list(self._fits)[: max(0, len(self._fits) - MOST_FITS)]:
                del self._fits[oldest]
            self._fits[key] = fit(shape, device, target.context, self._type(shape), target.kv_type)
        return self._fits[key]

    def shown(self) -> FitView:
        """Sizes, room and options for the target in force."""
        state, found = self.state, self._fitted
        structure, model = state.structure, state.model
        holds = found is not None and model is not None and found.of(model, state.target, state.text)
        return FitView(
            now=self.of(structure) if structure else None,
            dense=self.of(state.dense) if state.dense else None,
            room=self._room_for(structure) if structure else None,
            found=found if holds else None,
        )

    def _room_for(self, structure: Structure) -> Room:
        """What the device has room for; worked out once for a structure and a target."""
        target = self.state.target
        key = structure.key, target
        if self._room is None or self._room[0] != key:
            room = room_on(structure, self.state.device, target.context, self._type(structure), target.kv_type)
            self._room = key, room
        return self._room[1]

    def _type(self, shape: Structure) -> str | WeightType:
        return self.state.target.type if shape.quantize is None else type_of_edit(shape.quantize)

    def _finish(self, found: Fitted) -> None:
        with self.state.lock:
            self._fitted = found
            self.state.changed()
