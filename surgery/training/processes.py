"""Several processes that train together, started by accelerate or torchrun: sums over all of them."""

from __future__ import annotations

import os
from typing import Any

import torch

from surgery.errors import InputError, brief

LAUNCH = "`ACCELERATE_USE_CPU=true torchrun --nproc_per_node 2 -m surgery heal ...` (on GPUs without the variable)"
"""How several are started."""


class Processes:
    """The processes of a launch; one alone without one.

    Every process draws the same windows and takes every n-th of a step's micro-batches; gradients are summed, so that
    a step is the same however many there are.

    Raises:
        InputError: fewer found each other than the environment announces.
    """

    def __init__(self) -> None:
        self._state: Any = None
        announced = os.environ.get("WORLD_SIZE", "1")
        if announced != "1":
            from accelerate import PartialState

            try:
                self._state = PartialState(cpu=not torch.cuda.is_available())
            except Exception as error:  # accelerate's and torch's own, of whatever kind
                raise _alone(announced, brief(error)) from None
            if announced != str(self.count):  # each would take itself for the one that writes
                raise _alone(announced, f"{self.count} found each other")

    @property
    def count(self) -> int:
        """How many there are."""
        return 1 if self._state is None else int(self._state.num_processes)

    @property
    def index(self) -> int:
        """Which one this is."""
        return 0 if self._state is None else int(self._state.process_index)

    @property
    def main(self) -> bool:
        """Whether this is the one that writes files and speaks."""
        return self.index == 0

    def sum(self, values: torch.Tensor) -> torch.Tensor:
        """The sum over processes of a tensor."""
        if self._state is None:
            return values
        from accelerate.utils import reduce

        total: torch.Tensor = reduce(values.to(self._state.device), reduction="sum")
        return total.to(values.device)

    def from_main(self, value: float) -> float:
        """The main process's value."""
        return float(self.sum(torch.tensor(value if self.main else 0.0, dtype=torch.float64)))

    def wait(self) -> None:
        """Until all are here."""
        if self._state is not None:
            self._state.wait_for_everyone()


def _alone(announced: str, reason: str) -> InputError:
    return InputError(
        f"WORLD_SIZE announces {announced[:20]!r} processes, which cannot train together ({reason}): start them by "
        f"{LAUNCH}, or unset WORLD_SIZE."
    )
