"""Completing a structure: what a recipe leaves to be computed.

These are compensations, the merging of what a healing has learnt, quantisation, and the low-rank repair.
Each stage works on what the one before it gave. What is costly is done once and remembered by content.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from threading import Event

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


class Completer:
    """Completes structures of one model.

    Args:
        loaded: the model; never changed.
        evaluator: of the model.
    """

    def __init__(self, loaded: Loaded, evaluator: Evaluator) -> None:
        self.evaluator = evaluator
        self.compensator = Compensator(evaluator.runner)
        self.planner = Planner(loaded)
        self._compensated: ByteCache[Compensated] = ByteCache(COMPENSATED_CACHE)
        self._healed: ByteCache[Structure] = ByteCache(COMPENSATED_CACHE)
        self._plans: ByteCache[GgufPlan] = ByteCache(SMALL_CACHE)
        self._moments: ByteCache[Moments] = ByteCache(SMALL_CACHE)
        self._calibrated: ByteCache[Compensated] = ByteCache(CALIBRATED_CACHE)
        """Complete structures whose blocks hold their own codes or a repair, by the key of what was asked for."""

    def complete(
        self,
        structure: Structure,
        text_of: TextOf,
        report: Report,
        stop: Event | None,
        folders: Sequence[Path] = (),
    ) -> Compensated:
        """A structure with nothing pending; the result of a healing may be in one of the `folders`.

        Raises:
            RecipeError: a text or the result of a healing is not at hand, or no file can express the structure.
            Cancelled: `stop` was set.
        """
        known = self._calibrated.get(structure.key)
        if known is not None:
            return known
        done = self._compensate(structure, text_of, report, stop)
        healed = self._heal(structure, done.structure, text_of, report, stop, folders)
        done = replace(done, structure=self._quantise(healed, text_of, report, stop))
        if _is_calibrated(structure):
            self._calibrated.put(structure.key, done, done.bytes + stored_bytes(done.structure))
        return done

    def known(self, structure: Structure) -> Compensated | None:
        """The same, if it needs no pass over a text that has not been made.

        Raises:
            RecipeError: no file can express the structure.
        """
        if _is_calibrated(structure):
            return self._calibrated.get(structure.key)
        edit = structure.quantize
        before = replace(structure, healing=None, quantize=None, eora=None)
        known = self._compensated.get(before.key) if before.compensations else Compensated(before, ())
        if known is not None and structure.healing is not None:
            healed = self._healed.get(replace(structure, quantize=None, eora=None).key)
            known = None if healed is None else replace(known, structure=healed)
        if known is None or edit is None:
            return known
        if edit.text is not None and self._moments.get(_moments_key(known.structure, edit.text)) is None:
            return None
        wanted = replace(known.structure, quantize=edit)
        return replace(known, structure=format_of(edit).quantise(wanted, self._sources(_no_text, silent, None)))

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
        report: Report = lambda share, words: None,
        stop: Event | None = None,
    ) -> Moments:
        """Input moments of an edited, unquantised model on a text.

        Raises:
            RecipeError: the text is not at hand.
            Cancelled: `stop` was set.
        """
        floating = structure.floating
        key = _moments_key(floating, text)
        known = self._moments.get(key)
        if known is None:
            known = input_moments(self.evaluator, floating, text_of(text), report, stop)
            self._moments.put(key, known, sum(4 * values.numel() for parts in known for values in parts.values()))
        return known

    def _compensate(self, structure: Structure, text_of: TextOf, report: Report, stop: Event | None) -> Compensated:
        """Only the compensations; the rest stays pending."""
        before = replace(structure, healing=None, quantize=None, eora=None)
        if not before.compensations:
            return Compensated(structure, ())
        known = self._compensated.get(before.key)
        if known is None:
            known = self.compensator.compute(before, text_of(before.compensations[0].text), report, stop)
            self._compensated.put(before.key, known, known.bytes)
        done = replace(known.structure, healing=structure.healing, quantize=structure.quantize, eora=structure.eora)
        return replace(known, structure=done)

    def trained_over(self, structure: Structure, text_of: TextOf, report: Report, stop: Event | None) -> Structure:
        """What a healing trains: the structure as it is before it, with the linears of its blocks quantised if the
        healing says so (QLoRA quantises nothing else).

        Raises:
            RecipeError: as `complete`.
        """
        assert structure.healing is not None  # asked only of structures with one
        compensated = self._compensate(structure, text_of, report, stop).structure
        before = replace(compensated, healing=None, quantize=structure.healing.edit.base, eora=None)
        return replace(self._quantise(before, text_of, report, stop), outer=())

    def _heal(
        self,
        asked: Structure,
        structure: Structure,
        text_of: TextOf,
        report: Report,
        stop: Event | None,
        folders: Sequence[Path],
    ) -> Structure:
        """A structure whose compensations are computed, with what its healing has learnt merged into it.

        Args:
            asked: the structure with its compensations pending, by whose key the result is remembered.
            structure: the same with them computed.
        """
        if structure.healing is None:
            return structure
        key = replace(asked, quantize=None, eora=None).key
        known = self._healed.get(key)
        if known is None:
            adapter = results.find(structure.healing, folders)
            before = self.trained_over(structure, text_of, report, stop)
            known = adapters.merge(self.evaluator.runner_of(before), before, adapter)
            self._healed.put(key, known, Compensated(known, ()).bytes)
        return replace(known, quantize=structure.quantize, eora=structure.eora)

    def _quantise(self, structure: Structure, text_of: TextOf, report: Report, stop: Event | None) -> Structure:
        """A structure whose compensations are computed, quantised."""
        eora, sources = structure.eora, self._sources(text_of, report, stop)
        inside = part_of(report, 0.0, 0.6 if eora else 1.0)
        structure = format_of(structure.quantize).quantise(structure, sources, inside, stop)
        if eora is not None:
            structure = repair(sources.runner, structure, text_of(eora.text), part_of(report, 0.6, 1.0), stop)
        return structure

    def _sources(self, text_of: TextOf, report: Report, stop: Event | None) -> Sources:
        """What formats quantise a structure by."""
        moments = partial(self.moments, text_of=text_of, report=report, stop=stop)
        return Sources(self.evaluator.runner, self.plan, moments, text_of)


def _is_calibrated(structure: Structure) -> bool:
    """Whether completing it gives blocks that hold codes of their own, or a repair."""
    edit = structure.quantize
    return structure.eora is not None or (edit is not None and not format_of(edit).one_file)


def _moments_key(structure: Structure, text: TextReference) -> str:
    return f"{structure.floating.key}|{text.model_dump_json()}"


def _no_text(wanted: TextReference) -> Windows:
    raise ValueError(f"the moments on {wanted.source} should be known")
