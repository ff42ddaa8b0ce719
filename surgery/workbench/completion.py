"""Completing a structure: what a recipe leaves to be computed.

These are compensations, the merging of what a healing has learnt, quantisation, and the low-rank repair.
Each stage works on what the one before it gave. What is costly is done once and remembered by content.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from threading import Event
from typing import Any

from analysis.text import Windows
from surgery.calibration.moments import Moments, input_moments
from surgery.checkpoints.planned import Planner
from surgery.common.cache import ByteCache
from surgery.common.progress import Report, part_of, silent
from surgery.compensation.compensator import Compensated, Compensator
from surgery.evaluation.evaluator import Evaluator
from surgery.formats.format import Sources
from surgery.formats.table import format_of
from surgery.gguf.plan import GgufPlan
from surgery.models.loading import Loaded
from surgery.quantization.eora import repair
from surgery.quantization.quantizer import stored_bytes
from surgery.recipe.base import TextReference
from surgery.structure.structure import Structure
from surgery.training import adapters, results

TextOf = Callable[[TextReference], Windows]
"""Gives the windows that an edit names; raises `RecipeError` where they are not at hand."""
COMPENSATED_CACHE = 512 * 2**20
CALIBRATED_CACHE = 512 * 2**20
SMALL_CACHE = 64 * 2**20
PLAN_BYTES = 4 * 2**20
"""Roughly what a plan of a GGUF file holds, most of it the tokenizer."""
PENDING: dict[str, Any] = {"compensations": (), "healing": None, "quantize": None, "eora": None}
"""What a structure leaves to be computed, in the order of the stages: fields of it, with their empty values."""


@dataclass(frozen=True)
class Means:
    """What the work may use: texts, folders with results of healings, progress, and a flag that ends it."""

    text_of: TextOf
    report: Report
    stop: Event | None
    folders: Sequence[Path] = ()


@dataclass(frozen=True)
class Stage:
    """One kind of pending work. `asked` is the structure that is completed, `before` the result of earlier stages."""

    field: str
    """The field of a structure that names the work."""
    cache: ByteCache[Compensated]
    compute: Callable[[Structure, Compensated, Means], Compensated]
    """The result for `asked`, where nothing but this work is pending in the second argument."""
    without_pass: Callable[[Structure, Compensated], Compensated | None] = lambda asked, before: None
    """The result where it is cheap, and None elsewhere. It is not remembered."""

    def key(self, asked: Structure) -> str:
        """Identity of the result: `asked` without the work of later stages."""
        later = list(PENDING)[list(PENDING).index(self.field) + 1 :]
        return replace(asked, **{name: PENDING[name] for name in later}).key

    def ready(self, asked: Structure, before: Compensated) -> Compensated | None:
        """The result, if it needs no pass over a text that has not been made. Errors: see `Completer.known`."""
        return self.cache.get(self.key(asked)) or self.without_pass(asked, self._next(asked, before))

    def run(self, asked: Structure, before: Compensated, means: Means) -> Compensated:
        """Compute the result, and remember it unless it is cheap from now on. Errors: see `Completer.complete`."""
        before = self._next(asked, before)
        done = self.compute(asked, before, means)
        if self.without_pass(asked, before) is None:
            self.cache.put(self.key(asked), done, done.bytes + stored_bytes(done.structure))
        return done

    def _next(self, asked: Structure, before: Compensated) -> Compensated:
        return replace(before, structure=replace(before.structure, **{self.field: getattr(asked, self.field)}))


class Completer:
    """Completes structures of one model."""

    def __init__(self, loaded: Loaded, evaluator: Evaluator) -> None:
        self.evaluator = evaluator
        self.compensator = Compensator(evaluator.runner)
        self.planner = Planner(loaded)
        self._plans: ByteCache[GgufPlan] = ByteCache(SMALL_CACHE)
        self._moments: ByteCache[Moments] = ByteCache(SMALL_CACHE)
        calibrated: ByteCache[Compensated] = ByteCache(CALIBRATED_CACHE)
        self._stages = (
            Stage("compensations", ByteCache(COMPENSATED_CACHE), self._compensate),
            Stage("healing", ByteCache(COMPENSATED_CACHE), self._heal),
            Stage("quantize", calibrated, self._quantise, self._of_known_moments),
            Stage("eora", calibrated, self._repair),
        )

    def complete(
        self, structure: Structure, text_of: TextOf, report: Report, stop: Event | None, folders: Sequence[Path] = ()
    ) -> Compensated:
        """A structure with nothing pending; the result of a healing may be in one of the `folders`.

        Raises:
            RecipeError: a text or the result of a healing is not at hand, or no file can express the structure.
        """
        means = Means(text_of, report, stop, folders)
        done, left = self._reached(structure)
        for stage in left:
            done = stage.ready(structure, done) or stage.run(structure, done, means)
        return done

    def known(self, structure: Structure) -> Compensated | None:
        """The same, if it needs no pass over a text that has not been made.

        Raises:
            RecipeError: no file can express the structure.
        """
        done, left = self._reached(structure)
        return None if left else done

    def _reached(self, structure: Structure) -> tuple[Compensated, list[Stage]]:
        """The furthest result that needs no pass over a text, and the stages that are left."""
        left = [stage for stage in self._stages if getattr(structure, stage.field)]
        done = Compensated(replace(structure, **PENDING) if left else structure, ())
        for position in reversed(range(len(left))):
            known = left[position].cache.get(left[position].key(structure))
            if known is not None:
                done, left = known, left[position + 1 :]
                break
        while left and (known := left[0].ready(structure, done)) is not None:
            done, left = known, left[1:]
        return done, left

    def trained_over(self, structure: Structure, text_of: TextOf, report: Report, stop: Event | None) -> Structure:
        """What a healing trains: the structure as it is before it, with the linears of its blocks quantised if the
        healing says so (QLoRA quantises nothing else). Errors: as `complete`."""
        assert structure.healing is not None  # asked only of structures with one
        before = replace(structure, healing=None, quantize=structure.healing.edit.base, eora=None)
        return replace(self.complete(before, text_of, report, stop).structure, outer=())

    def plan(self, structure: Structure) -> GgufPlan:
        """The GGUF file of a structure, before it is written.

        Raises:
            RecipeError: no checkpoint can express it.
            UnsupportedArchitecture: llama.cpp has nothing that does the same.
        """
        key = structure.floating_shape.key
        known = self._plans.get(key)
        if known is None:
            known = GgufPlan(self.planner.plan(structure))
            self._plans.put(key, known, PLAN_BYTES)
        return known

    def moments(
        self,
        structure: Structure,
        text: TextReference,
        text_of: TextOf,
        report: Report = silent,
        stop: Event | None = None,
    ) -> Moments:
        """Input moments of an edited, unquantised model on a text. Raises RecipeError: the text is not at hand."""
        key = _moments_key(structure, text)
        known = self._moments.get(key)
        if known is None:
            known = input_moments(self.evaluator, structure.floating, text_of(text), report, stop)
            self._moments.put(key, known, sum(4 * values.numel() for parts in known for values in parts.values()))
        return known

    def _compensate(self, asked: Structure, before: Compensated, means: Means) -> Compensated:
        windows = means.text_of(asked.compensations[0].text)
        return self.compensator.compute(before.structure, windows, means.report, means.stop)

    def _heal(self, asked: Structure, before: Compensated, means: Means) -> Compensated:
        assert asked.healing is not None  # it is pending
        adapter = results.find(asked.healing, means.folders)
        trained = self.trained_over(before.structure, means.text_of, means.report, means.stop)
        return replace(before, structure=adapters.merge(self.evaluator.runner_of(trained), trained, adapter))

    def _quantise(self, asked: Structure, before: Compensated, means: Means) -> Compensated:
        sources = self._sources(means.text_of, means.report, means.stop)
        report = part_of(means.report, 0.0, 0.6 if asked.eora else 1.0)
        done = format_of(asked.quantize).quantise(before.structure, sources, report, means.stop)
        return replace(before, structure=done)

    def _of_known_moments(self, asked: Structure, before: Compensated) -> Compensated | None:
        """The quantised structure, where its format needs at most moments that are known."""
        edit, structure = asked.quantize, before.structure
        assert edit is not None  # it is pending
        known = edit.text is None or self._moments.get(_moments_key(structure, edit.text)) is not None
        if not format_of(edit).one_file or not known:
            return None
        return replace(before, structure=format_of(edit).quantise(structure, self._sources(_no_text, silent, None)))

    def _repair(self, asked: Structure, before: Compensated, means: Means) -> Compensated:
        assert asked.eora is not None  # it is pending
        windows, report = means.text_of(asked.eora.text), part_of(means.report, 0.6, 1.0)
        done = repair(self.evaluator.runner, before.structure, windows, report, means.stop)
        return replace(before, structure=done)

    def _sources(self, text_of: TextOf, report: Report, stop: Event | None) -> Sources:
        """What formats quantise a structure by."""
        moments = partial(self.moments, text_of=text_of, report=report, stop=stop)
        return Sources(self.evaluator.runner, self.plan, moments, text_of)


def _moments_key(structure: Structure, text: TextReference) -> str:
    return f"{structure.floating.key}|{text.model_dump_json()}"


def _no_text(wanted: TextReference) -> Windows:
    raise ValueError(f"the moments on {wanted.source} should be known")
