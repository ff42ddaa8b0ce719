"""What comes from a browser, checked: remembered state, texts, numbers. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from surgery.common.numbers import real, whole
from surgery.common.ranges import check_blocks, parse_blocks
from surgery.errors import InputError
from surgery.pruning.budget import Budget, Rules
from surgery.recipe.recipe import Recipe
from surgery.recipe.texts import WINDOW, TextChoice
from surgery.session.state import Target
from surgery.session.view import View
from ui.presenters import suggest_form as forms

LONGEST_PASTE = 2**20
"""Characters of pasted text."""
WHOLE_RULES = ("protect_first", "protect_last", "seed", "keep_candidates", "divisor")
MOST_TOKENS = 2**17
"""Tokens that a measurement from the page may take."""


def remembered(kept: Any) -> tuple[str, str | None, Recipe | None, str | None]:
    """Model, revision, recipe and running job that the browser kept, as far as they are valid."""
    if not isinstance(kept, dict):
        return "default", None, None, None
    source, revision, job = kept.get("source"), kept.get("revision"), kept.get("job")
    try:
        recipe = Recipe.read(kept["recipe"]) if kept.get("recipe") else None
    except InputError:
        recipe = None
    return (
        source if isinstance(source, str) and 0 < len(source) < 500 else "default",
        revision if isinstance(revision, str) else None,
        recipe,
        job if isinstance(job, str) else None,
    )


def linked(kept: Any) -> str | None:
    """The code of a recipe that came with the page's address."""
    link = kept.get("link") if isinstance(kept, dict) else None
    return link if isinstance(link, str) else None


def locked(kept: Any) -> tuple[int, ...]:
    """The locked blocks that the browser kept."""
    found = kept.get("locked") if isinstance(kept, dict) else None
    return tuple(block for block in found if type(block) is int and block >= 0) if isinstance(found, list) else ()


def blocks(text: str, view: View) -> tuple[int, ...] | None:
    """The blocks that a range names; None for all. Raises `InputError` if the model has no such blocks."""
    if text.strip().lower() in ("", "all"):
        return None
    found = parse_blocks(text)
    count = 0 if view.model is None else len(view.model.architecture.blocks)
    check_blocks(
        found, count, "The model has blocks 0 to {last}: give a range of them, such as 4-12, or leave it empty."
    )
    return found


def to_keep(view: View) -> dict[str, Any]:
    """What the browser is to keep of a session with an open model."""
    assert view.model is not None and view.history is not None  # the caller has checked
    return {
        "source": view.model.loaded.id,
        "revision": view.model.loaded.revision,
        "recipe": view.history.current.document(),
        "locked": list(view.locked),
        "job": view.job.id if view.job is not None and view.working else None,
    }


def ratio(percent: float, most: float) -> float:
    """The slider's expansion ratio; at its maximum, the source's own. Raises `InputError` unless it is above 0."""
    if real(percent, "The expansion ratio (%)", 0, 1e6) == 0:
        raise InputError("The expansion ratio must be a percentage above 0.")
    return float("1e9") if most and percent >= most else percent / 100


def text_choice(
    source: str, pasted: str, upload: str | None, window: float | None, windows: float | None
) -> TextChoice:
    """The text that the page's fields name; a path is taken from an upload only.

    Raises:
        InputError: nothing was given, or the numbers are out of range.
    """
    length = whole(window, "“Tokens a window”", 2, MOST_TOKENS)
    count = whole(windows, "“Windows”", 1, MOST_TOKENS)
    if length * count > MOST_TOKENS:
        raise InputError(f"Take at most {MOST_TOKENS:,} tokens in all: give fewer or shorter windows.")
    usual = length == WINDOW  # nobody has touched the field
    if source == "pasted":
        if not (pasted or "").strip():
            raise InputError("Paste some text first.")
        if len(pasted) > LONGEST_PASTE:
            raise InputError(f"The pasted text is longer than {LONGEST_PASTE:,} characters: upload it as a file.")
        return TextChoice("pasted", length, count, content=pasted, shorten=usual)
    if source == "file":
        if not upload:
            raise InputError("Upload a text file first.")
        return TextChoice(upload, length, count, shorten=usual)
    if source not in ("embedded", "wikitext-2") and not str(source or "").startswith("hub:"):
        raise InputError("Choose a text from the list, or write hub:owner/name for a data set of the Hub.")
    return TextChoice(source, length, count, shorten=usual)


def suggestion(method: str, unit: str, amounts: Mapping[str, Any], values: Mapping[str, Any]) -> tuple[Budget, Rules]:
    """A budget and rules from the form; fields that do not go with the method are left out.

    Args:
        method: a name of the catalogue.
        unit: the budget that is in force.
        amounts: what the budgets' fields hold.
        values: what the rules' fields hold, and the divisor's; None where a number is missing.

    Raises:
        InputError: unknown method, or a field that makes no sense.
    """
    shown = forms.form(method, unit)
    if unit != shown.unit:
        raise InputError("Choose a budget from the list.")
    given = {name: values[name] for name in shown.rules if values.get(name) is not None}
    for name, value in given.items():
        if name in WHOLE_RULES:
            given[name] = whole(value, f"“{forms.RULES[name][0]}”")
    for name, known in (("allocation", forms.ALLOCATIONS), ("unit", forms.UNITS)):
        if name in given and given[name] not in [key for _, key in known]:
            raise InputError(f"Choose “{forms.RULES[name][0]}” from the list.")
    if "sharpness" in given and given.get("allocation") != "cfsp":
        del given["sharpness"]  # it is of that spread alone
    divisor = given.pop("divisor", 1)
    amount: dict[str, Any] = {unit: _amount(unit, str(amounts.get(unit) or "").strip())}
    return Budget(divisor=divisor, **amount), Rules(**given)


def _amount(unit: str, text: str) -> Any:
    """What a budget's field holds, as the core takes it."""
    label = forms.AMOUNTS[unit].label
    if not text:
        raise InputError(f"Fill in “{label}” first.")
    if unit == "params":
        return text
    if unit in ("percent", "expansion_ratio"):
        try:
            number = float(text.removesuffix("%").strip())
        except ValueError:
            number = -1.0
        if not 0 <= number < float("inf"):
            raise InputError(f"“{label}” must be a number of percent.")
        return number / 100 if unit == "expansion_ratio" else number
    if not text.isascii() or not text.isdigit() or len(text) > 9:
        raise InputError(f"“{label}” must be a whole number.")
    return int(text)


def target(device: str, context: float | None, kind: str, kv_type: str = "F16") -> Target:
    """Device, context, weight type and KV-cache type; `InputError` if the context is out of range."""
    return Target(device, whole(context, "The context (tokens)", 1), kind, kv_type)
