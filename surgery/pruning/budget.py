"""What a person asks of a method: how much should go, and by which rules."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import Literal

from pydantic import JsonValue

from surgery.common.numbers import LARGEST, real, whole
from surgery.common.ranges import format_ranges
from surgery.errors import InputError

Allocation = Literal["uniform", "cfsp", "global", "raw"]
HeadUnit = Literal["kv_groups", "query_heads"]
CFSP_SHARPNESS = 13.1
"""The published scale of CFSP (2409.13199) at its 128 x 1024 calibration tokens, for a mean over tokens."""

AMOUNTS = {
    "blocks": "--blocks N",
    "params": "--params -20%",
    "percent": "--percent P",
    "expansion_ratio": "--expansion-ratio R",
    "width": "--width N",
    "heads": "--heads N",
    "kv_heads": "--kv-heads N",
}
"""How much should go or stay: the field of a budget, and how it is written on the command line."""


@dataclass(frozen=True)
class Budget:
    """How much should go; exactly one of the amounts is set.

    `blocks`: blocks or sublayers that go. `params`: "-20%", "80%" or a number of parameters that stay.
    `expansion_ratio`: MLP width over hidden size. `width`: neurons or hidden channels that stay. `percent`: percent of
    each layer's own units that go. `heads`: KV groups or query heads that go, counted over the model. `kv_heads`:
    key/value heads that stay in each block. `divisor`: widths are multiples of it, never below one multiple.
    """

    blocks: int | None = None
    params: str | None = None
    expansion_ratio: float | None = None
    width: int | None = None
    divisor: int = 1
    percent: float | None = None
    heads: int | None = None
    kv_heads: int | None = None

    def given(self) -> str:
        """Name of the amount that is set. Raises InputError: none or several are, or it is negative or not a number."""
        names = [name for name in AMOUNTS if getattr(self, name) is not None]
        if len(names) != 1:
            *most, last = AMOUNTS.values()
            raise InputError(f"Give exactly one budget: {', '.join(most)} or {last}.")
        amount = getattr(self, names[0])
        name = f"The budget ({AMOUNTS[names[0]]})"
        if isinstance(amount, str):
            check_params(amount)
        elif isinstance(amount, int):
            whole(amount, name)
        else:
            real(amount, name, 0, 100 if names[0] == "percent" else LARGEST)
        return names[0]


@dataclass(frozen=True)
class Rules:
    """By which rules it should go.

    `protect_first` and `protect_last` blocks stay whole (Shortened LLaMA's "+" is 4 and 2), and so do the
    `protect_blocks` that are named one by one. `no_neighbours`: of two adjacent blocks only one goes. `allocation`
    spreads a width or head budget over the blocks: the same share of each (`uniform`), by CFSP's coarse importance
    with its `sharpness`, by one ranking of scores standardised per layer (`global`), or of the scores as they are
    (`raw`, for scores in units of loss). `same_width` keeps the same share of every block even where a parameter
    budget is then met less closely, so that a plain checkpoint can hold the result. `unit`: what a head method
    removes. `seed`: of a random control. Greedy methods measure the `keep_candidates` best of the last ranking in each
    step (all when None) and weigh the loss `per_parameter` removed.
    """

    protect_first: int = 0
    protect_last: int = 0
    no_neighbours: bool = False
    allocation: Allocation = "uniform"
    sharpness: float = CFSP_SHARPNESS
    same_width: bool = False
    unit: HeadUnit = "kv_groups"
    seed: int = 0
    keep_candidates: int | None = None
    per_parameter: bool = False
    protect_blocks: tuple[int, ...] = field(
        default=(),
        metadata={
            "written": format_ranges,
            "refusal": "The method {method!r} changes every block: it cannot leave single blocks as they are.",
        },
    )
    """A rule with a form of its own in `chosen_by` (`written`) is recorded last, and only where it is set."""

    def note(self, method: str, applicable: Sequence[str]) -> dict[str, JsonValue]:
        """The rules that apply to a method, for `chosen_by`.

        Raises:
            InputError: one is set that does not apply, or a value makes no sense.
        """
        rules = {rule.name: rule for rule in fields(self)}
        own = {name: rule.metadata["written"] for name, rule in rules.items() if "written" in rule.metadata}
        for name, rule in rules.items():
            if getattr(self, name) != rule.default and name not in applicable:
                refusal = rule.metadata.get("refusal", "The option --{option} does not go with the method {method!r}.")
                raise InputError(refusal.format(option=name.replace("_", "-"), method=method))
        if self.sharpness != CFSP_SHARPNESS and self.allocation != "cfsp":
            raise InputError("The option --sharpness is of the allocation cfsp: add --allocation cfsp.")
        if self.same_width and self.allocation != "uniform":
            raise InputError("The option --same-width is of the allocation uniform: leave one of the two out.")
        if self.protect_first < 0 or self.protect_last < 0:
            raise InputError("The number of protected blocks cannot be negative.")
        if self.keep_candidates is not None and self.keep_candidates < 1:
            raise InputError("At least one candidate must be kept in each step.")
        if not 0 <= self.sharpness < 1000:
            raise InputError("The sharpness must be between 0 and 1000.")
        always = {name: getattr(self, name) for name in applicable if name not in own}
        return always | {name: own[name](getattr(self, name)) for name in own if getattr(self, name)}

    def protects(self, block: int, blocks: int) -> bool:
        """Whether a block out of `blocks` is named or at a protected end."""
        end = block < self.protect_first or block >= blocks - self.protect_last
        return end or block in self.protect_blocks


def parse_expansion_ratio(text: str) -> float:
    """An expansion ratio as a number (2.0) or in percent ("200%"). Raises InputError: not a positive number."""
    stripped = text.strip()
    try:
        value = float(stripped.removesuffix("%")) / (100 if stripped.endswith("%") else 1)
    except ValueError:
        value = -1.0
    if not 0 < value <= LARGEST:
        raise InputError(f"{text[:40]!r} is not an expansion ratio: write 2.0 or 200%.")
    return value


def check_params(text: str) -> tuple[bool, float, bool]:
    """A parameter budget as it is written: whether it is what goes, its number, and whether that is in percent.

    Raises:
        InputError: it is none, or has more digits than any number of parameters.
    """
    match = re.fullmatch(r"\s*(-?)([0-9]{1,16}(?:\.[0-9]{1,16})?)\s*(%?)\s*", text)
    if not match or (match[1] and not match[3]):
        raise InputError(f"{text[:40]!r} is not a parameter budget: write -20%, 80% or a number of parameters.")
    return bool(match[1]), float(match[2]), bool(match[3])


def parameter_target(text: str, parameters: int) -> int:
    """Parameters that should stay: "-20%" (that share less), "80%" (that share), or a plain count.

    Raises:
        InputError: not one of these, or not between 0 and what the model has.
    """
    less, value, percent = check_params(text)
    target = int(parameters * (1 - value / 100 if less else value / 100)) if percent else int(value)
    if not 0 < target <= parameters:
        raise InputError(f"A budget of {text} leaves {target:,} parameters, and the model has {parameters:,}.")
    return target
