"""From a session's view to the choices and words of the Quantise panel. Pure."""

from __future__ import annotations

from typing import Any, get_args

from surgery.errors import InputError
from surgery.recipe.edits import Eora
from surgery.recipe.storage import TYPES_OF, GgufType, Quantize
from surgery.session.view import View
from surgery.shipping.download import file_name
from ui.presenters.text import bytes_text, escape, note, number_text

AS_IT_IS = "none"
FORMATS = [
    ("As they are", AS_IT_IS),
    ("GGUF (llama.cpp)", "gguf"),
    ("torchao (transformers)", "torchao"),
    ("compressed-tensors", "compressed-tensors"),
]
DEFAULT_TYPE = {"gguf": "Q4_K_M", "torchao": "int8", "compressed-tensors": "int4"}
METHODS = [("Round to nearest", "round_to_nearest"), ("GPTQ", "gptq")]
GROUPS: list[str | tuple[str, str]] = [("Whole row", "0"), "32", "64", "128"]
RANKS: list[str | tuple[str, str]] = [("None", "0"), "8", "16", "32", "64", "128"]
DOES = {
    AS_IT_IS: "Nothing is quantised: the weights stay in the type that the model was loaded in.",
    "gguf": "One file for llama.cpp and Ollama. Sizes are exact before anything is written; the perplexity is measured "
    "on weights that are encoded and read back by the same library that writes the file.",
    "torchao": "Integer weights that transformers loads with torchao. Embeddings and head stay as they are.",
    "compressed-tensors": "Packed integers with a scale for each group of a row, read by transformers and vLLM. GPTQ "
    "spreads each rounding error over the weights that come after it, on the calibration text. Embeddings and head "
    "stay as they are.",
}


def quantisation(view: View) -> Quantize | None:
    """The quantisation of the current recipe."""
    edits = view.history.current.edits if view.history is not None else ()
    return next((edit for edit in edits if isinstance(edit, Quantize)), None)


def controls(view: View) -> dict[str, Any]:
    """What the panel's controls hold for the current recipe; those of other formats keep what they have."""
    edit = quantisation(view)
    edits = view.history.current.edits if view.history is not None else ()
    rank = next((str(other.rank) for other in edits if isinstance(other, Eora)), "0")
    held: dict[str, Any] = {"format": edit.format if edit else AS_IT_IS, "rank": rank}
    held["type"] = edit.type if edit else DEFAULT_TYPE["gguf"]
    if edit is not None and edit.format == "gguf":
        held["importance"] = edit.text is not None
    if edit is not None and edit.format != "gguf":
        held["group"] = str(edit.group_size or 0)
    if edit is not None and edit.format == "compressed-tensors":
        held |= {"method": edit.method, "symmetric": edit.symmetric, "act_order": edit.act_order}
    return held


def shown_controls(format_name: str, method: str) -> dict[str, bool]:
    """Which controls go with a format."""
    packed = format_name == "compressed-tensors"
    return {
        "type": format_name != AS_IT_IS,
        "importance": format_name == "gguf",
        "method": packed,
        "group": packed or format_name == "torchao",
        "symmetric": packed,
        "act_order": packed and method == "gptq",
        "rank": format_name != AS_IT_IS,
    }


def settings(format_name: str, values: dict[str, Any]) -> dict[str, Any] | None:
    """The settings of the edit that the controls ask for; None for weights as they are.

    Raises:
        InputError: a choice is not on its list.
    """
    if format_name == AS_IT_IS:
        return None
    if format_name not in TYPES_OF:
        raise InputError("Choose a format from the list.")
    chosen = values.get("type")
    kind = chosen if chosen in TYPES_OF[format_name] else DEFAULT_TYPE[format_name]
    found: dict[str, Any] = {"format": format_name, "type": kind}
    if format_name == "gguf":
        return found | {"importance": bool(values.get("importance"))}
    group = whole(values.get("group")) or None
    if format_name == "torchao":
        return found | ({"group_size": group} if kind == "int4" else {})
    method = values.get("method") or "round_to_nearest"
    return found | {
        "method": method,
        "group_size": group,
        "symmetric": bool(values.get("symmetric")),
        "act_order": bool(values.get("act_order")) and method == "gptq",
    }


def whole(value: Any) -> int:
    """A number of the lists of groups and ranks.

    Raises:
        InputError: it is not one.
    """
    text = str(value or 0)
    if not text.isascii() or not text.isdigit() or len(text) > 6:
        raise InputError("Choose a number from the list.")
    return int(text)


def table(view: View) -> str:
    """Every GGUF type of the current recipe: bits, exact bytes of the file, and what has been measured of it."""
    edit = quantisation(view)
    if view.model is None or view.structure is None or edit is None or edit.format != "gguf":
        return ""
    weighted = edit.text is not None
    plan = view.model.gguf_plan(view.structure)
    name = file_name(view.model.loaded.id)
    rows = "".join(
        _row(
            kind,
            plan.bits_per_weight(kind, weighted),
            plan.file_bytes(kind, name, weighted),
            view.tried.get((kind, weighted)),
            kind == edit.type,
        )
        for kind in get_args(GgufType)
    )
    importance = "with the importance matrix" if weighted else "without importance matrix"
    unquantised = view.tried.get(("", False))
    against = "" if unquantised is None else f" Unquantised, this recipe has {number_text(unquantised)}."
    mix = ", ".join(f"{count} {kind}" for kind, count in plan.mix(edit.type, weighted).items())
    short = plan.short_rows(edit.type, weighted)
    kept = note(f"{edit.type} here: matrices {mix}; vectors F32. {short}".strip()) + note(
        f"Sizes are arithmetic, and exact. Perplexities were measured in this session, {importance}; choose a type to "
        f"measure it.{against}"
    )
    return (
        '<div class="ms-scroll"><table class="ms-types"><thead><tr><th>type</th><th>bits per weight</th>'
        f"<th>file</th><th>perplexity</th></tr></thead><tbody>{rows}</tbody></table></div>{kept}"
    )


def _row(kind: str, bits: float, size: int, perplexity: float | None, current: bool) -> str:
    mark = ' aria-current="true"' if current else ""
    measured = "–" if perplexity is None else number_text(perplexity)
    return (
        f"<tr{mark}><td>{escape(kind)}</td><td>{bits:.2f}</td>"
        f'<td title="{size:,} bytes">{bytes_text(size)}</td><td>{measured}</td></tr>'
    )


def words(view: View) -> str:
    """What the chosen format does, and what is being computed."""
    edit = quantisation(view)
    text = note(DOES[edit.format if edit is not None else AS_IT_IS])
    if edit is None or view.unfinished != "quantisation":
        return text
    if view.compensating:
        return text + note("Being computed on the calibration text; the perplexity is out of date until then.")
    if view.uncompensated:
        return text + note(
            "It is not computed, so the recipe cannot be measured: compute it, or choose another.", "ms-error"
        )
    return text
