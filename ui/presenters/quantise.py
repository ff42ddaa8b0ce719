"""From a session's view to the choices and words of the Quantise panel. Pure."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, get_args

from surgery.errors import InputError
from surgery.formats.table import FORMATS, PLAIN, format_of
from surgery.recipe.edits import Eora
from surgery.recipe.storage import GgufType, Quantize
from surgery.session.view import View
from surgery.shipping.download import file_name
from ui.presenters import text
from ui.presenters.text import Html, bytes_text, note, number_text

AS_IT_IS = "none"
CHOICES = [(PLAIN.title, AS_IT_IS), *((row.title, row.name) for row in FORMATS.values())]
FIRST = next(iter(FORMATS.values()))
"""The format whose types are offered before one is chosen."""
METHODS = [("Round to nearest", "round_to_nearest"), ("GPTQ", "gptq")]
GROUPS: list[str | tuple[str, str]] = [("Whole row", "0"), "32", "64", "128"]
RANKS: list[str | tuple[str, str]] = [("None", "0"), "8", "16", "32", "64", "128"]


@dataclass(frozen=True)
class _Setting:
    """A setting that formats may know: its control, what that holds for an edit, what the controls' values ask for."""

    control: str
    held: Callable[[Quantize], Any]
    asked: Callable[[dict[str, Any]], Any]


SETTINGS = {
    "importance": _Setting("importance", lambda edit: edit.text is not None, lambda held: bool(held.get("importance"))),
    "method": _Setting("method", lambda edit: edit.method, lambda held: _method(held)),
    "group_size": _Setting(
        "group", lambda edit: str(edit.group_size or 0), lambda held: whole(held.get("group")) or None
    ),
    "symmetric": _Setting("symmetric", lambda edit: edit.symmetric, lambda held: bool(held.get("symmetric"))),
    "act_order": _Setting(
        "act_order", lambda edit: edit.act_order, lambda held: bool(held.get("act_order")) and _method(held) == "gptq"
    ),
}
"""By the names of `StorageFormat.settings`."""


def quantisation(view: View) -> Quantize | None:
    """The quantisation of the current recipe."""
    return view.history.current.find(Quantize) if view.history is not None else None


def controls(view: View) -> dict[str, Any]:
    """What the panel's controls hold for the current recipe; those of other formats keep what they have."""
    edit = quantisation(view)
    repair = view.history.current.find(Eora) if view.history is not None else None
    held: dict[str, Any] = {"format": edit.format if edit else AS_IT_IS, "rank": str(repair.rank) if repair else "0"}
    held["type"] = edit.type if edit else FIRST.default_type
    if edit is not None:
        held |= {SETTINGS[name].control: SETTINGS[name].held(edit) for name in format_of(edit).settings}
    return held


def shown_controls(format_name: str, method: str) -> dict[str, bool]:
    """Which controls go with a format."""
    known = FORMATS.get(format_name, PLAIN).settings
    shown = {setting.control: name in known for name, setting in SETTINGS.items()}
    shown["act_order"] = shown["act_order"] and method == "gptq"
    return shown | dict.fromkeys(("type", "rank"), format_name != AS_IT_IS)


def settings(format_name: str, values: dict[str, Any]) -> dict[str, Any] | None:
    """The settings of the edit that the controls ask for; None for weights as they are.

    Raises:
        InputError: a choice is not on its list.
    """
    if format_name == AS_IT_IS:
        return None
    if format_name not in FORMATS:
        raise InputError("Choose a format from the list.")
    row, chosen = FORMATS[format_name], values.get("type")
    kind = chosen if chosen in row.types else row.default_type
    return {"format": format_name, "type": kind} | {
        name: SETTINGS[name].asked(values) for name in row.settings_of(kind)
    }


def _method(values: dict[str, Any]) -> Any:
    return values.get("method") or "round_to_nearest"


def whole(value: Any) -> int:
    """A number of the lists of groups and ranks; `InputError` if it is none."""
    digits = str(value or 0)
    if not digits.isascii() or not digits.isdigit() or len(digits) > 6:
        raise InputError("Choose a number from the list.")
    return int(digits)


def table(view: View) -> Html:
    """Every GGUF type of the current recipe: bits, exact bytes of the file, and what has been measured of it."""
    edit = quantisation(view)
    if view.model is None or view.structure is None or edit is None or not format_of(edit).one_file:
        return Html()
    weighted = edit.text is not None
    plan = view.model.gguf_plan(view.structure)
    name = file_name(view.model.loaded.id)
    rows = (
        _row(
            kind,
            plan.bits_per_weight(kind, weighted),
            plan.file_bytes(kind, name, weighted),
            view.measure.tried.get((kind, weighted)),
            kind == edit.type,
        )
        for kind in get_args(GgufType)
    )
    importance = "with the importance matrix" if weighted else "without importance matrix"
    unquantised = view.measure.tried.get(("", False))
    against = "" if unquantised is None else f" Unquantised, this recipe has {number_text(unquantised)}."
    mix = ", ".join(f"{count} {kind}" for kind, count in plan.mix(edit.type, weighted).items())
    short = plan.short_rows(edit.type, weighted)
    kept = note(f"{edit.type} here: matrices {mix}; vectors F32. {short}".strip()) + note(
        f"Sizes are arithmetic, and exact. Perplexities were measured in this session, {importance}; choose a type to "
        f"measure it.{against}"
    )
    types = text.table(("type", "bits per weight", "file", "perplexity"), rows)
    return Html('<div class="ms-scroll">{}</div>{}').format(types, kept)


def _row(kind: str, bits: float, size: int, perplexity: float | None, current: bool) -> Html:
    mark = Html(' aria-current="true"') if current else ""
    measured = "–" if perplexity is None else number_text(perplexity)
    row = Html('<tr{}><td>{}</td><td>{:.2f}</td><td title="{:,} bytes">{}</td><td>{}</td></tr>')
    return row.format(mark, kind, bits, size, bytes_text(size), measured)


def words(view: View) -> Html:
    """What the chosen format does, and what is being computed."""
    edit = quantisation(view)
    does = note(format_of(edit).does)
    if edit is None or view.unfinished != "quantisation":
        return does
    if view.measure.compensating:
        return does + note("Being computed on the calibration text; the perplexity is out of date until then.")
    if view.uncompensated:
        return does + note(
            "It is not computed, so the recipe cannot be measured: compute it, or choose another.", "ms-error"
        )
    return does
