"""Making a person's model fit the device: how much room there is, and options that fit, measured."""

from __future__ import annotations

from surgery.common.jobs import Context, Job
from surgery.errors import InputError
from surgery.fit.room import Room, room_on
from surgery.fit.weight_types import type_of_edit
from surgery.search.make_it_fit import Fitting, make_it_fit
from surgery.session.ship import ShippingSession
from surgery.session.view import Fitted, Target
from surgery.structure.structure import Structure
from surgery.workbench.workbench import Workbench


class FittingSession(ShippingSession):
    """See the module.

    Args:
        bench: what all sessions share.
    """

    def __init__(self, bench: Workbench) -> None:
        super().__init__(bench)
        self._fitted: Fitted | None = None
        self._room: tuple[tuple[str, Target], Room] | None = None

    def make_it_fit(self) -> Job:
        """Look for types and smaller models that fit the target, and measure them (as a job).

        What has been measured is kept when the rest is cancelled.

        Raises:
            InputError: no model is open, or another job is under way.
        """
        model = self._need_model()
        with self._lock:
            recipe, target, text, calibration = self.recipe, self.target, self.text, self.calibration
            device = self._device

            def work(job: Context) -> Fitted:
                self._calibration_windows(model)  # the options' recipes name it

                def fitted(fitting: Fitting) -> Fitted:
                    return Fitted(model.loaded.fingerprint, target, text, recipe, fitting)

                found = make_it_fit(
                    model,
                    recipe,
                    device,
                    target.context,
                    target.kv_type,
                    windows=model.windows(text),
                    calibration=calibration,
                    report=job.report,
                    stop=job.stop,
                    found=lambda fitting: self._finish_fitting(fitted(fitting)),
                )
                self._finish_fitting(fitted(found))
                return fitted(found)

            return self._start("Making it fit", work)

    def take_option(self, number: int) -> None:
        """Make one of the found options the current recipe.

        Args:
            number: of the option, from 1.

        Raises:
            InputError: there is no such option.
        """
        with self._lock:
            options = self._fitted.fitting.options if self._fitted is not None else ()
            if not 1 <= number <= len(options):
                raise InputError("Choose one of the options from the list.")
            self.take(options[number - 1].recipe)

    def _finish_fitting(self, found: Fitted) -> None:
        with self._lock:
            self._fitted = found
            self._changed()

    def _shown_fitting(self) -> Fitted | None:
        found, model = self._fitted, self._model
        return found if found is not None and model and found.of(model, self.target, self.text) else None

    def _shown_room(self, structure: Structure | None) -> Room | None:
        """What the device has room for; worked out once for a structure and a target."""
        if structure is None:
            return None
        key = structure.key, self.target
        if self._room is None or self._room[0] != key:
            target, edit = self.target, structure.quantize
            wanted = target.type if edit is None else type_of_edit(edit)
            self._room = key, room_on(structure, self._device, target.context, wanted, target.kv_type)
        return self._room[1]
