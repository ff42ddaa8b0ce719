"""A written checkpoint as its user opens it: by transformers' Auto classes, and a few tokens that it generates."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from surgery.checkpoints.save import MODELLING_FILE, modelling_file
from surgery.errors import VerificationFailed, brief
from surgery.models.checks import check_whole, must_fit, quiet
from surgery.shipping.record import Part, Run

TOKENS = 8
"""Tokens that are generated."""


def stock_run(folder: Path, part: Part, ids: torch.Tensor) -> Run | None:
    """Open a checkpoint with stock transformers and let it generate.

    Code of the folder is run only where it is this tool's own modelling file, byte for byte. A checkpoint that brings
    the source model's own code is not tried.

    Args:
        folder: the checkpoint.
        part: what the record says of it.
        ids: the prompt, (1, tokens).

    Returns:
        What was tried; None where nothing was.

    Raises:
        VerificationFailed: it does not open, or does not generate.
        DoesNotFit: there is no memory for its weights.
    """
    config = json.loads((folder / "config.json").read_text("utf-8"))
    own = not part.plain and _is_ours(folder, config)
    if "auto_map" in config and not own:
        return None
    import transformers

    must_fit(part.bytes)
    try:
        with quiet():
            tried = _tried(folder, part, ids, own)
    except Exception as error:  # whatever a library makes of it
        raise VerificationFailed(
            f"transformers {transformers.__version__} cannot run {folder.name} ({brief(error)}): ship it in another "
            "form, or change the recipe."
        ) from None
    return Run(version=transformers.__version__, tried=tried)


def _is_ours(folder: Path, config: dict[str, Any]) -> bool:
    text = (folder / f"{MODELLING_FILE}.py").read_text("utf-8")
    return text == modelling_file(str(config["base_model_type"]))


@torch.inference_mode()
def _tried(folder: Path, part: Part, ids: torch.Tensor, own: bool) -> tuple[str, ...]:
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    source = str(folder)
    tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=False)
    AutoConfig.from_pretrained(source, trust_remote_code=own)
    model, info = AutoModelForCausalLM.from_pretrained(source, trust_remote_code=own, output_loading_info=True)
    check_whole(folder.name, info)
    tried = ["AutoTokenizer", "AutoConfig", "AutoModelForCausalLM"]
    if part.adapter:
        from peft import PeftModel

        model = PeftModel.from_pretrained(model, str(folder / part.adapter))
        tried.append("PeftModel")
    made = model.generate(input_ids=ids, max_new_tokens=TOKENS, do_sample=False)
    tokenizer.decode(made[0])
    return (*tried, "generate")
