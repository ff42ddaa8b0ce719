"""What the features of one session share: an open model with its recipe, texts, a target, and the one lock."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from threading import Condition
from typing import Any
from weakref import WeakMethod

from analysis.text import Windows
from surgery.errors import InputError, TextError
from surgery.recipe.texts import TextChoice
from surgery.session.editor import Editor
from surgery.structure.resolve import NAMES
from surgery.structure.structure import Part, Structure
from surgery.workbench.open_model import OpenModel
from surgery.workbench.workbench import Workbench

MOST_TEXTS = 16
"""Calibration texts of a session that its recipes may go on naming."""


@dataclass(frozen=True)
class Target:
    """Where the model is to run."""

    device: str = "raspberry-pi-5-8gb"
    context: int = 2048
    type: str = "F16"
    kv_type: str = "F16"


class Listeners:
    """Methods that are called when something happens. They are held weakly: features refer to each other, and in a
    circle the model of a closed session would stay in memory until the garbage collector runs.
    """

    def __init__(self) -> None:
        self._methods: list[WeakMethod[Callable[..., object]]] = []

    def add(self, method: Callable[..., object]) -> None:
        """Call a bound method from now on, as long as its object lives."""
        self._methods.append(WeakMethod(method))

    def call(self, *values: Any) -> None:
        """Call them all, in the order in which they were added."""
        for reference in self._methods:
            method = reference()
            if method is not None:
                method(*values)


class SessionState:
    """The shared values. Features read and write them with `lock` held, and say so by `changed`."""

    def __init__(self, bench: Workbench) -> None:
        self.bench = bench
        self.lock = Condition()
        """The only lock of a session; reentrant. Whoever waits on it is woken by every change."""
        self.version = 0
        """Raised by every change."""
        self.error = ""
        self.model: OpenModel | None = None
        self.editor: Editor | None = None
        self.dense: Structure | None = None
        self.text = TextChoice(windows=bench.limits.windows, shorten=True)
        """To measure on."""
        self.calibration = TextChoice(windows=4 * bench.limits.windows, purpose="calibration", shorten=True)
        """To analyse and to compensate on."""
        self.texts: dict[str, TextChoice] = {}
        """Calibration texts that were chosen here, by fingerprint: the ones that a compensation may be computed on."""
        self.analysed: Windows | None = None
        """Calibration windows of which the open model knows the statistics."""
        self.target = Target()
        self.device = bench.devices.get(self.target.device)
        self.locked: tuple[int, ...] = ()
        """Blocks that must stay, ascending."""
        self.on_adopt = Listeners()
        """Called with a model that is adopted, before it is measured, with the lock held."""

    @property
    def structure(self) -> Structure | None:
        """What the recipe in force makes of the model; None before one is open."""
        return self.editor.structure if self.editor is not None else None

    def need_model(self) -> OpenModel:
        """The open model; `InputError` if there is none."""
        if self.model is None:
            raise InputError("No model is open yet: wait for it to load, or open one.")
        return self.model

    def need_editor(self) -> Editor:
        """The open model's recipe and its history; `InputError` if no model is open."""
        if self.editor is None:
            raise InputError("No model is open yet: wait for it to load, or open one.")
        return self.editor

    def changed(self) -> None:
        """Raise the version and wake whoever waits on the lock, which must be held."""
        self.version += 1
        self.lock.notify_all()

    def fail(self, message: str) -> None:
        """Show an error."""
        with self.lock:
            self.error = message
            self.changed()

    def refuse_removed(self, block: int, part: Part) -> None:
        """Refuse, by an `InputError`, to narrow a part that is not there or is removed."""
        structure, blocks = self.need_editor().structure, self.need_model().architecture.blocks
        if not 0 <= block < len(blocks):
            raise InputError(f"There is no block {block}: the model has blocks 0 to {len(blocks) - 1}.")
        if getattr(blocks[block], part) is None:
            raise InputError(f"Block {block} has no {NAMES[part]} in this model.")
        if not any(spec.source == block and getattr(spec, part) for spec in structure.blocks):
            raise InputError(f"The {NAMES[part]} of block {block} is removed: bring it back first.")

    def known_analysis(self, model: OpenModel) -> Windows | None:
        """The calibration windows, if somebody has had them analysed already."""
        try:
            windows = self.calibration_windows(model)
        except TextError:
            return None
        return windows if model.known_statistics(windows) is not None else None

    def calibration_windows(self, model: OpenModel) -> Windows:
        """The windows of the calibration text, which recipes of this session may name from now on."""
        chosen = self.calibration
        windows = model.windows(chosen)
        with self.lock:
            self.texts.pop(windows.text_fingerprint, None)
            self.texts[windows.text_fingerprint] = chosen
            for oldest in list(self.texts)[:-MOST_TEXTS]:
                del self.texts[oldest]
        return windows

    def texts_for(self, structure: Structure) -> list[TextChoice]:
        """Texts that edits name and that were chosen in this session; the embedded one is always at hand."""
        named = (edit.text for edit in (*structure.compensations, structure.quantize, structure.eora) if edit)
        found = {text.fingerprint: self.texts.get(text.fingerprint) for text in named if text}
        return [text for text in found.values() if text is not None]
