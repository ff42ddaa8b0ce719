"""A shipped form as a model in memory, from its folder alone and without running anything from there."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch

from analysis.model.describe import describe
from surgery.checkpoints.files import LARGEST_JSON
from surgery.checkpoints.planned import PlannedCheckpoint
from surgery.errors import CorruptFile, brief
from surgery.gguf.plan import GgufPlan
from surgery.gguf.read import filled, read_tensors
from surgery.gguf.tensors import separate, turned
from surgery.models.checks import quiet
from surgery.models.loading import load, load_empty
from surgery.models.modeling import MODEL_TYPE, classes
from surgery.shipping.record import SAMPLE, Part

Report = Callable[[float, str], None]


@dataclass(frozen=True)
class ReadBack:
    """A form in memory: a model of transformers (or of PEFT over one), and the tokenizer."""

    model: Any
    tokenizer: Any

    @property
    def dtype(self) -> str:
        """The number type that it computes in."""
        return str(self.model.dtype).removeprefix("torch.")


def read_back(folder: Path, part: Part, report: Report = lambda share, words: None) -> ReadBack:
    """Load one form of a shipped folder.

    Args:
        folder: that `ship` made.
        part: the form.
        report: progress.

    Raises:
        InputError: a file is absent or damaged, or there is no memory for it.
    """
    report(0.0, f"Reading {part.files[0]} back")
    if part.kind == "gguf":
        return _load_file(folder, part)
    if part.library:
        return _load_packed(folder, part)
    loaded = load(str(folder), progress=report)
    return ReadBack(loaded.model, loaded.tokenizer)


def _load_file(folder: Path, part: Part) -> ReadBack:
    """The model of a GGUF file; what it would be as a checkpoint is beside it, or among the files for verification."""
    beside = folder if (folder / "config.json").is_file() else (folder / SAMPLE).parent
    empty, tokenizer = load_empty(beside)
    architecture = describe(empty)
    shapes = {name: tuple(tensor.shape) for name, tensor in empty.state_dict().items()}
    if architecture.tied:
        shapes.pop(f"{architecture.head}.weight", None)
    document = json.loads(empty.config.to_json_string(use_diff=False))
    plan = GgufPlan(PlannedCheckpoint(beside, document, shapes, plain=True))
    values = read_tensors(folder / part.files[0], plan)
    if part.adapter:
        _add_adapter(folder / part.adapter, plan, values)
    return ReadBack(filled(values, plan, architecture, empty.config, type(empty)), tokenizer)


def _add_adapter(path: Path, plan: GgufPlan, values: dict[str, np.ndarray]) -> None:
    """Add a LoRA file's products to the weights that llama.cpp would put them beside."""
    try:
        reader = gguf.GGUFReader(path)
        found = {tensor.name: np.array(tensor.data) for tensor in reader.tensors}
        alpha = float(reader.fields["adapter.lora.alpha"].contents())
        for name in {name.removesuffix(".lora_a").removesuffix(".lora_b") for name in found}:
            down, up = found[f"{name}.lora_a"], found[f"{name}.lora_b"]
            rows = separate(up, plan.layout.head_size) if turned(name, plan.layout) else up
            values[name] = values[name] + np.float32(alpha / len(down)) * (rows @ down)
    except (OSError, ValueError, KeyError, IndexError) as error:
        raise CorruptFile(f"{path.name} is not the adapter of this model ({brief(error)}): ship it again.") from None


def _load_packed(folder: Path, part: Part) -> ReadBack:
    """A quantised checkpoint, by transformers and the format's own library, with its adapter if it has one."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    source = str(folder)
    try:
        with quiet():
            config, model_class = None, AutoModelForCausalLM
            raw = _json(folder / "config.json")
            if raw.get("model_type") == MODEL_TYPE:  # our own modelling file: the copy in the folder is not run
                config_class, model_class = classes(str(raw["base_model_type"]))
                config = config_class.from_pretrained(source)
            options = {"dtype": torch.float32, "use_safetensors": True}
            model = model_class.from_pretrained(source, config=config, **options)
            tokenizer = AutoTokenizer.from_pretrained(source, config=model.config)
            if part.adapter:
                model = _with_adapter(model, folder / part.adapter)
    except CorruptFile:
        raise
    except Exception as error:  # a damaged file can raise anything
        raise CorruptFile(f"{folder.name} could not be loaded ({brief(error)}): ship it again.") from None
    return ReadBack(model.eval().requires_grad_(False), tokenizer)


def _with_adapter(model: Any, folder: Path) -> Any:
    from peft import PeftModel

    if not (folder / "adapter_model.safetensors").is_file():  # PEFT would look for a pickle
        raise CorruptFile(f"The adapter of {folder.parent.name} has no adapter_model.safetensors: ship it again.")
    return PeftModel.from_pretrained(model, str(folder))


def _json(path: Path) -> dict[str, Any]:
    if path.stat().st_size > LARGEST_JSON:
        raise CorruptFile(f"{path.name} is too large: ship the model again.")
    document = json.loads(path.read_text("utf-8"))
    return document if isinstance(document, dict) else {}
