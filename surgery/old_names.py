"""Names that model cards, the README and the page once told people to import, and where the objects are now."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

MOVED = {
    "surgery.budget": {"Budget": "surgery.pruning.budget", "Rules": "surgery.pruning.budget"},
    "surgery.recipe": {"Recipe": "surgery.recipe.recipe"},
    "surgery.ship_weights": {"ShipOptions": "surgery.shipping.weights"},
    "surgery.shipping": {"ship": "surgery.shipping.ship_folder"},
    "surgery.suggestion": {"suggest": "surgery.pruning.suggest"},
    "surgery.workbench": {"TextChoice": "surgery.recipe.texts", "Workbench": "surgery.workbench.workbench"},
}
"""By the module that was printed: each name, and the module that defines it today."""


def lookup(module: str, names: dict[str, str]) -> Callable[[str], Any]:
    """A module's `__getattr__` that imports a name's module when the name is first asked for.

    Args:
        module: whose names they are, for the error.
        names: by name, the module that defines it.
    """

    def get(name: str) -> Any:
        if name not in names:
            raise AttributeError(f"module {module!r} has no attribute {name!r}")
        return getattr(importlib.import_module(names[name]), name)

    return get


class _Moved(ModuleType):
    """A module that is no file any more and still answers for its printed names."""

    def __getattr__(self, name: str) -> Any:
        return lookup(self.__name__, MOVED[self.__name__])(name)


def install() -> None:
    """Let the import statements of the table work. Imports nothing but this module."""
    for module in ("surgery.budget", "surgery.ship_weights", "surgery.suggestion"):
        package, _, name = module.rpartition(".")
        setattr(sys.modules[package], name, sys.modules.setdefault(module, _Moved(module)))
