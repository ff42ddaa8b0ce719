"""The model card of a shipped folder: Markdown with the front matter of the Hub. Pure: from the record and the recipe.

Its words are in `model_card.md.jinja`. Everything that comes from a model, a recipe or a text is escaped where it
stands in prose, quoted for the shell where it stands in a command, and written as a literal where it stands in Python.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable
from pathlib import Path
from typing import Any
from urllib.parse import quote

from jinja2 import Environment, StrictUndefined

from surgery.models.loading import DEFAULT
from surgery.recipe.edits import Compensate, Eora
from surgery.recipe.recipe import Recipe, stage_of
from surgery.recipe.storage import Quantize
from surgery.shipping.checksums import SUMS
from surgery.shipping.record import ADAPTER, RECORD, SAMPLE, Number, ShipRecord

MODELFILE = "Modelfile"
MARKDOWN = {ord(character): f"\\{character}" for character in "\\`*_[]|~$"} | {
    ord("&"): "&amp;",
    ord("<"): "&lt;",
    ord(">"): "&gt;",
    ord(":"): "&#58;",  # an address without brackets would become a link
}
PASTED = "the-text.txt"
"""Stands for a text that was pasted, and that only who pasted it has."""
TEMPLATE = Path(__file__).with_name("model_card.md.jinja")


class Written(str):
    """Text that the card holds as it is; any other is escaped."""


def model_card(record: ShipRecord, recipe: Recipe, has_modelfile: bool = False) -> str:
    """The text of README.md, for a folder with or without a Modelfile."""
    origin, protocol = record.origin, record.protocol
    return (
        _environment()
        .from_string(TEMPLATE.read_text("utf-8"))
        .render(
            record=record,
            recipe=recipe,
            has_modelfile=has_modelfile,
            front_matter=_front_matter(record, recipe),
            model=DEFAULT if recipe.model.id == DEFAULT else _line(origin.base_model or origin.name),
            known=recipe.model.id == DEFAULT or origin.base_model is not None,
            text=PASTED if protocol and protocol.text == "pasted" else protocol and protocol.text,
            calibration=next(iter(_calibration_texts(recipe)), None),
            files={"record": RECORD, "sample": SAMPLE, "sums": SUMS, "adapter": ADAPTER},
        )
    )


def _environment() -> Environment:
    environment = Environment(
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        undefined=StrictUndefined,
        finalize=lambda value: value if isinstance(value, Written) else escape(value),
    )
    environment.filters |= {
        "code": lambda text: Written(f"`{_line(text).replace('`', '')}`"),  # only a backtick could end it
        "link": lambda name: Written(quote(_line(name), safe="/-_.")),
        "number": _number,
        "ollama": _ollama_name,
        "python": lambda value: Written(repr(_line(value) if isinstance(value, str) else value)),
        "shell": lambda text: Written(shlex.quote(_line(text))),
    }
    return environment


def escape(text: object) -> str:
    """Text of unknown origin as it may stand in a line of Markdown."""
    return re.sub("(?i)www[.]", "www&#46;", _line(text).translate(MARKDOWN))


def _line(text: object) -> str:
    """One line without control characters, nor those that change the direction of writing."""
    return " ".join("".join(c if c.isprintable() else " " for c in str(text)).split())


def _front_matter(record: ShipRecord, recipe: Recipe) -> Written:
    from huggingface_hub import ModelCardData

    origin, checkpoint, gguf = record.origin, record.part("checkpoint"), record.part("gguf")
    tags = ["model-surgery"]
    tags += ["pruned"] if any(stage_of(edit) == 0 for edit in recipe.edits) else []
    tags += ["gguf"] if gguf else []
    tags += [checkpoint.library] if checkpoint and checkpoint.library else []
    tags += ["custom_code"] if checkpoint and not checkpoint.plain else []
    said = {
        "base_model": origin.base_model,
        "license": origin.licence,
        "license_name": origin.licence_name,
        "license_link": origin.licence_link,
    }
    known: dict[str, Any] = {key: _line(value) for key, value in said.items() if value}
    data = ModelCardData(
        **known,
        library_name="transformers" if checkpoint else "gguf",
        pipeline_tag="text-generation",
        tags=tags,
        ignore_metadata_errors=True,
    )
    return Written(f"---\n{data.to_yaml().strip()}\n---")


def _number(value: Number, error: Number | None = None, sign: str = "") -> str:
    """A measured value, with its standard error where there is one."""
    shown = str(value) if isinstance(value, str) else f"{value:{sign},.4g}" if value >= 1e6 else f"{value:{sign},.3f}"
    return shown + (f" ± {_number(error)}" if error is not None else "")


def _ollama_name(name: str) -> str:
    plain = "".join(c if c.isascii() and (c.isalnum() or c in "-_.") else "-" for c in name.lower()).strip("-_.")
    return Written(f"{plain or 'model'}-smaller")


def _calibration_texts(recipe: Recipe) -> list[str]:
    """Names of the texts that must be offered to compute the recipe's edits again."""
    edits = (edit for edit in recipe.edits if isinstance(edit, Compensate | Quantize | Eora))
    sources: Iterable[str] = (_line(edit.text.source) for edit in edits if edit.text is not None)
    return list(dict.fromkeys(source for source in sources if source != "embedded"))
