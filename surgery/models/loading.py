"""Loading a model: the embedded one, a Hub id, a directory, a GGUF file. Never a pickle, never the model's own code."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from analysis.model.architecture import Architecture
from analysis.model.describe import describe
from surgery.common.progress import silent
from surgery.folders.folder import Folder
from surgery.models import embedded
from surgery.models.checks import float32_bytes, must_fit, quiet
from surgery.models.from_checkpoint import folder_tokenizer, load_checkpoint, located, understood
from surgery.models.from_gguf import load_gguf

DEFAULT = "default"
Progress = Callable[[float, str], None]


@dataclass(frozen=True)
class Loaded:
    """A model in memory, shared and read-only."""

    id: str
    revision: str | None
    model: nn.Module
    tokenizer: Any
    architecture: Architecture
    fingerprint: str
    note: str = ""
    """What a person should know of its numbers."""
    dtype: torch.dtype = torch.float32
    """The number type that the source stores its weights in, whatever they are computed in here."""


def load(
    source: str,
    revision: str | None = None,
    progress: Progress | None = None,
    trust_remote_code: bool = False,
    gpu: bool = True,
) -> Loaded:
    """Load a causal language model for inspection and surgery.

    Args:
        source: `default`, a Hub id, a directory or a .gguf file.
        revision: branch, tag or commit, for a Hub id.
        trust_remote_code: run the checkpoint's own Python code; off unless the user asks.
        gpu: whether a GPU may be used, if there is one.

    Raises:
        InputError: one of its subclasses says what is wrong and what to do.
        UnsupportedArchitecture: loaded, but not of a structure that can be mapped.
    """
    report = progress or silent
    with quiet():
        if source == DEFAULT:
            folder = Folder(embedded.directory(progress), "the embedded model")
            report(0.5, "Loading the embedded model")
            model, tokenizer, held = load_checkpoint(folder, None, False, gpu)
            dtype = held.dtype
            note = "Its weights were rounded to 4 bits once already (Q4_1), before they came here."
        elif source.lower().endswith(".gguf"):
            report(0.1, "Converting the GGUF file")
            model, tokenizer = load_gguf(Path(source))
            dtype = model.dtype
            note = "Its weights come from a GGUF file, turned back into floating point."
        else:
            report(0.1, f"Loading {source}")
            folder = located(source, revision, trust_remote_code)
            model, tokenizer, held = load_checkpoint(folder, revision, trust_remote_code, gpu)
            dtype, note = held.dtype, " ".join(held.notes)
    model.eval().requires_grad_(False)
    architecture = describe(model)
    report(1.0, "Loaded")
    return Loaded(source, revision, model, tokenizer, architecture, fingerprint(model), note, dtype)


def load_empty(folder: Path) -> tuple[Any, Any]:
    """The model of a folder's configuration, on torch's meta device, and its tokenizer. Nothing from there is run.

    Args:
        folder: with config.json and the tokenizer's files; its weights, if it has any, are not read.

    Raises:
        InputError: a file is absent or damaged, or there is no memory for the model's weights in float32.
    """
    with quiet():
        source = understood(Folder(folder, str(folder)))
        must_fit(float32_bytes(source.empty))
        return source.empty.eval(), folder_tokenizer(source)


def fingerprint(model: nn.Module) -> str:
    """Identity of a model's weights: SHA-256 over names, shapes and 64 values of each tensor, 16 hexadecimal digits."""
    digest = hashlib.sha256()
    for name, parameter in sorted(model.named_parameters()):
        digest.update(f"{name}{tuple(parameter.shape)}".encode())
        if not parameter.is_meta:
            flat = parameter.detach().flatten()
            digest.update(flat[:: max(1, flat.numel() // 64)][:64].float().cpu().numpy().tobytes())
    return digest.hexdigest()[:16]
