"""The workbench: loaded models shared by all sessions, their caches, devices and jobs. One object, made by its user."""

from __future__ import annotations

import gc
from collections import OrderedDict
from threading import BoundedSemaphore, Lock
from weakref import WeakValueDictionary

import psutil

from surgery.common.jobs import JobRegistry
from surgery.common.progress import Report
from surgery.errors import DoesNotFit, InputError
from surgery.fit.devices import Devices
from surgery.models.loading import DEFAULT, Loaded, load
from surgery.recipe.presets import ReadyRecipes
from surgery.workbench.limits import Limits
from surgery.workbench.open_model import OpenModel

SHORT_OF_MEMORY = 0.15
"""Share of the machine's memory under which models that are not in use leave."""


class Workbench:
    """Everything a process shares: open models, devices, jobs.

    Args:
        most_models: models that stay open; the least recently used ones leave earlier when memory is short.
        limits: what visitors may do.
        gpu: whether models may be put on a GPU, if there is one.
    """

    def __init__(self, most_models: int = 3, limits: Limits = Limits(), gpu: bool = True) -> None:
        self.limits = limits
        self.gpu = gpu
        self.most_models = most_models
        self.devices = Devices()
        self.ready_recipes = ReadyRecipes()
        self.jobs = JobRegistry()
        self._open: OrderedDict[tuple[str, str | None], OpenModel] = OrderedDict()
        self._lock = Lock()
        self._loading = BoundedSemaphore(limits.downloads)
        self._turns: WeakValueDictionary[tuple[str, str | None], Lock] = WeakValueDictionary()

    def open(
        self,
        source: str = DEFAULT,
        revision: str | None = None,
        report: Report | None = None,
        trust_remote_code: bool = False,
    ) -> OpenModel:
        """A model, loaded once for the whole process however many ask for it. Errors: see `loading.load`."""
        if not source.strip():
            raise InputError("Name a model: `default`, a Hub id such as owner/name, a folder or a .gguf file.")
        self.limits.check_model(source)
        known = self.opened(source, revision)
        if known is not None:
            return known
        with self._lock:
            turn = self._turns.setdefault((source, revision), Lock())
        with turn, self._loading:  # one model is loaded once, and only so many at the same time
            known = self.opened(source, revision)
            if known is None:
                self._make_room()
                known = OpenModel(self._load(source, revision, report, trust_remote_code))
                with self._lock:
                    self._open[(source, revision)] = known
        return known

    def opened(self, source: str, revision: str | None = None) -> OpenModel | None:
        """The model if it is open, now the most recently used."""
        with self._lock:
            known = self._open.get((source, revision))
            if known is not None:
                self._open.move_to_end((source, revision))
            return known

    def _load(self, source: str, revision: str | None, report: Report | None, trust_remote_code: bool) -> Loaded:
        """Load; where memory is short, after the least recently used models have left one by one."""
        while True:
            try:
                return load(source, revision, report, trust_remote_code, self.gpu)
            except DoesNotFit:
                if not self._let_go():
                    raise

    def _make_room(self) -> None:
        """Let models go while there are too many or memory is short."""
        while len(self._open) >= self.most_models or _short_of_memory():
            if not self._let_go():
                return

    def _let_go(self) -> bool:
        """Close the least recently used model; False when none is open. A session that still uses it keeps it alive."""
        with self._lock:
            if not self._open:
                return False
            self._open.popitem(last=False)
        gc.collect()
        return True


def _short_of_memory() -> bool:
    memory = psutil.virtual_memory()
    return bool(memory.available < SHORT_OF_MEMORY * memory.total)
