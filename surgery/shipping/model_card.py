"""The model card of a shipped folder: Markdown with the front matter of the Hub. Pure: from the record and the recipe.

Everything that comes from a model, a recipe or a text is escaped where it stands in prose, quoted for the shell where
it stands in a command, and written as a literal where it stands in Python.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from surgery.models.loading import DEFAULT
from surgery.recipe.edits import Compensate, Eora
from surgery.recipe.recipe import Recipe, stage_of
from surgery.recipe.storage import Quantize
from surgery.shipping.checksums import SUMS
from surgery.shipping.record import ADAPTER, RECORD, SAMPLE, Number, Part, Protocol, ShipRecord

MODELFILE = "Modelfile"
MARKDOWN = {ord(character): f"\\{character}" for character in "\\`*_[]|~$"} | {
    ord("&"): "&amp;",
    ord("<"): "&lt;",
    ord(">"): "&gt;",
    ord(":"): "&#58;",  # an address without brackets would become a link
}
HERE = "."
PASTED = "the-text.txt"
"""Stands for a text that was pasted, and that only who pasted it has."""


def model_card(record: ShipRecord, recipe: Recipe, has_modelfile: bool = False) -> str:
    """The text of README.md.

    Args:
        record: what was shipped and measured.
        recipe: what made it.
        has_modelfile: whether a Modelfile is in the folder.
    """
    sections = [
        _front_matter(record, recipe),
        f"# {escape(record.origin.name)}, made smaller",
        _introduction(record),
        "## Before and after\n\n" + _table(record),
        _protocol_words(record.protocol),
        "## In this folder\n\n" + _contents(record, has_modelfile),
        "## Run it\n\n" + _running(record, has_modelfile),
        "## Make it again\n\n" + _again(record, recipe),
        "## Check it\n\n" + _checking(record.protocol),
    ]
    return "\n\n".join(sections) + "\n"


def escape(text: object) -> str:
    """Text of unknown origin as it may stand in a line of Markdown."""
    return re.sub("(?i)www[.]", "www&#46;", _line(text).translate(MARKDOWN))


def _line(text: object) -> str:
    """One line without control characters, nor those that change the direction of writing."""
    return " ".join("".join(c if c.isprintable() else " " for c in str(text)).split())


def _front_matter(record: ShipRecord, recipe: Recipe) -> str:
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
    return f"---\n{data.to_yaml().strip()}\n---"


def _introduction(record: ShipRecord) -> str:
    origin = record.origin
    base = (
        f"[{escape(origin.base_model)}](https://huggingface.co/{_in_link(origin.base_model)})"
        if origin.base_model
        else escape(origin.name)
    )
    if origin.revision:
        base += f" at {escape(origin.revision)}"
    licence = escape(origin.licence_name or origin.licence or "as the base model")
    lines = [
        f"This is {base}, made smaller with Model Surgery.",
        f"What was done: {escape(record.words)}.",
        f"Licence: {licence}.",
    ]
    if origin.note:
        lines.append(f"Of the source: {escape(origin.note)}")
    return "\n\n".join(lines)


def _in_link(name: str | None) -> str:
    """A Hub id inside a link's address."""
    from urllib.parse import quote

    return quote(_line(name), safe="/-_.")


def _table(record: ShipRecord) -> str:
    """Before and after, a column for each form."""
    parts, protocol = record.parts, record.protocol
    rows = [
        ["", "source", *(_form(part) for part in parts)],
        ["---", "---:", *("---:" for _ in parts)],
        ["blocks", str(record.dense_blocks), *(str(record.blocks) for _ in parts)],
        ["parameters", f"{record.dense_parameters:,}", *(_share(record) for _ in parts)],
        ["bytes of the weights", f"{record.dense_bytes:,}", *(f"{part.bytes:,}" for part in parts)],
    ]
    found = [part.measured for part in parts if part.measured is not None]
    if protocol is not None:
        dense = _number(protocol.dense_perplexity)
        rises = (_with_error(one.difference, one.difference_standard_error, "+") for one in found)
        rows += [
            ["perplexity", dense, *(_with_error(one.perplexity, one.standard_error) for one in found)],
            ["loss above the source, nats per token", "", *rises],
        ]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _form(part: Part) -> str:
    return f"checkpoint, {escape(part.type)}" if part.kind == "checkpoint" else f"GGUF, {escape(part.type)}"


def _share(record: ShipRecord) -> str:
    return f"{record.parameters:,} ({100 * record.parameters / record.dense_parameters:.1f}%)"


def _number(value: Number, sign: str = "") -> str:
    return str(value) if isinstance(value, str) else f"{value:{sign},.4g}" if value >= 1e6 else f"{value:{sign},.3f}"


def _with_error(value: Number, error: Number | None, sign: str = "") -> str:
    return _number(value, sign) + (f" ± {_number(error)}" if error is not None else "")


def _protocol_words(protocol: Protocol | None) -> str:
    if protocol is None:
        return "Perplexity was not measured when this card was written."
    where = "evenly spread over the text" if protocol.spread else "from its beginning"
    return (
        f"Perplexity on {escape(_source(protocol.text))} (SHA-256 {protocol.text_fingerprint}…), "
        f"{protocol.windows} windows of {protocol.window} tokens {where}, {protocol.tokens:,} scored tokens, rows "
        f"joined by two line feeds, {'BOS at the start of every window' if protocol.bos else 'no BOS'}, computed in "
        f"{escape(protocol.dtype)}; ± one standard error over the windows, the loss paired against the source on the "
        "same tokens. What stands in the table was measured before the files were written, and the written files were "
        "read back and gave the same."
    )


def _source(text: str) -> str:
    return f"the {text} text of Model Surgery" if text == "embedded" else text


def _contents(record: ShipRecord, has_modelfile: bool) -> str:
    checkpoint, gguf, protocol = record.part("checkpoint"), record.part("gguf"), record.protocol
    files: list[tuple[str, str]] = []
    if checkpoint:
        files.append((", ".join(checkpoint.files), "the weights, and beside them configuration and tokenizer"))
    if gguf:
        files.append((", ".join(gguf.files), f"the model for llama.cpp, architecture {gguf.architecture}"))
    files += [(part.adapter, "low-rank repair that counts with the weights") for part in record.parts if part.adapter]
    if has_modelfile:
        files.append((MODELFILE, "what Ollama needs besides"))
    files.append(("recipe.json", "what was done, in the source model's numbering"))
    if protocol is not None:
        kept = " and the token ids that perplexity was measured on" if protocol.kept else ""
        files += [
            (RECORD, "these numbers, machine-readable"),
            (SAMPLE, f"logits of a few windows{kept}, to check the files against"),
            (SUMS, "SHA-256 of every file"),
        ]
    notes = [f"\nNote: {escape(note)}" for part in record.parts for note in part.notes]
    return "\n".join([*(f"- {_code(name)}: {escape(words)}" for name, words in files), *notes])


def _code(text: str) -> str:
    """A code span, which only a backtick could end."""
    return f"`{_line(text).replace('`', '')}`"


def _running(record: ShipRecord, has_modelfile: bool) -> str:
    checkpoint, gguf = record.part("checkpoint"), record.part("gguf")
    sections: list[str] = []
    if checkpoint:
        consent = "" if checkpoint.plain else ", trust_remote_code=True"
        adapter = f'model = PeftModel.from_pretrained(model, "{ADAPTER}")'
        needs = f" (and {checkpoint.library}{' and PEFT' if checkpoint.adapter else ''})" if checkpoint.library else ""
        sections.append(
            f"With transformers{needs}, from this folder or the repository's id:\n\n"
            + _block(
                "python",
                *(["from peft import PeftModel"] if checkpoint.adapter else []),
                "from transformers import AutoModelForCausalLM, AutoTokenizer",
                "",
                f'model = AutoModelForCausalLM.from_pretrained("{HERE}"{consent})',
                *([adapter] if checkpoint.adapter else []),
                f'tokenizer = AutoTokenizer.from_pretrained("{HERE}")',
            )
        )
        if not checkpoint.plain:
            sections.append(
                "Its blocks differ, so one small modelling file, which needs nothing but transformers, builds them. "
                "`trust_remote_code=True` is your consent to run it: read it first."
            )
    if gguf:
        file = shlex.quote(_line(gguf.files[0]))
        file += f" --lora {shlex.quote(_line(gguf.adapter))}" if gguf.adapter else ""
        sections.append(
            "With llama.cpp:\n\n"
            + _block("sh", f"llama-cli -m {file} -p 'Once upon a time' -n 64", f"llama-server -m {file}")
        )
    if gguf and has_modelfile:
        name = _ollama_name(record.origin.name)
        sections.append("With Ollama:\n\n" + _block("sh", f"ollama create {name} -f {MODELFILE}", f"ollama run {name}"))
    return "\n\n".join(sections)


def _ollama_name(name: str) -> str:
    plain = "".join(c if c.isascii() and (c.isalnum() or c in "-_.") else "-" for c in name.lower()).strip("-_.")
    return f"{plain or 'model'}-smaller"


def _block(language: str, *lines: str) -> str:
    return "\n".join([f"```{language}", *lines, "```"])


def _again(record: ShipRecord, recipe: Recipe) -> str:
    """Commands and Python lines that give the same numbers and the same folder."""
    checkpoint, gguf = record.part("checkpoint"), record.part("gguf")
    model = DEFAULT if recipe.model.id == DEFAULT else _line(record.origin.base_model or record.origin.name)
    calibration = next(iter(_calibration_texts(recipe)), None)
    cut = _Cut.of(record.protocol)
    forms = "" if recipe.model.id == model else f" --model {shlex.quote(model)}"
    forms += "" if calibration is None else f" --calibration {shlex.quote(calibration)}"
    forms += "" if checkpoint else " --no-checkpoint"
    forms += f" --type {gguf.type}" if gguf else ""
    revision = f", {_line(recipe.model.revision)!r}" if recipe.model.revision else ""
    offered = "[]" if calibration is None else f"[TextChoice({calibration!r}, purpose='calibration')]"
    lines = [
        "from pathlib import Path",
        "",
        "from surgery.recipe.recipe import Recipe",
        "from surgery.shipping.weights import ShipOptions",
        "from surgery.shipping.ship import ship",
        "from surgery.recipe.texts import TextChoice; from surgery.workbench.workbench import Workbench",
        "",
        f"model = Workbench().open({model!r}{revision})",
        f"text = {cut.python}",
        f"options = ShipOptions(checkpoint={checkpoint is not None}, gguf={gguf.type if gguf else None!r})",
        f"shipped = ship(model, Recipe.load(Path('recipe.json')), Path('again'), text, options, {offered})",
        "print(shipped.document())",
    ]
    known = recipe.model.id == DEFAULT or record.origin.base_model is not None
    place = "" if known else f" {_code(model)} stands for the source model, a folder or file of your own."
    return "\n\n".join(
        [
            f"With Model Surgery, and the recipe `{record.recipe}` of this folder.{place}",
            _block("sh", f"python -m surgery ship recipe.json --out again{forms}{cut.shell}"),
            "or from Python:",
            _block("python", *lines),
        ]
    )


@dataclass(frozen=True)
class _Cut:
    """How the measured windows are asked for."""

    shell: str
    python: str

    @classmethod
    def of(cls, protocol: Protocol | None) -> _Cut:
        """That of a protocol; the default one where nothing was measured."""
        if protocol is None:
            return cls("", "TextChoice()")
        text = _text_name(protocol)
        shell = f" --text {shlex.quote(text)} --window {protocol.window} --windows {protocol.windows}"
        numbers = f"{protocol.window}, {protocol.windows}, spread={protocol.spread}"
        return cls(shell + (" --spread" if protocol.spread else ""), f"TextChoice({text!r}, {numbers})")


def _text_name(protocol: Protocol) -> str:
    return PASTED if protocol.text == "pasted" else _line(protocol.text)


def _calibration_texts(recipe: Recipe) -> list[str]:
    """Names of the texts that must be offered to compute the recipe's edits again."""
    edits = (edit for edit in recipe.edits if isinstance(edit, Compensate | Quantize | Eora))
    sources: Iterable[str] = (_line(edit.text.source) for edit in edits if edit.text is not None)
    return list(dict.fromkeys(source for source in sources if source != "embedded"))


def _checking(protocol: Protocol | None) -> str:
    if protocol is None:
        return "`python -m surgery ship` makes a folder that can be checked, with sums and measurements."
    text = "" if protocol.kept else f" --text {shlex.quote(_text_name(protocol))}"
    return (
        _block("sh", f"sha256sum --check {SUMS}", f"python -m surgery verify .{text}")
        + "\n\nThe second reads the files back and compares logits and perplexity with what was recorded."
    )
