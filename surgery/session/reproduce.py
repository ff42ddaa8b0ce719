"""The command line and the Python lines that give the numbers of a recipe again. Pure."""

from __future__ import annotations

import shlex
from dataclasses import dataclass

from surgery.session.view import View

RECIPE_FILE, TEXT_FILE, DEVICE_FILE = "recipe.json", "text.txt", "device.json"
"""Names of the files that a person saves beside the lines: what the page exports, pasted, or was given."""


@dataclass(frozen=True)
class Lines:
    """Lines to type, and what has to be saved first, one sentence each."""

    commands: tuple[str, ...]
    python: str
    notes: tuple[str, ...]


def lines_of(view: View) -> Lines | None:
    """What reproduces a view; None before a model is open."""
    if view.model is None or view.history is None or view.structure is None:
        return None
    edited, text, target = bool(view.history.current.edits), view.text, view.target
    notes = [f"Export the recipe as {RECIPE_FILE} first."] if edited else []
    source = text.source
    if text.content is not None:
        source = TEXT_FILE
        notes.append(f"Save the pasted text as {TEXT_FILE}.")
    elif not text.source.startswith("hub:") and text.source not in ("embedded", "wikitext-2"):
        source = TEXT_FILE
        notes.append(f"Save the uploaded text as {TEXT_FILE}, with the ending that it has.")
    device = target.device
    if "/" in device or "\\" in device:
        device = DEVICE_FILE
        notes.append(f"Save your device file as {DEVICE_FILE}.")
    return Lines(_commands(view, edited, source, device), _python(view, edited, source), tuple(notes))


def _commands(view: View, edited: bool, source: str, device: str) -> tuple[str, ...]:
    assert view.model is not None and view.structure is not None  # the caller has checked
    loaded, text, target = view.model.loaded, view.text, view.target
    model = [loaded.id, *(["--revision", loaded.revision] if loaded.revision else [])]
    recipe = ["--recipe", RECIPE_FILE] if edited else []
    spread = ["--spread"] if text.spread else []
    kind = ["--type", target.type] if view.structure.quantize is None else []  # else the recipe says it
    measured = ["--text", source, "--window", text.window, "--windows", text.windows, *spread]
    aimed = ["--device", device, "--context", target.context, *kind, "--kv-type", target.kv_type]
    rows: list[list[object]] = [["evaluate", *model, *recipe, *measured], ["fit", *model, *recipe, *aimed]]
    if edited:
        rows.append(["build", RECIPE_FILE, "--out", "smaller"])
        rows.append(["ship", RECIPE_FILE, "--out", "shipped", *measured])
    return tuple(shlex.join(["python", "-m", "surgery", *map(str, row)]) for row in rows)


def _python(view: View, edited: bool, source: str) -> str:
    assert view.model is not None  # the caller has checked
    loaded, text = view.model.loaded, view.text
    opening = repr(loaded.id) if loaded.revision is None else f"{loaded.id!r}, {loaded.revision!r}"
    spread = ", spread=True" if text.spread else ""
    structure = [
        f'recipe = Recipe.load(Path("{RECIPE_FILE}"))',
        "structure = model.complete(model.resolve(recipe)).structure",
    ]
    lines = [
        *(["from pathlib import Path", ""] if edited else []),
        f"from surgery import {'Recipe, ' if edited else ''}TextChoice, Workbench",
        "",
        f"model = Workbench().open({opening})",
        *(structure if edited else ["structure = model.evaluator.dense"]),
        f"windows = model.windows(TextChoice({source!r}, {text.window}, {text.windows}{spread}))",
        "print(model.evaluator.measure(structure, windows).perplexity)",
    ]
    return "\n".join(lines)
