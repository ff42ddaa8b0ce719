"""Every way of choosing that a person can ask for by name: the registry's scores, and procedures that need no score."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from analysis.importance import registry
from analysis.importance.registry import Method
from surgery.errors import InputError


@dataclass(frozen=True)
class Procedure:
    """A choice that is measured, or that follows from its budget alone."""

    name: str
    kind: str
    """What it removes: `blocks`, `sublayers` (attentions and MLPs together), or `kv_heads` (merged, not removed)."""
    title: str
    source: str
    needs_text: bool
    rules: tuple[str, ...] = ()
    """Rules that apply to it, besides those of its kind."""
    needs_statistics: ClassVar[bool] = False
    needs_gradients: ClassVar[bool] = False
    needs_seed: ClassVar[bool] = False

    def listed(self) -> dict[str, Any]:
        """What `methods` prints."""
        return {
            "name": self.name,
            "kind": self.kind,
            "title": self.title,
            "source": self.source,
            "needs_gradients": self.needs_gradients,
            "needs_text": self.needs_text,
        }


STEPWISE = ("keep_candidates", "per_parameter")
PROCEDURES: tuple[Procedure, ...] = (
    Procedure("perplexity_scan", "blocks", "Perplexity scan, one shot", "Shortened LLaMA, arXiv 2402.02834", True),
    Procedure(
        "perplexity_greedy",
        "blocks",
        "Perplexity scan, step by step",
        "Shortened LLaMA, arXiv 2402.02834",
        True,
        STEPWISE,
    ),
    Procedure("greedy_sublayers", "sublayers", "Greedy sublayer removal", "FinerCut, arXiv 2405.18218", True, STEPWISE),
    Procedure("gqa_mean", "kv_heads", "Merged KV heads, mean", "GQA, arXiv 2305.13245", False),
    Procedure("gqa_first", "kv_heads", "Merged KV heads, first", "GQA, arXiv 2305.13245", False),
)

BUDGETS: dict[str, tuple[str, ...]] = {
    "blocks": ("blocks", "params"),
    "attention": ("blocks", "params"),
    "mlp": ("blocks", "params"),
    "sublayers": ("blocks", "params"),
    "neurons": ("expansion_ratio", "width", "percent", "params"),
    "heads": ("heads", "percent", "params"),
    "kv_heads": ("kv_heads",),
    "hidden": ("width", "percent", "params"),
}
"""Amounts that go with each kind."""

OPS: dict[str, tuple[str, ...]] = {
    "blocks": ("remove_blocks",),
    "attention": ("remove_attention",),
    "mlp": ("remove_mlp",),
    "sublayers": ("remove_blocks", "remove_attention", "remove_mlp"),
    "neurons": ("prune_neurons",),
    "heads": ("prune_kv_groups", "prune_heads"),
    "kv_heads": ("merge_kv_heads",),
    "hidden": ("prune_hidden",),
}
"""Ops of the edits that each kind may make."""

ENDS = ("protect_first", "protect_last")
RULES: dict[str, tuple[str, ...]] = {
    "blocks": (*ENDS, "no_neighbours"),
    "attention": (*ENDS, "no_neighbours"),
    "mlp": (*ENDS, "no_neighbours"),
    "sublayers": (*ENDS, "no_neighbours"),
    "neurons": (*ENDS, "allocation", "sharpness", "same_width"),
    "heads": (*ENDS, "unit", "allocation", "sharpness", "same_width"),
    "kv_heads": ENDS,
    "hidden": (),
}
"""Rules that go with each kind."""

DOES = {
    "blocks": "removes blocks",
    "attention": "removes attention sublayers",
    "mlp": "removes MLP sublayers",
    "sublayers": "removes attention and MLP sublayers",
    "neurons": "narrows MLPs",
    "heads": "removes attention heads",
    "kv_heads": "merges key/value heads",
    "hidden": "removes channels of the residual stream",
}


def everything() -> tuple[Method | Procedure, ...]:
    """The registry's methods and the procedures."""
    return (*registry.METHODS, *PROCEDURES)


def entry(name: str) -> Method | Procedure:
    """The method or procedure of that name.

    Raises:
        InputError: unknown; the message lists the names.
    """
    for item in everything():
        if item.name == name:
            return item
    raise InputError(f"There is no method {name!r}: use one of {', '.join(item.name for item in everything())}.")


def listed() -> list[dict[str, Any]]:
    """Everything that `methods` prints."""
    return [item.listed() for item in everything()]


def rules_of(item: Method | Procedure) -> tuple[str, ...]:
    """Names of the rules that apply."""
    rules = RULES[item.kind]
    if item.name == "angular_distance":  # a run is all neighbours
        rules = ENDS
    if isinstance(item, Procedure):
        rules += item.rules
    return (*rules, "seed") if item.needs_seed else rules
