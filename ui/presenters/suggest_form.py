"""The words and choices of the suggestion form, and which of its fields go with a method. Pure."""

from __future__ import annotations

import re
from dataclasses import dataclass

from analysis.importance.registry import Method
from surgery.pruning import catalogue
from surgery.pruning.kinds import Procedure

DEFAULT_METHOD = "block_influence"


@dataclass(frozen=True)
class Amount:
    """One way of saying how much should go or stay."""

    title: str
    """In the menu of budgets."""
    label: str
    info: str
    value: str
    """What stands in the field at first."""


AMOUNTS = {
    "blocks": Amount("Number", "How many go", "Blocks or sublayers that are removed.", "2"),
    "params": Amount("Parameters", "Parameters", "-20% (that share goes), 80% (that stays) or a number.", "-10%"),
    "expansion_ratio": Amount("Expansion ratio", "Expansion ratio (%)", "MLP width over hidden size.", "213"),
    "width": Amount("Width", "Width", "Units that stay in each.", ""),
    "percent": Amount("Percent", "Percent", "Share of its units that every layer loses.", "10"),
    "heads": Amount("Number", "How many go", "KV groups or query heads, over the whole model.", "10"),
    "kv_heads": Amount("Heads left", "KV heads", "That stay in each block; 1 is multi-query attention.", "1"),
}
ALLOCATIONS = [
    ("Alike in all", "uniform"),
    ("By influence (CFSP)", "cfsp"),
    ("One ranking, standardised", "global"),
    ("One ranking, raw scores", "raw"),
]
UNITS = [("KV groups", "kv_groups"), ("Query heads", "query_heads")]
RULES = {
    "protect_first": ("First blocks kept", "They are left as they are."),
    "protect_last": ("Last blocks kept", "They are left as they are."),
    "no_neighbours": ("No two neighbours", "Never remove two in a row."),
    "allocation": ("Over the blocks", "How the budget is spread."),
    "sharpness": ("Sharpness", "Of the spread by influence."),
    "same_width": ("The same in all", "Even if the budget is met less closely."),
    "unit": ("What goes", "Whole groups, or query heads alone."),
    "seed": ("Seed", "Of the random scores."),
    "keep_candidates": ("Candidates a step", "The best of the last step; empty: all."),
    "per_parameter": ("Loss by parameter", "Weigh the loss by what is saved."),
    "divisor": ("Divisor", "Widths are its multiples."),
}
"""Labels and explanations of the rules, and of the divisor."""


@dataclass(frozen=True)
class Form:
    """What of the form goes with a method."""

    units: list[tuple[str, str]]
    unit: str
    """The budget in force."""
    rules: frozenset[str]
    note: str


def methods() -> list[tuple[str, str]]:
    """The whole catalogue for a menu, by what is removed."""
    items = catalogue.everything()
    return [
        (f"{kind.title}: {item.title}", item.name)
        for kind in catalogue.KINDS.values()
        for item in items
        if item.kind == kind.name
    ]


def form(name: str, unit: str | None) -> Form:
    """The fields of a method's form; a budget that was chosen so far is kept if it goes with the method.

    Raises:
        InputError: there is no such method.
    """
    item = catalogue.entry(name)
    kind = catalogue.KINDS[item.kind]
    units = kind.budgets
    rules = {*kind.rules_of(item), *(["divisor"] if kind.divisor else [])}
    return Form(
        [(AMOUNTS[key].title, key) for key in units],
        unit if unit in units else units[0],
        frozenset(rules & RULES.keys()),
        _note(item),
    )


def _note(item: Method | Procedure) -> str:
    """What a method does and needs."""
    does = catalogue.KINDS[item.kind].does
    if isinstance(item, Procedure):
        needs = "It measures each candidate on the calibration text." if item.needs_text else "It needs no text."
    elif item.needs_gradients:
        needs = "It needs gradients on the calibration text, which take several times as long as an analysis."
    elif item.needs_text:
        needs = "It needs an analysis of the calibration text."
    else:
        needs = "It needs no text."
    kept = "It takes the place of what was chosen of this kind; the rest of the recipe stays."
    return f"{does[0].upper()}{does[1:]}. {needs} {kept} Source: {item.source}."


def in_page_words(sentence: str) -> str:
    """A sentence of the core with the page's labels in place of the command line's options."""

    def label(match: re.Match[str]) -> str:
        name = match[1].replace("-", "_")
        words = RULES[name][0] if name in RULES else AMOUNTS[name].title if name in AMOUNTS else None
        return match[0] if words is None else f"“{words}”"

    return re.sub(r"--([a-z]+(?:-[a-z]+)*)", label, sentence)
