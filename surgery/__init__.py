"""Model Surgery without the page: `from surgery import Workbench, Recipe, suggest`. Importing it loads no torch."""

from __future__ import annotations

from surgery.old_names import install, lookup

PUBLIC = {
    "Budget": "surgery.pruning.budget",
    "Loaded": "surgery.models.loading",
    "OpenModel": "surgery.workbench.open_model",
    "Recipe": "surgery.recipe.recipe",
    "Rules": "surgery.pruning.budget",
    "Session": "surgery.session.session",
    "ShipOptions": "surgery.shipping.weights",
    "TextChoice": "surgery.recipe.texts",
    "Workbench": "surgery.workbench.workbench",
    "load": "surgery.models.loading",
    "scan": "surgery.evaluation.scan",
    "ship": "surgery.shipping.ship_folder",
    "suggest": "surgery.pruning.suggest",
    "verify": "surgery.shipping.verify",
}
"""The public face: by name, the module that defines it. A name's module is imported when the name is first used."""

__all__ = sorted(PUBLIC)
__getattr__ = lookup(__name__, PUBLIC)
install()


def __dir__() -> list[str]:
    return sorted({*globals(), *PUBLIC})
