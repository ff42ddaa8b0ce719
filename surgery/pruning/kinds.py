"""What a kind of cut is. Each kind is one `Kind` in its own file; `surgery.pruning.catalogue` lists them all."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from analysis.importance.registry import Method
from surgery.pruning.request import Request
from surgery.recipe.recipe import Edit

ENDS = ("protect_first", "protect_last", "protect_blocks")
"""Rules of every kind that can leave single blocks as they are."""


@dataclass(frozen=True)
class Procedure:
    """A way of choosing that is measured, or that follows from its budget alone."""

    name: str
    kind: str
    """Name of the kind it belongs to."""
    title: str
    source: str
    needs_text: bool
    choose: Callable[[Request], list[Any]] = field(repr=False)
    """The edits that meet a request, or an InputError."""
    rules: tuple[str, ...] = ()
    """Rules that apply to it, besides those of its kind."""
    needs_statistics: ClassVar[bool] = False
    needs_gradients: ClassVar[bool] = False
    needs_seed: ClassVar[bool] = False


@dataclass(frozen=True)
class Kind:
    """One kind of cut: what goes, by which amounts and rules, and how it is chosen."""

    name: str
    """The `kind` of its methods in the registry, and of its procedures."""
    title: str
    """Its methods in a menu."""
    does: str
    """What a method of this kind does, as the predicate of a sentence."""
    ops: Mapping[str, str]
    """Ops of the edits that it may make, each with the name of one unit that it takes away."""
    budgets: tuple[str, ...]
    """Amounts of a `Budget` that say how much."""
    rules: tuple[str, ...]
    """Names of the `Rules` that apply."""
    choose: Callable[[Request, Method], list[Any]] | None = None
    """The edits that meet a request by the scores of a method, or an InputError; None if there are only procedures."""
    procedures: tuple[Procedure, ...] = ()
    divisor: bool = False
    """Whether widths are rounded to multiples of the budget's divisor."""
    exempt: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Rules that do not apply to single methods, by the method's name."""
    probe: Edit | None = None
    """The smallest such edit: a model that refuses it is refused before the work."""

    def rules_of(self, item: Method | Procedure) -> tuple[str, ...]:
        """Names of the rules that apply to one of its methods or procedures."""
        rules = tuple(rule for rule in self.rules if rule not in self.exempt.get(item.name, ()))
        if isinstance(item, Procedure):
            rules += item.rules
        return (*rules, "seed") if item.needs_seed else rules
