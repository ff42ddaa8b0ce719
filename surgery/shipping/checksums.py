"""SHA-256 sums of a folder's files, in the format that `sha256sum --check` of coreutils reads."""

from __future__ import annotations

import hashlib
import os
import re
from dataclasses import dataclass
from pathlib import Path
from threading import Event

from analysis.files import size_of
from surgery.common.progress import Report, raise_if_set, silent
from surgery.errors import CorruptFile, UnknownModel

SUMS = "SHA256SUMS"
CHUNK = 8 * 2**20
"""Bytes read between two looks at the stop flag."""
LARGEST_SUMS = 4 * 2**20
LONGEST_NAME, LONGEST_PATH = 255, 1000
"""Bytes of a file's name, as file systems have it, and characters of its path in the folder."""
LINE = re.compile(r"([0-9a-f]{64}) [ *](.+)")


@dataclass(frozen=True)
class Checked:
    """What the files of a folder are, against what their sums say."""

    sha256: dict[str, str]
    """Sum of every file as it is now, by its path in the folder; without those that are gone."""
    changed: tuple[str, ...]
    missing: tuple[str, ...]
    unlisted: tuple[str, ...]
    """Files and empty folders beside them that have no sum, hidden ones too: they do not belong to what was shipped."""

    @property
    def holds(self) -> bool:
        """Whether every file with a sum is there and unchanged."""
        return not self.changed and not self.missing


def sha256_of(path: Path, stop: Event | None = None) -> str:
    """SHA-256 of a file, hexadecimal. Raises OSError: it cannot be read."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            raise_if_set(stop)
            digest.update(chunk)
    return digest.hexdigest()


def write_sums(folder: Path, stop: Event | None = None) -> dict[str, str]:
    """Write the sums of every file of a folder and its subfolders into `SHA256SUMS`.

    Returns:
        The sums by path in the folder, with forward slashes.

    Raises:
        OSError: something cannot be read or written.
    """
    found = {name: sha256_of(folder / name, stop) for name in _names(folder)}
    (folder / SUMS).write_text("".join(f"{digest}  {name}\n" for name, digest in found.items()), "utf-8")
    return found


def check_sums(folder: Path, report: Report = silent, stop: Event | None = None) -> Checked:
    """Compute the sums of the listed files and compare them.

    Raises:
        UnknownModel: the folder has no sums, so it was not shipped by this tool.
        CorruptFile: the list cannot be read, or names a file outside the folder.
    """
    listed = read_sums(folder)
    sizes = {name: (folder / name).stat().st_size for name in listed if (folder / name).is_file()}
    total, done = max(1, sum(sizes.values())), 0
    found: dict[str, str] = {}
    for name, size in sizes.items():
        report(done / total, f"Checking {name}")
        try:
            found[name] = sha256_of(folder / name, stop)
        except OSError as error:
            raise CorruptFile(f"{name} of {folder.name} cannot be read ({error.strerror}): check the disk.") from None
        done += size
    return Checked(
        sha256=found,
        changed=tuple(name for name, digest in found.items() if digest != listed[name]),
        missing=tuple(name for name in listed if name not in found),
        unlisted=tuple(name for name in _names(folder) if name not in listed),
    )


def read_sums(folder: Path) -> dict[str, str]:
    """The recorded sums by path in the folder.

    Raises:
        UnknownModel: there are none.
        CorruptFile: a line is not a sum, or names a file outside the folder.
    """
    path = folder / SUMS
    if size_of(path) is None:
        raise UnknownModel(f"The folder {str(folder)[:200]!r} has no {SUMS}: give a folder that `ship` made.")
    try:
        if path.stat().st_size > LARGEST_SUMS:
            raise ValueError
        lines = path.read_text("utf-8").removesuffix("\n").split("\n")
    except (OSError, ValueError):
        raise CorruptFile(f"{SUMS} of {folder.name} cannot be read: take the folder from its origin again.") from None
    found: dict[str, str] = {}
    for number, line in enumerate(lines, 1):
        match = LINE.fullmatch(line)
        if match is None or _leaves(match[2]) or _too_long(match[2]):
            raise CorruptFile(f"Line {number} of {SUMS} of {folder.name} is not the sum of one of its files.")
        found[match[2]] = match[1]
    if not found:
        raise CorruptFile(f"{SUMS} of {folder.name} is empty: take the folder from its origin again.")
    return found


def _leaves(name: str) -> bool:
    """Whether a name leads out of its folder."""
    return name.startswith(("/", "\\")) or ".." in name.replace("\\", "/").split("/") or ":" in name


def _too_long(name: str) -> bool:
    """Whether no file can have that name."""
    return len(name) > LONGEST_PATH or any(len(part.encode()) > LONGEST_NAME for part in name.split("/"))


def _names(folder: Path) -> list[str]:
    """Paths of everything in a folder but its sums, hidden files too, sorted; of folders those alone that are empty,
    lead elsewhere, or cannot be read."""
    found: list[Path] = []

    def unreadable(error: OSError) -> None:
        found.append(Path(error.filename))

    for place, folders, files in os.walk(folder, onerror=unreadable):
        inside = [*files, *(name for name in folders if Path(place, name).is_symlink())]
        found += [Path(place, name) for name in inside] if folders or files else [Path(place)]
    return sorted(path.relative_to(folder).as_posix() for path in found if path not in (folder, folder / SUMS))
