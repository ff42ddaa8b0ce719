"""Tiny open models for sessions and presenters: a random model, and a tokenizer of one token a character."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from analysis.model.describe import describe
from surgery.models.loading import Loaded, fingerprint
from surgery.workbench.open_model import OpenModel
from tests.tiny_models import VOCAB, build


class CharacterTokenizer:
    """As much of a transformers tokenizer as the core uses."""

    bos_token_id = None
    chat_template = None
    eos_token_id = None

    def __call__(self, text: str, **options: Any) -> dict[str, list[int]]:
        return {"input_ids": [ord(character) % VOCAB for character in text]}

    def decode(self, ids: list[int], **options: Any) -> str:
        return "".join(chr(ord("a") + number % 26) for number in ids)

    def save_pretrained(self, folder: str | Path) -> None:
        Path(folder, "tokenizer.json").write_text("{}")


def loaded(family: str = "smollm", name: str = "tiny", seed: int = 0) -> Loaded:
    model = build(family, seed).requires_grad_(False)
    return Loaded(name, None, model, CharacterTokenizer(), describe(model), fingerprint(model))


def open_model(family: str = "smollm", name: str = "tiny", seed: int = 0) -> OpenModel:
    return OpenModel(loaded(family, name, seed))
