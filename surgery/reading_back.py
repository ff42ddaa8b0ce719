"""A shipped form as a model in memory, from its folder alone and without running anything from there."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from analysis.describe import describe
from surgery.gguf_plan import GgufPlan
from surgery.gguf_reading import filled, read_tensors
from surgery.loading import Loaded, fingerprint, load, load_empty
from surgery.planned_checkpoint import PlannedCheckpoint
from surgery.ship_record import SAMPLE, Part
from surgery.workbench import OpenModel

Report = Callable[[float, str], None]


def read_back(folder: Path, part: Part, report: Report = lambda share, words: None) -> OpenModel:
    """Load one form of a shipped folder.

    Args:
        folder: that `ship` made.
        part: the form.
        report: progress.

    Raises:
        InputError: a file is absent or damaged, or there is no memory for it.
    """
    if part.kind == "checkpoint":
        return OpenModel(load(str(folder), progress=report))
    report(0.0, f"Reading {part.files[0]} back")
    return OpenModel(_load_file(folder, folder / part.files[0]))


def _load_file(folder: Path, path: Path) -> Loaded:
    """The model of a GGUF file; what it would be as a checkpoint is beside it, or among the files for verification."""
    beside = folder if (folder / "config.json").is_file() else (folder / SAMPLE).parent
    empty, tokenizer = load_empty(beside)
    architecture = describe(empty)
    shapes = {name: tuple(tensor.shape) for name, tensor in empty.state_dict().items()}
    if architecture.tied:
        shapes.pop(f"{architecture.head}.weight", None)
    document = json.loads(empty.config.to_json_string(use_diff=False))
    plan = GgufPlan(PlannedCheckpoint(beside, document, shapes, plain=True))
    model = filled(read_tensors(path, plan), plan, architecture, empty.config, type(empty))
    return Loaded(path.name, None, model, tokenizer, describe(model), fingerprint(model))
