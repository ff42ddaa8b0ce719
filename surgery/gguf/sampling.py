"""How a model wants its tokens drawn: what its generation settings say, as GGUF files and Ollama have it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import gguf

from surgery.errors import CorruptFile
from surgery.folders.files import CheckpointFiles

GENERATION = "generation_config.json"


@dataclass(frozen=True)
class Setting:
    """One setting of drawing tokens, under its three names."""

    ours: str
    """transformers'."""
    key: str
    """GGUF's, behind `general.sampling.`."""
    parameter: str
    """Ollama's."""
    whole: bool = False


SETTINGS = (
    Setting("temperature", "temp", "temperature"),
    Setting("top_k", "top_k", "top_k", whole=True),
    Setting("top_p", "top_p", "top_p"),
    Setting("min_p", "min_p", "min_p"),
    Setting("repetition_penalty", "penalty_repeat", "repeat_penalty"),
)


def generation_settings(files: CheckpointFiles) -> dict[str, Any]:
    """generation_config.json; empty where there is none. Raises CorruptFile: it is damaged."""
    return files.json(GENERATION) if files.has(GENERATION) else {}


def sampling(generation: Mapping[str, Any]) -> list[tuple[Setting, float]]:
    """The settings that generation settings name, with their values. Raises CorruptFile: one is not a number."""
    found: list[tuple[Setting, float]] = []
    for setting in SETTINGS:
        value = generation.get(setting.ours)
        if value is None:
            continue
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < math.inf:
            raise CorruptFile(f"{GENERATION} says {setting.ours} {str(value)[:40]!r}: give a number from 0 on.")
        found.append((setting, int(value) if setting.whole else float(value)))
    return found


def add_sampling(writer: gguf.GGUFWriter, generation: Mapping[str, Any]) -> None:
    """Write the keys from which llama.cpp takes its defaults. Raises CorruptFile: see `sampling`."""
    for setting, value in sampling(generation):
        getattr(writer, f"add_sampling_{setting.key}")(value)
