"""ZeroGPU: a Space without a GPU of its own borrows one for single calls, each of which runs in another process.

What a call changes there is lost, so a recipe goes in and numbers come out: these are the endpoints. The page itself,
which keeps models and what it has computed, works on the CPU of such a Space.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from functools import cache
from typing import Any

import torch

from surgery.errors import InputError
from surgery.workbench.limits import Limits
from surgery.workbench.workbench import Workbench
from ui.api.endpoints import Api, Document, Elsewhere, refused_in_a_sentence

SECONDS = 120
"""That a call may take at most, the loading of the model included."""


def on_zero_gpu(environment: Mapping[str, str]) -> bool:
    """Whether this is a ZeroGPU Space."""
    return environment.get("SPACES_ZERO_GPU", "").lower() in ("1", "t", "true")


def borrowing(limits: Limits) -> Elsewhere:
    """What runs an endpoint on a borrowed GPU. To be called before the page is launched.

    From here on torch says that there is a GPU, in this process too, where it cannot be used.

    Raises:
        InputError: the package of ZeroGPU Spaces is not installed.
    """
    if importlib.util.find_spec("spaces") is None:
        raise InputError("A ZeroGPU Space needs the package spaces: pip install spaces.")
    import spaces  # type: ignore[import-untyped]

    @cache
    def api() -> Api:
        """Made in the other process, and used again for as long as that lives."""
        torch.set_num_threads(1)  # the threads of this process are not there, and its pool would wait for them
        return Api(Workbench(limits=limits))

    def compute(name: str, arguments: dict[str, Any]) -> Document:
        with refused_in_a_sentence():
            found: Document = getattr(api(), name)(**arguments)
        return found

    borrowed: Elsewhere = spaces.GPU(compute, duration=SECONDS)
    return borrowed
