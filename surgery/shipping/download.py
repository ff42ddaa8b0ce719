"""A built checkpoint as one file to take away, in a temporary folder that goes when nobody holds it any more."""

from __future__ import annotations

import re
import tempfile
from dataclasses import dataclass
from pathlib import Path

from surgery.checkpoints.build import build_model, stored_dtype
from surgery.checkpoints.save import save_checkpoint
from surgery.common.files import disk_errors, refuse_without_room, zip_folder
from surgery.common.progress import Report, silent
from surgery.common.scratch import ScratchFolder
from surgery.recipe.recipe import Recipe
from surgery.structure.structure import Structure
from surgery.workbench.open_model import OpenModel


@dataclass(frozen=True)
class Archive:
    """What a finished download holds."""

    path: Path
    """A zip file (stored, not compressed) with one folder in it."""
    folder: str
    """That folder's name."""
    recipe: str
    """Key of the recipe that was built."""
    parameters: int
    bytes: int
    """Of the zip file."""
    plain: bool
    """Whether transformers loads the checkpoint without `trust_remote_code`."""


class Download:
    """A folder of its own for one build. It is deleted with the last reference to this object, or with the process.

    What a process that was killed has left is deleted when the next one makes such a folder in the same place.

    Args:
        base: where to make the folder; the system's place for temporary files when None.

    Raises:
        InputError: the folder cannot be made.
    """

    def __init__(self, base: Path | None = None) -> None:
        with disk_errors("No folder can be made for the build", "free some disk space"):
            if base is not None:
                base.mkdir(parents=True, exist_ok=True)
            self._scratch = ScratchFolder(base or Path(tempfile.gettempdir()), hidden=False)
        self.folder = self._scratch.path
        self.packed: Archive | None = None
        """Set when the file is complete."""


def checkpoint_bytes(model: OpenModel, structure: Structure) -> int:
    """Bytes of the weights that a build would write."""
    return structure.parameters * stored_dtype(model.loaded, structure).itemsize


def pack(
    model: OpenModel, structure: Structure, recipe: Recipe, download: Download, report: Report = silent
) -> Archive:
    """Build the model, save it as a checkpoint and put that into one zip file.

    Args:
        structure: what to build; its compensations must have been computed.

    Raises:
        InputError: the recipe cannot be built, or the disk is full.
    """
    refuse_without_room(download.folder, 2 * checkpoint_bytes(model, structure))
    report(0.0, "Building the model")
    built = build_model(model.loaded.model, model.architecture, structure, stored_dtype(model.loaded, structure))
    name = f"{file_name(model.loaded.id)}-{recipe.key}"
    path = download.folder / f"{name}.zip"
    with (
        disk_errors("The download cannot be written", "free some disk space"),
        ScratchFolder(download.folder) as scratch,
    ):
        out = scratch / name
        saved = save_checkpoint(
            built, model.loaded.tokenizer, recipe, out, lambda share, words: report(0.2 + 0.5 * share, words)
        )
        zip_folder(out, path, lambda share: report(0.7 + 0.3 * share, "Packing the files"))
    download.packed = Archive(path, name, recipe.key, saved.parameters, path.stat().st_size, saved.plain)
    return download.packed


def file_name(identity: str) -> str:
    """The last part of a model's name, as a file may be called everywhere."""
    last = re.split(r"[/\\]", identity.rstrip("/\\"))[-1].removesuffix(".gguf")
    return re.sub(r"[^A-Za-z0-9._-]+", "-", last).strip(".-") or "model"
