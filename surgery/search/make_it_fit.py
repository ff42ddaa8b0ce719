"""Make it fit: weight types and smaller models that fit a device, measured, the smallest loss first.

Candidates are the recipe as it is in each type, and, in each type in which that does not fit, the smallest cut of the
source model that does: narrower MLPs with refitted output projections, and fewer blocks with a linear patch. Which of
them is best is not predicted but measured, on the model as it would be stored.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain, islice, zip_longest
from threading import Event
from typing import Any

from analysis.text import Windows
from surgery.common.progress import Report, part_of, raise_if_set, silent
from surgery.errors import Cancelled, InputError
from surgery.evaluation.estimate import Estimate
from surgery.fit.devices import Device
from surgery.fit.fit import Fit, fit
from surgery.fit.kv_cache import check_kv_type
from surgery.fit.room import Room, room_on
from surgery.fit.weight_types import type_of_edit
from surgery.pruning.budget import Budget, Rules
from surgery.pruning.suggest import suggest
from surgery.recipe.edits import Compensate, Eora, How
from surgery.recipe.recipe import Recipe
from surgery.recipe.storage import Quantize
from surgery.recipe.texts import TextChoice, text_reference
from surgery.structure.resolve import resolve
from surgery.structure.structure import Structure
from surgery.workbench.open_model import OpenModel

LADDER = ("F16", "Q8_0", "Q6_K", "Q5_K_M", "Q4_K_M", "IQ4_NL", "Q3_K_M", "Q2_K")
"""GGUF types from the least to the most compressed."""
DIVISOR = 32
"""Widths are multiples of the smallest block of the quantised types."""
STEPS = 200
"""Sizes of cuts that are told apart: steps of half a percent of the parameters."""
CHOOSING = 0.15
"""Share of the work that choosing the candidates is reported as."""


@dataclass(frozen=True)
class FitOptions:
    """How far to look.

    `limit` candidates are measured. A cut takes at most the share `largest_cut` of the parameters: a model of which
    more is gone is not a language model any more without training.
    """

    types: Sequence[str] = LADDER
    limit: int = 6
    largest_cut: float = 0.5


@dataclass(frozen=True)
class Option:
    """A model that fits, as it would be stored, and what was measured of it."""

    how: str
    """`as it is`, `narrower MLPs` or `fewer blocks`."""
    type: str
    recipe: Recipe
    """Complete, with its quantisation and compensation."""
    parameters: int
    fit: Fit
    estimate: Estimate

    def document(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {
            "how": self.how,
            "type": self.type,
            "parameters": self.parameters,
            "weights_bytes": self.fit.weights_bytes,
            "needed_bytes": self.fit.needed_bytes,
            "spare_bytes": self.fit.spare_bytes,
            "decode_tokens_per_second": self.fit.decode_tokens_per_second,
            **self.estimate.document(),
            "recipe": self.recipe.document(),
        }


@dataclass(frozen=True)
class Fitting:
    """What was found, the smallest measured loss first."""

    room: Room
    options: tuple[Option, ...] = ()
    refused: tuple[str, ...] = ()
    """Why some candidates could not be tried, one sentence each."""
    complete: bool = True
    """False when it was stopped before all candidates were measured."""

    def document(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {
            "room": self.room.document(),
            "options": [option.document() for option in self.options],
            "refused": list(self.refused),
            "complete": self.complete,
        }


@dataclass(frozen=True)
class _Candidate:
    how: str
    kind: Quantize
    recipe: Recipe
    structure: Structure
    fit: Fit


@dataclass
class _Search:
    """All that choosing the candidates depends on, and what was refused on the way."""

    model: OpenModel
    base: Recipe
    device: Device
    context: int
    kv_type: str
    options: FitOptions
    calibration: Windows
    report: Report
    stop: Event | None
    refused: list[str] = field(default_factory=list)

    def candidates(self) -> list[_Candidate]:
        """At most `limit`: by turns one that needs no cut (the least compressed first), one by a narrower and one by
        a shallower model (the smallest cut first)."""
        whole = [self._candidate("as it is", self.base.edits, Quantize(type=name)) for name in self.options.types]
        too_large = [candidate.kind for candidate in whole if not candidate.fit.fits]
        cuts = chain.from_iterable(self._cuts(kind) for kind in reversed(too_large))
        rows = zip_longest((candidate for candidate in whole if candidate.fit.fits), cuts)
        found = (candidate for row in rows for candidate in row if candidate is not None and self._possible(candidate))
        return list(islice(found, self.options.limit))

    def _cuts(self, kind: Quantize) -> Iterator[_Candidate]:
        most = self.options.largest_cut
        blocks = len(self.model.architecture.blocks)
        ways: tuple[tuple[str, How, int, Callable[[int], Recipe]], ...] = (
            ("narrower MLPs", "least_squares", int(STEPS * most), self._narrower),
            ("fewer blocks", "linear_patch", int(blocks * most), self._shallower),
        )
        for how, compensation, largest, made in ways:
            found = self._smallest(how, compensation, largest, made, kind)
            if found is not None:
                yield found

    def _smallest(
        self, how: str, compensation: How, largest: int, made: Callable[[int], Recipe], kind: Quantize
    ) -> _Candidate | None:
        """The smallest cut that fits, by bisection: a larger cut needs less."""
        low, high, best, obstacle = 1, largest, None, ""
        while low <= high:
            raise_if_set(self.stop)
            middle = (low + high) // 2
            try:
                found = self._compensated(how, compensation, made(middle), kind)
            except InputError as error:  # the method cannot take so much: smaller cuts are left
                obstacle, high = str(error), middle - 1
                continue
            if found.fit.fits:
                best, high = found, middle - 1
            else:
                low = middle + 1
        if best is None:
            self._refuse(f"{how} in {kind.type}: {obstacle or 'a cut that large leaves no language model.'}")
        return best

    def _compensated(self, how: str, compensation: How, recipe: Recipe, kind: Quantize) -> _Candidate:
        """With its compensation, or without where the model's family cannot have it."""
        refit = Compensate(how=compensation, text=text_reference(self.calibration))
        try:
            self.model.resolve(recipe.with_edits(*recipe.edits, refit))
        except InputError as error:
            self._refuse(f"{how} without a compensation: {error}")
            return self._candidate(how, recipe.edits, kind)
        return self._candidate(how, (*recipe.edits, refit), kind)

    def _candidate(self, how: str, edits: Sequence[Any], kind: Quantize) -> _Candidate:
        recipe = self.base.with_edits(*edits, kind)
        structure = resolve(self.model.architecture, recipe)
        found = fit(structure, self.device, self.context, type_of_edit(kind), self.kv_type)
        return _Candidate(how, kind, recipe, structure, found)

    def _possible(self, candidate: _Candidate) -> bool:
        """Whether llama.cpp can run it: what it cannot is no option."""
        try:
            self.model.resolve(candidate.recipe)
        except InputError as error:
            self._refuse(f"{candidate.how}: {error}")
            return False
        return True

    def _refuse(self, sentence: str) -> None:
        if sentence not in self.refused:
            self.refused.append(sentence)

    def _narrower(self, steps: int) -> Recipe:
        parameters = self.model.architecture.parameters
        budget = Budget(params=str(int(parameters * (1 - steps / STEPS))), divisor=DIVISOR)
        return self._suggested("cfsp_fine", budget, Rules(allocation="cfsp"))

    def _shallower(self, blocks: int) -> Recipe:
        return self._suggested("block_influence", Budget(blocks=blocks), Rules(protect_first=1, protect_last=1))

    def _suggested(self, method: str, budget: Budget, rules: Rules) -> Recipe:
        return suggest(self.model, method, budget, rules, self.calibration, self.stop, self.report)


def make_it_fit(
    model: OpenModel,
    recipe: Recipe,
    device: Device,
    context: int,
    kv_type: str = "F16",
    options: FitOptions = FitOptions(),
    windows: Windows | None = None,
    calibration: TextChoice = TextChoice(windows=16, purpose="calibration", shorten=True),
    report: Report = silent,
    stop: Event | None = None,
    found: Callable[[Fitting], None] = lambda fitting: None,
) -> Fitting:
    """Types and smaller models that fit a device, the smallest measured loss first.

    Args:
        recipe: what it is to be made of; its quantisation is left out, since types are what is looked for.
        context: tokens of context.
        windows: the text that is measured on; the embedded one when None.
        calibration: the text that cuts are chosen and compensated on.
        report: progress; may raise `Cancelled` to stop.
        stop: ends the work. What has been measured is returned all the same.
        found: told after every measurement.

    Raises:
        InputError: an unknown type, no context, or a limit below 1.
    """
    if options.limit < 1 or not 0 < options.largest_cut < 1:
        raise InputError("Measure at least 1 option, and let a cut take more than nothing and less than everything.")
    check_kv_type(kv_type)
    base = recipe.with_edits(*(edit for edit in recipe.edits if not isinstance(edit, Quantize | Eora)))
    room = room_on(model.resolve(base), device, context, options.types[0], kv_type)
    known = Fitting(room, complete=False)
    try:
        windows = model.windows(TextChoice(shorten=True)) if windows is None else windows
        early, cut = part_of(report, 0.0, CHOOSING), model.windows(calibration)
        search = _Search(model, base, device, context, kv_type, options, cut, early, stop)
        candidates = search.candidates()
        known = Fitting(room, (), tuple(search.refused), complete=False)
        for position, candidate in enumerate(candidates):
            if stop is not None and stop.is_set():
                return known
            start = CHOOSING + (1 - CHOOSING) * position / len(candidates)
            end = CHOOSING + (1 - CHOOSING) * (position + 1) / len(candidates)
            report(start, f"Measuring {candidate.how} in {candidate.kind.type}")
            option = _measured(model, candidate, windows, calibration, part_of(report, start, end), stop)
            best = sorted((*known.options, option), key=lambda each: each.estimate.nll)
            known = Fitting(room, tuple(best), known.refused, position + 1 == len(candidates))
            found(known)
    except Cancelled:
        return known
    return Fitting(room, known.options, known.refused)


def _measured(
    model: OpenModel,
    candidate: _Candidate,
    windows: Windows,
    calibration: TextChoice,
    report: Report,
    stop: Event | None,
) -> Option:
    done = model.complete(candidate.structure, [calibration], report, stop)
    estimate = model.evaluator.measure(done.structure, windows, stop)
    kind, structure = candidate.kind.type, candidate.structure
    return Option(candidate.how, kind, candidate.recipe, structure.parameters, candidate.fit, estimate)
