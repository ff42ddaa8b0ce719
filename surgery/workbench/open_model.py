"""A loaded model with everything derived from it that sessions share."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from threading import Event
from typing import Any

import torch

from analysis.gradients.collect import Gradients, collect_gradients
from analysis.importance import registry
from analysis.importance.registry import Evidence, Method
from analysis.model.runner import Runner
from analysis.statistics.collect import Statistics, collect
from analysis.text import Text, Windows, check_length, load_text, make_windows
from surgery.calibration.moments import Moments
from surgery.common.cache import ByteCache
from surgery.common.progress import Report, raise_if_set, silent
from surgery.compensation.compensator import Compensated
from surgery.errors import RecipeError
from surgery.evaluation.evaluator import Evaluator
from surgery.formats.table import format_of
from surgery.gguf.plan import GgufPlan
from surgery.models.loading import Loaded
from surgery.recipe.base import ModelReference, TextReference
from surgery.recipe.recipe import Recipe
from surgery.recipe.texts import TextChoice, within
from surgery.structure.resolve import resolve
from surgery.structure.structure import Structure
from surgery.workbench.completion import Completer

log = logging.getLogger(__name__)
SMALL_CACHE = 64 * 2**20
STATISTICS_CACHE = 256 * 2**20
GRADIENTS_CACHE = 256 * 2**20


class OpenModel:
    """A loaded model with everything derived from it that sessions share. Read-only for its users."""

    def __init__(self, loaded: Loaded) -> None:
        self.loaded = loaded
        self.architecture = loaded.architecture
        self.runner = Runner(loaded.model, loaded.architecture)
        self.evaluator = Evaluator(self.runner)
        self.completer = Completer(loaded, self.evaluator)
        self._windows: ByteCache[Windows] = ByteCache(SMALL_CACHE)
        self._statistics: ByteCache[Statistics] = ByteCache(STATISTICS_CACHE)
        self._gradients: ByteCache[Gradients] = ByteCache(GRADIENTS_CACHE)
        self._scores: ByteCache[torch.Tensor] = ByteCache(SMALL_CACHE)

    @property
    def reference(self) -> ModelReference:
        """How a recipe names this model."""
        return ModelReference(id=self.loaded.id, revision=self.loaded.revision, fingerprint=self.loaded.fingerprint)

    def recipe(self, *edits: Any) -> Recipe:
        """A recipe for this model."""
        return Recipe(model=self.reference, edits=edits)

    def resolve(self, recipe: Recipe) -> Structure:
        """The structure a recipe makes of this model.

        Raises:
            RecipeError: it does not fit this model.
            UnsupportedArchitecture: it is to be quantised as GGUF, and llama.cpp has nothing that does the same.
        """
        wanted = recipe.model.fingerprint
        if wanted is not None and wanted != self.loaded.fingerprint:
            raise RecipeError(
                f"The recipe was made for {recipe.model.id} with other weights (fingerprint {wanted}, here "
                f"{self.loaded.fingerprint}): open the model it was made for."
            )
        structure = resolve(self.architecture, recipe)
        format_of(structure.quantize).check(structure, self.gguf_plan)
        return structure

    def complete(
        self,
        structure: Structure,
        texts: Sequence[TextChoice] = (),
        report: Report = silent,
        stop: Event | None = None,
        results: Sequence[Path] = (),
    ) -> Compensated:
        """A structure with everything computed that is pending in it, see `surgery.workbench.completion`.

        Args:
            structure: as `resolve` gives it.
            texts: calibration texts that may be read besides the embedded one.
            results: folders that `heal` wrote, which may be read besides the cache folder.

        Raises:
            RecipeError: a text that an edit was chosen on is not among them, the result of a healing is nowhere, or no
                file can express the structure.
            TextError: it cannot be cut into such windows.
        """
        return self.completer.complete(structure, self._text_of(texts), report, stop, results)

    def trained_over(
        self, structure: Structure, texts: Sequence[TextChoice] = (), report: Report = silent, stop: Event | None = None
    ) -> Structure:
        """What the healing of a structure trains, see `Completer.trained_over`."""
        return self.completer.trained_over(structure, self._text_of(texts), report, stop)

    def _text_of(self, texts: Sequence[TextChoice]) -> Callable[[TextReference], Windows]:
        return lambda wanted: self.calibration(wanted, texts)

    def known_complete(self, structure: Structure) -> Compensated | None:
        """A structure with everything computed, if that needs no new pass over a text; see `Completer.known`."""
        return self.completer.known(structure)

    def moments(self, structure: Structure, text: TextReference, texts: Sequence[TextChoice] = ()) -> Moments:
        """Input moments of an edited model on a text, before quantisation; see `Completer.moments`."""
        return self.completer.moments(structure, text, self._text_of(texts))

    def gguf_plan(self, structure: Structure) -> GgufPlan:
        """The GGUF file of a structure, before it is written; see `Completer.plan`."""
        return self.completer.plan(structure)

    def calibration(self, wanted: TextReference, texts: Sequence[TextChoice] = ()) -> Windows:
        """The windows that a recipe names, from the embedded text or from one that the caller offers.

        A recipe cannot make this read a file or ask the Hub: only what is offered is opened.

        Raises:
            RecipeError: none of them is the text of that fingerprint.
        """
        for text in (TextChoice(purpose="calibration"), *texts):
            text = replace(text, window=wanted.window, shorten=False)
            windows = self.windows(replace(text, windows=1))
            if windows.text_fingerprint == wanted.fingerprint:
                return self.windows(replace(text, windows=wanted.windows, spread=wanted.spread))
        raise RecipeError(
            f"The recipe's compensation was computed on {wanted.source!r} (fingerprint {wanted.fingerprint}), which is "
            "not the text given here: name that text as the calibration text."
        )

    def text(self, choice: TextChoice) -> Text:
        """A text by its choice. Raises TextError: unreadable or empty."""
        if choice.content is not None:
            return Text("pasted", choice.content)
        tokenizer = None if choice.source == "embedded" else self.loaded.tokenizer
        return load_text(choice.source, choice.purpose, tokenizer)

    def fitted(self, choice: TextChoice) -> TextChoice:
        """The choice with windows that the model's positions allow, where it may be shortened."""
        if not choice.shorten:
            return choice
        return replace(choice, window=within(choice.window, self.architecture.context_length))

    def windows(self, choice: TextChoice) -> Windows:
        """The token windows of a text. That windows were shortened is logged.

        Raises:
            TextError: unreadable, empty or too short, or the model takes no such windows or tokens.
        """
        asked, choice = choice, self.fitted(choice)
        check_length(choice.window, self.architecture)
        text = self.text(choice)
        key = f"{text.fingerprint}|{choice.window}|{choice.windows}|{choice.spread}"
        known = self._windows.get(key)
        if known is None:
            known = make_windows(
                self.loaded.tokenizer, text, choice.window, choice.windows, choice.spread, self.architecture
            )
            if choice.window < asked.window:
                words = "The model takes at most %s tokens a window: windows have that length instead of %s."
                log.warning(words, choice.window, asked.window)
            self._windows.put(key, known, known.ids.numel() * 8)
        return known

    def statistics(self, windows: Windows, report: Report = silent) -> Statistics:
        """The analysis of some windows; done once, then remembered."""
        known = self.known_statistics(windows)
        if known is None:
            known = collect(self.runner, windows, report)
            size = sum(tensor.numel() * tensor.element_size() for tensor in known.state().values())
            self._statistics.put(windows.fingerprint, known, size)
        return known

    def known_statistics(self, windows: Windows) -> Statistics | None:
        """The analysis of some windows if it has been done."""
        return self._statistics.get(windows.fingerprint)

    def gradients(self, windows: Windows, report: Report = silent) -> Gradients:
        """The gradients on some windows; gathered once, then remembered."""
        known = self.known_gradients(windows)
        if known is None:
            known = collect_gradients(self.runner, windows, report)
            self._gradients.put(windows.fingerprint, known, known.bytes)
        return known

    def known_gradients(self, windows: Windows) -> Gradients | None:
        """The gradients on some windows if they have been gathered."""
        return self._gradients.get(windows.fingerprint)

    def evidence(self, windows: Windows | None, seed: int = 0) -> Evidence:
        """What importance methods can use: the model and what is known of the windows, if they need a text."""
        if windows is None:
            return Evidence(self.runner, seed=seed)
        return Evidence(self.runner, self.known_statistics(windows), self.known_gradients(windows), seed)

    def knows(self, method: Method, windows: Windows | None) -> bool:
        """Whether a method's scores can be had without another pass over the windows."""
        evidence = self.evidence(windows)
        return (not method.needs_statistics or evidence.statistics is not None) and (
            not method.needs_gradients or evidence.gradients is not None
        )

    def neuron_scores(
        self, method: Method, windows: Windows | None, seed: int = 0, stop: Event | None = None
    ) -> dict[int, torch.Tensor]:
        """Scores of every block's neurons, by block.

        Args:
            windows: analysed windows; may be None for methods that need no text.

        Raises:
            InputError: the windows have not been analysed, or their gradients not gathered, and the method needs it.
        """
        found = {}
        for block in self.architecture.blocks:
            raise_if_set(stop)
            if block.mlp is not None:
                found[block.index] = self.block_scores(method, windows, block.index, seed)
        return found

    def block_scores(self, method: Method, windows: Windows | None, block: int, seed: int = 0) -> torch.Tensor:
        """Scores of one block's neurons or query heads, (units,), by the method's kind; computed once.

        Raises InputError as `neuron_scores` does, or where the block has no such units.
        """
        identity = windows.fingerprint if windows is not None and method.needs_text else ""
        key = f"{method.name}|{identity}|{seed if method.needs_seed else ''}|{block}"
        known = self._scores.get(key)
        if known is None:
            known = registry.score_units(method, self.evidence(windows, seed), block)
            self._scores.put(key, known, known.numel() * 4)
        return known
