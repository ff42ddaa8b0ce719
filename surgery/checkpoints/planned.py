"""The checkpoint that a structure would be saved as, known without building it: configuration, names, shapes.

With it the size of every file is arithmetic. Shapes come from a draft of the model on torch's meta device, where
tensors have no values; the tokenizer's files are written once a model, since their contents go into GGUF files.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import nn

from analysis.model.architecture import Architecture
from analysis.model.modules import shallow_copy
from surgery.checkpoints.build import draft_model
from surgery.common.scratch import ScratchFolder
from surgery.folders.files import PlannedCheckpoint
from surgery.models.checks import quiet
from surgery.models.loading import Loaded
from surgery.models.tokenizer import write_tokenizer
from surgery.structure.structure import Structure


class Planner:
    """Plans checkpoints of one loaded model."""

    def __init__(self, loaded: Loaded) -> None:
        self.architecture: Architecture = loaded.architecture
        self._base = on_meta(loaded.model)
        self._tokenizer = loaded.tokenizer
        self._scratch: ScratchFolder | None = None

    def plan(self, structure: Structure) -> PlannedCheckpoint:
        """The checkpoint of a structure; what is still to be computed in it changes no shape.

        Raises:
            RecipeError: no checkpoint can express it.
        """
        draft = draft_model(self._base, self.architecture, structure.floating_shape)
        shapes = {name: tuple(tensor.shape) for name, tensor in draft.tensors.items()}
        if self.architecture.tied:
            shapes.pop(f"{self.architecture.head}.weight", None)
        with quiet():
            config = json.loads(draft.config.to_json_string(use_diff=False))
        return PlannedCheckpoint(self._small_files(), config, shapes, draft.plain)

    def _small_files(self) -> Path:
        """A folder with the tokenizer and the generation settings, made on first use; gone with this object."""
        if self._scratch is None:
            scratch = ScratchFolder(Path(tempfile.gettempdir()))
            folder = scratch.path
            with quiet():
                write_tokenizer(self._tokenizer, folder)
                if self._base.generation_config is not None:
                    self._base.generation_config.save_pretrained(folder)
            (folder / "config.json").write_text("{}", "utf-8")
            self._scratch = scratch
        return self._scratch.path


def on_meta(model: nn.Module) -> Any:
    """A copy of a model whose tensors have shapes and types but no values; tied tensors stay one."""
    new: Any = shallow_copy(model)
    moved: dict[int, nn.Parameter] = {}
    for module in new.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                if id(parameter) not in moved:
                    moved[id(parameter)] = nn.Parameter(parameter.detach().to("meta"), requires_grad=False)
                module._parameters[name] = moved[id(parameter)]
        for name, buffer in module._buffers.items():
            module._buffers[name] = buffer if buffer is None else torch.empty_like(buffer, device="meta")
    return new
