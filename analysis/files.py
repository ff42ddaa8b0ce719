"""Files that are read: regular ones alone. A pipe or a device has no end, and may never give a first byte."""

from __future__ import annotations

from pathlib import Path
from stat import S_ISDIR, S_ISREG

from analysis.errors import InputError, TextError

TEXT_SUFFIXES = (".txt", ".jsonl", ".parquet")
LARGEST_TEXT = 256 * 2**20
"""Bytes of a text file that is read; a larger one is refused."""


def size_of(path: Path, error: type[InputError] = InputError) -> int | None:
    """Bytes of a regular file; None where there is none of that name, or a folder.

    Args:
        path: symbolic links are followed.
        error: the class that is raised.

    Raises:
        InputError: it is a named pipe, a device or a socket.
    """
    try:
        found = path.stat()
    except (OSError, ValueError):  # a name that is too long or holds a null, a folder that may not be entered
        return None
    if S_ISREG(found.st_mode):
        return found.st_size
    if S_ISDIR(found.st_mode):
        return None
    raise error(f"{str(path)[:200]!r} is not a regular file (a pipe or a device): give the path of a file.")


def check_folder(folder: Path) -> None:
    """Refuse a folder in which a library could open something that is no file, and wait for it.

    Raises:
        InputError: an entry of the folder is a named pipe, a device or a socket; the message names it.
    """
    try:
        entries = sorted(folder.iterdir())
    except OSError:  # who reads the folder says what is wrong with it
        return
    for entry in entries:
        size_of(entry)


def check_text_source(source: str) -> None:
    """Refuse the name of a text that can be told to be wrong without reading it. Loads no heavy library.

    Args:
        source: as `analysis.text.load_text` takes it.

    Raises:
        TextError: a path without a regular file, of another kind than .txt, .jsonl and .parquet, or too large.
    """
    if source in ("embedded", "wikitext-2"):
        return
    if source.startswith("hub:"):
        hub_parts(source)
        return
    path = Path(source)
    size = size_of(path, TextError)
    if size is None:
        raise TextError(
            f"There is no text file {source[:200]!r}: use `embedded`, `wikitext-2`, `hub:owner/name` or a path."
        )
    if size > LARGEST_TEXT:
        raise too_large(path)
    if path.suffix.lower() not in TEXT_SUFFIXES:
        raise TextError(f"{path.name} is not a .txt, .jsonl or .parquet file: convert it to one of these.")


def too_large(path: Path) -> TextError:
    """The refusal of a text file with too many bytes."""
    return TextError(f"{path.name} is larger than {LARGEST_TEXT // 2**20} MiB: cut it to the part you need.")


def hub_parts(source: str) -> tuple[str, str | None, str]:
    """Name, configuration and split of `hub:owner/name[:configuration[:split]]`. Raises TextError: malformed."""
    parts = source.removeprefix("hub:").split(":")
    if not parts[0] or len(parts) > 3:
        raise TextError(f"{source[:200]!r} is not a data set: write it as `hub:owner/name[:configuration[:split]]`.")
    return parts[0], (parts[1] or None) if len(parts) > 1 else None, (parts[2] if len(parts) > 2 else "") or "train"
