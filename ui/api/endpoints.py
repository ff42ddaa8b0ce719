"""The public endpoints: a recipe in, numbers out, the documents of the command line. No session, nothing kept."""

from __future__ import annotations

import inspect
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from types import NoneType
from typing import Any, get_args, get_type_hints

import gradio as gr

from surgery.common.failure import sentence_of
from surgery.common.jobs import Context
from surgery.common.numbers import whole
from surgery.errors import Failed, InputError
from surgery.fit.fit import fit as fit_structure
from surgery.fit.kv_cache import check_kv_type
from surgery.fit.weight_types import type_of_edit, weight_type
from surgery.models.loading import DEFAULT
from surgery.pruning import catalogue
from surgery.pruning.budget import Allocation, Budget, Rules, parse_expansion_ratio
from surgery.pruning.suggest import check_request
from surgery.pruning.suggest import suggest as suggest_recipe
from surgery.recipe.recipe import Recipe
from surgery.recipe.texts import WINDOW, TextChoice
from surgery.workbench import documents
from surgery.workbench.limits import HUB_ID, hosted
from surgery.workbench.open_model import OpenModel
from surgery.workbench.workbench import Workbench
from ui.errors import refusal
from ui.inputs import LONGEST_PASTE

Document = dict[str, Any]
Elsewhere = Callable[[str, dict[str, Any]], Document]
ENDPOINTS = ("inspect", "analyze", "suggest", "evaluate", "fit")
COMPUTE = ("analyze", "suggest", "evaluate")
"""Endpoints that use the model's weights."""
TEXTS = ("embedded", "wikitext-2")


class Api:
    """The endpoints over a workbench. Paths of the server are never read, whatever a caller names."""

    def __init__(self, bench: Workbench) -> None:
        self.bench = bench
        self.limits = hosted(bench.limits)

    def inspect(self, model: str = DEFAULT, revision: str = "") -> Document:
        """Show a model's architecture: blocks, heads, widths, parameters, bytes.

        Args:
            model: `default` (the embedded SmolLM2-135M-Instruct) or a Hub id (owner/name).
            revision: branch, tag or commit of a Hub id.
        """
        return self._run("Inspecting", model, revision, lambda job, opened: documents.inspection(opened))

    def analyze(
        self, model: str = DEFAULT, text: str = "embedded", window: int = 256, windows: int = 16, revision: str = ""
    ) -> Document:
        """One pass over a text: influence of blocks, attention and MLPs, and statistics of heads.

        Args:
            model: `default` or a Hub id (owner/name).
            text: `embedded`, `wikitext-2`, `hub:owner/name`, or the text itself.
            window: tokens in a window.
            windows: how many.
            revision: branch, tag or commit of a Hub id.
        """
        choice = self._text(text, window, windows, "calibration")

        def work(job: Context, opened: OpenModel) -> Document:
            begun = time.perf_counter()
            cut = opened.windows(choice)
            evidence = documents.Evidence(opened.runner, opened.statistics(cut, job.report), None)
            return documents.analysis(opened, cut, evidence, time.perf_counter() - begun)

        return self._run("Analysing", model, revision, work)

    def suggest(
        self,
        model: str = DEFAULT,
        method: str = "block_influence",
        blocks: int = 0,
        params: str = "",
        expansion_ratio: str = "",
        allocation: str = "uniform",
        text: str = "embedded",
        window: int = 256,
        windows: int = 16,
        revision: str = "",
    ) -> Document:
        """Let a method choose what goes; returns a recipe. Give one budget.

        Args:
            model: `default` or a Hub id (owner/name).
            method: a name of the catalogue, such as block_influence or cfsp_fine.
            blocks: how many blocks or sublayers go, 0 if another budget is given.
            params: -20%, 80% or a number of parameters.
            expansion_ratio: 2.0 or 200%.
            allocation: over the blocks: uniform, cfsp, global, raw.
            text: the calibration text: `embedded`, `wikitext-2`, `hub:owner/name`, or the text itself.
            window: tokens in a window.
            windows: how many.
            revision: branch, tag or commit of a Hub id.
        """
        choice = self._text(text, window, windows, "calibration")
        ratio = parse_expansion_ratio(expansion_ratio) if expansion_ratio else None
        budget = Budget(blocks=whole(blocks, "`blocks`") or None, params=params or None, expansion_ratio=ratio)
        if allocation not in get_args(Allocation):
            raise InputError(f"allocation must be one of {', '.join(get_args(Allocation))}.")
        rules = Rules(allocation=allocation)  # type: ignore[arg-type]
        check_request(method, budget, rules)

        def work(job: Context, opened: OpenModel) -> Document:
            needs_text = catalogue.entry(method).needs_text or allocation == "cfsp"
            cut = opened.windows(choice) if needs_text else None
            return suggest_recipe(opened, method, budget, rules, cut, job.stop, job.report).document()

        return self._run("Suggesting", model, revision, work)

    def evaluate(
        self,
        model: str = DEFAULT,
        recipe: Document | None = None,
        text: str = "embedded",
        window: int = 256,
        windows: int = 4,
        revision: str = "",
    ) -> Document:
        """Measure the perplexity of a model, or of what a recipe makes of it, paired against the dense model.

        Args:
            model: `default` or a Hub id (owner/name).
            recipe: a recipe document (schema model-surgery/recipe/1), or nothing for the dense model.
            text: `embedded`, `wikitext-2`, `hub:owner/name`, or the text itself.
            window: tokens in a window.
            windows: how many.
            revision: branch, tag or commit of a Hub id.
        """
        choice = self._text(text, window, windows, "evaluation")
        wanted = Recipe.read(recipe) if recipe else None

        def work(job: Context, opened: OpenModel) -> Document:
            structure = opened.evaluator.dense
            if wanted is not None:
                structure = opened.complete(opened.resolve(wanted), (), job.report, job.stop).structure
            cut = opened.windows(choice)
            estimate = opened.evaluator.measure(structure, cut, job.stop)
            return documents.evaluation(opened, structure, cut, estimate, wanted)

        return self._run("Measuring", model, revision, work)

    def fit(
        self,
        model: str = DEFAULT,
        recipe: Document | None = None,
        device: str = "raspberry-pi-5-8gb",
        context: int = 2048,
        type: str = "",
        kv_type: str = "F16",
        revision: str = "",
    ) -> Document:
        """The memory and speed model: does it fit the device, and how fast could it run.

        Args:
            model: `default` or a Hub id (owner/name).
            recipe: a recipe document, or nothing for the dense model.
            device: an id of the device list.
            context: tokens of context.
            type: F32, F16, Q8_0, Q4_K_M ...; what the recipe says, or F16, if empty.
            kv_type: of the KV cache: F16, Q8_0, Q4_0 or F32.
            revision: branch, tag or commit of a Hub id.
        """

        names = self.bench.devices.names()
        if device not in names:
            raise InputError(f"There is no device {device[:80]!r}: use one of {', '.join(names)}.")
        whole(context, "`context` (tokens)", 1)
        check_kv_type(kv_type)
        if type:
            weight_type(type)
        wanted = Recipe.read(recipe) if recipe else None

        def work(job: Context, opened: OpenModel) -> Document:
            structure = opened.resolve(wanted or opened.recipe())
            kind = type_of_edit(structure.quantize) if structure.quantize and not type else type or "F16"
            return fit_structure(structure, self.bench.devices.get(device), context, kind, kv_type).document()

        return self._run("Fitting", model, revision, work)

    def _text(self, text: str, window: int, windows: int, purpose: Any) -> TextChoice:
        """A named text, or the text itself: never a file."""
        window, windows = whole(window, "`window` (tokens)", 2), whole(windows, "`windows`", 1)
        named = text in TEXTS or (text.startswith("hub:") and HUB_ID.fullmatch(text[4:]))
        if not named and len(text) > LONGEST_PASTE:
            raise InputError(f"The text is longer than {LONGEST_PASTE:,} characters: give a shorter one.")
        content, usual = None if named else text, window == WINDOW
        choice = TextChoice(text if named else "pasted", window, windows, purpose, content, shorten=usual)
        self.limits.check_text(choice)
        return choice

    def _run(self, title: str, model: str, revision: str, work: Callable[[Context, OpenModel], Document]) -> Document:
        """As a heavy job, in the queue of everybody."""
        self.limits.check_model(model)

        def open_and_work(job: Context) -> Document:
            return work(job, self.bench.open(model, revision or None, job.report))

        job = self.bench.jobs.submit(f"{title} for the API", open_and_work)
        job.wait()
        if job.state != "done":
            raise (InputError if job.bad_input else Failed)(job.error)
        return documents.plain(job.result)


def add_api(bench: Workbench, elsewhere: Elsewhere | None = None) -> None:
    """Offer the endpoints, inside of a `gr.Blocks`.

    Args:
        bench: what all visitors share.
        elsewhere: runs the endpoint of that name with these arguments where there is a GPU.
    """
    api = Api(bench)
    for name in ENDPOINTS:
        gr.api(endpoint(api, name, elsewhere if name in COMPUTE else None), api_name=name)


def endpoint(api: Api, name: str, elsewhere: Elsewhere | None) -> Callable[..., Document]:
    """A plain function: Gradio reads name, types and documentation from it."""
    method = getattr(api, name)

    @wraps(method)
    def call(*given: Any, **named: Any) -> Document:
        with refused_in_a_sentence():
            arguments = inspect.signature(method).bind(*given, **named).arguments
            _check_types(method, arguments)
            if elsewhere is None:
                return method(**arguments)
            api.inspect(arguments.get("model", DEFAULT), arguments.get("revision", ""))  # fetched without a GPU
            return elsewhere(name, arguments)

    return call


@contextmanager
def refused_in_a_sentence() -> Iterator[None]:
    """Turn whatever goes wrong in a block into the error that a caller is told of."""
    try:
        yield
    except gr.Error:
        raise
    except Exception as error:
        raise refusal(sentence_of(error)) from None


def _check_types(method: Callable[..., Document], arguments: dict[str, Any]) -> None:
    """The door of the API: JSON can hold any type. Raises InputError, which names the argument."""
    hints = get_type_hints(method)
    for name, value in arguments.items():
        if hints[name] is str and not isinstance(value, str):
            raise InputError(f"`{name}` must be a string.")
        if hints[name] is int:
            arguments[name] = whole(value, f"`{name}`")
        if hints[name] not in (str, int) and not isinstance(value, dict | NoneType):
            raise InputError(f"`{name}` must be a JSON object, or null.")
