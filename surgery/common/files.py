"""Room on a disk, and a folder as one zip file."""

from __future__ import annotations

import os
import shutil
import uuid
import zipfile
from collections.abc import Callable
from pathlib import Path

import platformdirs

from surgery.errors import InputError, RecipeError

CHUNK = 8 * 2**20
"""Bytes copied between two reports."""
SPARE = 64 * 2**20
"""Bytes that the tokenizer and the other small files may take."""


def refuse_without_room(folder: Path, needed: int, doing: str = "Building") -> None:
    """Say so before the work when a disk cannot hold what it makes.

    Args:
        folder: on that disk; it, or a folder above it, is there.
        needed: bytes, the small files apart.
        doing: what needs them.

    Raises:
        InputError: it cannot.
    """
    there = next(place for place in (folder, *folder.absolute().parents) if place.is_dir())
    free = shutil.disk_usage(there).free
    if free < needed + SPARE:
        raise InputError(
            f"{doing} needs {(needed + SPARE) / 1e6:,.0f} MB of free disk space and there are "
            f"{free / 1e6:,.0f} MB: remove more, or free some space."
        )


def zip_folder(folder: Path, path: Path, report: Callable[[float], None] = lambda share: None) -> None:
    """Store a folder's files under its name in a zip file (uncompressed), which appears when it is complete.

    Args:
        folder: what goes in.
        path: the file; it must not be inside the folder.
        report: told the share done; may raise to stop, which leaves nothing behind.

    Raises:
        OSError: it cannot be written.
    """
    files = sorted(entry for entry in folder.rglob("*") if entry.is_file())
    total, done = max(1, sum(entry.stat().st_size for entry in files)), 0
    temporary = path.with_name(f".{path.name}.part")
    try:
        with zipfile.ZipFile(temporary, "w", zipfile.ZIP_STORED) as archive:
            for entry in files:
                name = f"{folder.name}/{entry.relative_to(folder).as_posix()}"
                with entry.open("rb") as source, archive.open(name, "w", force_zip64=True) as target:
                    while chunk := source.read(CHUNK):
                        target.write(chunk)
                        done += len(chunk)
                        report(done / total)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_atomically(path: Path, text: str) -> None:
    """Write a UTF-8 text file so that a reader sees the old file or the new one, never a part.

    Raises:
        RecipeError: the folder cannot be written or the disk is full.
    """
    temporary = path.with_name(f".{uuid.uuid4().hex}.part")
    try:
        temporary.write_text(text, "utf-8")
        os.replace(temporary, path)
    except OSError as error:
        raise RecipeError(
            f"{str(path)!r} cannot be written ({error.strerror}): choose another place or free some space."
        ) from None
    finally:
        temporary.unlink(missing_ok=True)


def cache_directory() -> Path:
    """The cache folder: `MODEL_SURGERY_CACHE`, else `model-surgery` under the user's cache folder."""
    chosen = os.environ.get("MODEL_SURGERY_CACHE")
    return Path(chosen) if chosen else Path(platformdirs.user_cache_dir("model-surgery"))


def check_free(out: Path) -> None:
    """Refuse a folder that has something in it.

    Raises:
        InputError: it has, or it is a file.
    """
    try:
        used = out.is_file() or (out.is_dir() and any(out.iterdir()))
    except OSError as error:
        raise InputError(f"The folder {str(out)[:200]!r} cannot be read ({error.strerror}): choose another.") from None
    if used:
        raise InputError(f"{str(out)!r} is there already: choose a new folder, or delete that one first.")
