"""A shipped form as a model in memory, from its folder alone and without running anything from there."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from surgery.common.progress import Report, silent
from surgery.formats.table import FORMATS, PLAIN
from surgery.shipping.record import SAMPLE, Part


@dataclass(frozen=True)
class ReadBack:
    """A form in memory: a model of transformers (or of PEFT over one), and the tokenizer."""

    model: Any
    tokenizer: Any

    @property
    def dtype(self) -> str:
        """The number type that it computes in."""
        return str(self.model.dtype).removeprefix("torch.")


def read_back(folder: Path, part: Part, report: Report = silent) -> ReadBack:
    """Load one form of a folder that `ship` made. Raises InputError: a file is absent or damaged, or too large."""
    report(0.0, f"Reading {part.files[0]} back")
    config = folder if (folder / "config.json").is_file() else (folder / SAMPLE).parent
    row = FORMATS.get(part.kind) or FORMATS.get(part.library, PLAIN)
    return ReadBack(*row.read(folder, part.files[0], part.adapter, config, report))
