"""Files and folders that appear when they are complete, and room on a disk for them."""

from __future__ import annotations

import errno
import os
import re
import shutil
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import platformdirs

from surgery.common.scratch import OLD, ScratchFolder, sweep
from surgery.errors import InputError

CHUNK = 8 * 2**20
"""Bytes copied between two reports."""
SPARE = 64 * 2**20
"""Bytes that the tokenizer and the other small files may take."""
SMALL = 2**20
"""Bytes without which no work is worth beginning."""
ADVICE = "choose another place or free some space"


@contextmanager
def disk_errors(failure: str, advice: str = ADVICE) -> Iterator[None]:
    """Turn a block's disk errors, the operating system's and safetensors' own, into one sentence.

    Args:
        failure: what cannot be done, the beginning of the sentence.
        advice: what to do about it, its end.

    Raises:
        InputError: `<failure> (<reason>): <advice>.`
    """
    from safetensors import SafetensorError

    try:
        yield
    except (OSError, SafetensorError) as error:
        raise InputError(f"{failure} ({_reason(error)}): {advice}.") from None


def _reason(error: Exception) -> str:
    """What keeps a file from being written. numpy tells of a full disk in numbers of items alone."""
    if re.fullmatch(r"\d+ requested and \d+ written", str(error)):
        return os.strerror(errno.ENOSPC)
    return getattr(error, "strerror", None) or str(error)


@contextmanager
def new_folder(out: Path, failure: str = "", advice: str = ADVICE, replace: bool = False) -> Iterator[Path]:
    """An empty folder to write into, which is renamed to `out` when the block has ended without an exception.

    It is made beside `out`, inside a temporary folder (its parent) that may hold other files and is always deleted.

    Args:
        out: the folder's name; folders above it are made.
        failure: see `disk_errors`; by default that `out` cannot be written.
        advice: see `disk_errors`.
        replace: whether something that has the name already gives way to the new folder, instead of being refused.

    Raises:
        InputError: the name is in use, or the folder cannot be written; nothing is left behind.
    """
    with disk_errors(failure or f"{str(out)!r} cannot be written", advice):
        if not replace:
            check_free(out)
        out.parent.mkdir(parents=True, exist_ok=True)
        with ScratchFolder(out.parent) as scratch:
            made = scratch / out.name
            made.mkdir()
            yield made
            usual_modes(made)
            if replace and out.exists():
                os.replace(out, made.with_name(f"{out.name}{OLD}"))
            elif not replace:
                check_free(out)
                if out.is_dir():
                    out.rmdir()
            os.replace(made, out)


def usual_modes(folder: Path) -> None:
    """Give the files of a new folder the mode that the umask gives any new file; safetensors lets their owner alone
    read them."""
    mode = folder.stat().st_mode & 0o666
    for path in folder.rglob("*"):
        if path.is_file():
            path.chmod(mode)


@contextmanager
def new_file(path: Path) -> Iterator[Path]:
    """A temporary name to write to, which is renamed to `path` when the block has ended without an exception.

    A reader sees the old file or the new one, never a part.

    Raises:
        InputError: the file cannot be written; nothing is left behind.
    """
    with disk_errors(f"{str(path)!r} cannot be written"), _renamed(path) as temporary:
        yield temporary


@contextmanager
def _renamed(path: Path) -> Iterator[Path]:
    with ScratchFolder(path.parent) as scratch:
        yield scratch / path.name
        os.replace(scratch / path.name, path)


def refuse_without_room(folder: Path, needed: int, doing: str = "Building", spare: int = SPARE) -> None:
    """Say so before the work when a disk cannot hold what it makes.

    Args:
        folder: on that disk; it, or a folder above it, is there.
        needed: bytes, the small files apart.
        doing: what needs them.
        spare: bytes for the small files.

    Raises:
        InputError: it cannot.
    """
    there = next(place for place in (folder, *folder.absolute().parents) if place.is_dir())
    free = shutil.disk_usage(there).free
    if free < needed + spare:
        raise InputError(
            f"{doing}: no space left in {str(there)!r}, {(needed + spare) / 1e6:,.1f} MB needed, {free / 1e6:,.1f} MB "
            "free: remove more, or free some space."
        )


def check_writable(path: Path) -> None:
    """Refuse, before the work, the name of a file that could not be written after it.

    Raises:
        InputError: its folder is absent, read-only or full, or the name is a folder's.
    """
    if path.is_dir():
        raise InputError(f"{str(path)[:200]!r} is a folder: give the name of a file.")
    if not path.parent.is_dir():
        raise InputError(f"There is no folder {str(path.parent)[:200]!r}: make it, or {ADVICE}.")
    if not os.access(path.parent, os.W_OK | os.X_OK):
        raise InputError(f"{str(path.parent)[:200]!r} may not be written to: {ADVICE}.")
    refuse_without_room(path.parent, 0, f"Writing {path.name[:80]}", SMALL)


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
    with _renamed(path) as temporary, zipfile.ZipFile(temporary, "w", zipfile.ZIP_STORED) as archive:
        for entry in files:
            name = f"{folder.name}/{entry.relative_to(folder).as_posix()}"
            # With its mode, as without one only the owner may read what is unpacked.
            info = zipfile.ZipInfo.from_file(entry, name, strict_timestamps=False)
            with entry.open("rb") as source, archive.open(info, "w", force_zip64=True) as target:
                while chunk := source.read(CHUNK):
                    target.write(chunk)
                    done += len(chunk)
                    report(done / total)


def write_atomically(path: Path, text: str) -> None:
    """Write a UTF-8 text file, as `new_file` does."""
    with new_file(path) as temporary:
        temporary.write_text(text, "utf-8")


def cache_directory() -> Path:
    """The cache folder: `MODEL_SURGERY_CACHE`, else `model-surgery` under the user's cache folder."""
    chosen = os.environ.get("MODEL_SURGERY_CACHE")
    return Path(chosen) if chosen else Path(platformdirs.user_cache_dir("model-surgery"))


def sweep_cache() -> None:
    """Delete what killed processes have left in the cache folder and in the folders in it."""
    cache = cache_directory()
    for folder in (cache, *(entry for entry in cache.glob("*") if entry.is_dir())):
        sweep(folder)


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
