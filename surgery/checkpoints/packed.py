"""A quantised checkpoint as a model in memory."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from analysis.files import check_folder
from surgery.errors import CorruptFile, brief
from surgery.folders.files import LARGEST_JSON
from surgery.folders.modeling import classes, family_of
from surgery.models.checks import quiet


def load_packed(folder: Path, adapter: Path | None) -> tuple[Any, Any]:
    """A quantised checkpoint, by transformers and the format's own library, and its tokenizer.

    Args:
        folder: the checkpoint; no code from it is run.
        adapter: the folder of a PEFT adapter that counts with it.

    Raises:
        CorruptFile: a file is absent or damaged.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer

    source = str(folder)
    check_folder(folder)
    try:
        with quiet():
            config, model_class = None, AutoModelForCausalLM
            raw = _json(folder / "config.json")
            family = family_of(raw)
            if family is not None:  # our own modelling file: the copy in the folder is not run
                config_class, model_class = classes(family)
                config = config_class.from_pretrained(source)
            options = {"dtype": torch.float32, "use_safetensors": True, "trust_remote_code": False}
            model = model_class.from_pretrained(source, config=config, **options)
            tokenizer = AutoTokenizer.from_pretrained(source, config=model.config, trust_remote_code=False)
            if adapter is not None:
                model = _with_adapter(model, adapter)
    except CorruptFile:
        raise
    except Exception as error:  # a damaged file can raise anything
        raise CorruptFile(f"{folder.name} could not be loaded ({brief(error)}): ship it again.") from None
    return model.eval().requires_grad_(False), tokenizer


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
