"""A tiny model that can be shipped: loaded from a folder with a tokenizer that can be saved and loaded again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from surgery.models.loading import load
from surgery.recipe.base import ChosenBy
from surgery.recipe.edits import Compensate, PruneNeurons, RemoveAttention
from surgery.recipe.recipe import Recipe
from surgery.recipe.texts import TextChoice, text_reference
from surgery.workbench.open_model import OpenModel
from tests import tiny_checkpoints
from tests.tiny_models import _GQA, _make, build

TEXT = TextChoice(window=16, windows=3)
CALIBRATION = TextChoice(window=16, windows=8, purpose="calibration")
CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def source(folder: Path, words: Any = None, family: str = "") -> OpenModel:
    """An open model that came from a checkpoint folder; if no family is named, a Llama whose rows are whole blocks of
    GGML's small types."""
    torch.manual_seed(0)
    model = (
        build(family) if family else _make(LlamaForCausalLM, LlamaConfig, _GQA, hidden_size=96, intermediate_size=64)
    )
    return OpenModel(load(str(tiny_checkpoints.save(model, folder, words))))


def mixed(model: OpenModel) -> Recipe:
    """Blocks that differ."""
    narrow = PruneNeurons(removed={1: tuple(range(16))}, chosen_by=ChosenBy(method="maw"))
    return model.recipe(RemoveAttention(blocks=(2,)), narrow)


def compensated(model: OpenModel) -> Recipe:
    """Narrowed alike everywhere, with refits."""
    narrow = PruneNeurons(removed={block: tuple(range(16)) for block in range(4)})
    text = text_reference(model.windows(CALIBRATION))
    return model.recipe(narrow, Compensate(how="least_squares", text=text))
