"""Writing the built model as a checkpoint folder that stock transformers loads."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from surgery.checkpoints.build import Built
from surgery.common.files import new_folder
from surgery.common.progress import Report, silent
from surgery.folders import modeling as checkpoint_model
from surgery.folders.older_readers import older_entries
from surgery.models.checks import quiet
from surgery.models.tokenizer import write_tokenizer
from surgery.recipe.recipe import Recipe

MODELLING_FILE = "modeling_model_surgery"
RECIPE_FILE = "recipe.json"
SHARD = "5GB"
Write = Callable[[Path], dict[str, Any]]
"""Writes the weights and config.json into a folder, and returns what config.json is to say besides."""


@dataclass(frozen=True)
class Saved:
    """A written checkpoint."""

    path: Path
    parameters: int
    bytes: int
    """Of the weight files."""
    plain: bool
    """Whether transformers loads it without `trust_remote_code`."""
    files: list[str]
    dtype: str
    """The number type that config.json names."""

    def document(self) -> dict[str, Any]:
        """The contract's JSON keys."""
        return {
            "path": str(self.path),
            "parameters": self.parameters,
            "bytes": self.bytes,
            "uniform": self.plain,
            "files": self.files,
            "dtype": self.dtype,
        }


def save_checkpoint(
    built: Built,
    tokenizer: Any,
    recipe: Recipe,
    out: Path,
    report: Report = silent,
    write: Write | None = None,
    dtype: torch.dtype | None = None,
) -> Saved:
    """Write weights, configuration, tokenizer, chat template, generation settings and the recipe into a new folder.

    The folder is written under a temporary name and renamed; one that has something in it is never touched.

    Args:
        write: writes the weights in another form than the model's own.
        dtype: the number type to round the weights to; if None that of `built`, in which a weight is written if that
            changes no value of it.

    Raises:
        InputError: the folder is in use, cannot be written, or the disk is full.
    """
    failure = f"The checkpoint cannot be written to {str(out)!r}"
    with new_folder(out, failure, "free some space or choose another folder") as made:
        report(0.1, "Writing the weights")
        named = _write(built, tokenizer, recipe, made, write, dtype)
        report(0.9, "Putting the folder in place")
    report(1.0, "Built")
    files = sorted(path.name for path in out.iterdir())
    size = sum((out / name).stat().st_size for name in files if name.endswith(".safetensors"))
    return Saved(out, sum(p.numel() for p in built.model.parameters()), size, built.plain, files, named)


def _write(
    built: Built, tokenizer: Any, recipe: Recipe, made: Path, write: Write | None, dtype: torch.dtype | None
) -> str:
    """Write everything; the number type that config.json names."""
    model = built.model
    more: dict[str, Any] = {}
    with quiet():
        if write is None:
            kind = dtype or built.dtype or model.dtype
            model.save_pretrained(made, state_dict=_cast(model, kind, dtype is None), max_shard_size=SHARD)
            more = {"dtype": str(kind).removeprefix("torch.")}
        else:
            more = write(made)
        write_tokenizer(tokenizer, made)
    (made / RECIPE_FILE).write_text(recipe.to_json(), "utf-8")
    named = _note_recipe(made / "config.json", recipe, built.plain, older_entries(model.config), more)
    if not built.plain:
        (made / f"{MODELLING_FILE}.py").write_text(modelling_file(model.config.base_model_type), "utf-8")
    return named


def modelling_file(family: str) -> str:
    """The text of the file that builds a checkpoint whose blocks differ, over a family of transformers."""
    text = Path(str(checkpoint_model.__file__)).read_text("utf-8")
    return f"{text}\n\nSurgeryConfig, SurgeryForCausalLM = classes({family!r})\n"


def _cast(model: Any, kind: torch.dtype, exactly: bool) -> dict[str, torch.Tensor]:
    """The model's state in a number type, tensors that are shared still shared.

    Args:
        exactly: leave a tensor as it is where a value of it would change.
    """
    made: dict[int, torch.Tensor] = {}
    state = model.state_dict()
    for tensor in state.values():
        if tensor.data_ptr() not in made and tensor.is_floating_point():
            other = tensor.to(kind)
            kept = exactly and not torch.equal(other.to(tensor.dtype), tensor)
            made[tensor.data_ptr()] = tensor if kept else other
    return {name: made.get(tensor.data_ptr(), tensor) for name, tensor in state.items()}


def _note_recipe(path: Path, recipe: Recipe, plain: bool, older: dict[str, Any], more: dict[str, Any]) -> str:
    """The recipe's hash, where the code of a checkpoint with differing blocks is, and what else there is to say.

    Args:
        older: under names that transformers 5 writes no more; never in place of what it writes.

    Returns:
        The number type that is named.
    """
    config = older | json.loads(path.read_text("utf-8")) | more
    config["model_surgery_recipe"] = recipe.key
    if not plain:
        config["auto_map"] = {
            "AutoConfig": f"{MODELLING_FILE}.SurgeryConfig",
            "AutoModelForCausalLM": f"{MODELLING_FILE}.SurgeryForCausalLM",
        }
    path.write_text(json.dumps(config, indent=2) + "\n", "utf-8")
    return str(config["dtype"])
