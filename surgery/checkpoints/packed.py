"""A quantised checkpoint as a model in memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from surgery.errors import CorruptFile, brief
from surgery.folders.folder import Folder
from surgery.folders.modeling import classes, family_of
from surgery.models.checks import quiet
from surgery.models.source import configuration_of
from surgery.models.tokenizer import open_tokenizer


def load_packed(folder: Path, adapter: Path | None) -> tuple[Any, Any]:
    """A quantised checkpoint, by transformers and the format's own library, and its tokenizer.

    Args:
        folder: the checkpoint; no code from it is run.
        adapter: the folder of a PEFT adapter that counts with it.

    Raises:
        CorruptFile: a file is absent or damaged.
    """
    from transformers import AutoModelForCausalLM

    files = Folder(folder)
    try:
        with quiet():
            raw, model_class = files.json("config.json"), AutoModelForCausalLM
            family = family_of(raw)
            kind = family or str(raw["model_type"])
            config = configuration_of(raw, kind, family is not None)
            if family is not None:  # our own modelling file: the copy in the folder is not run
                model_class = classes(family)[1]
            options = {"dtype": torch.float32, "use_safetensors": True, "trust_remote_code": False}
            model = model_class.from_pretrained(str(folder), config=config, **options)
            tokenizer = open_tokenizer(folder, folder.name, model.config, files.settings("tokenizer_config.json"))
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
