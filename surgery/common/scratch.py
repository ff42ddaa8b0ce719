"""Temporary folders beside what is written. None outlives its owner: not a failure, a signal, or a killed process."""

from __future__ import annotations

import os
import shutil
import tempfile
import weakref
from contextlib import suppress
from pathlib import Path

from filelock import FileLock, Timeout

PREFIX = "model-surgery-"
LOCK = ".model-surgery.lock"
"""The file in such a folder that its process holds locked for as long as it lives."""
OLD = ".old"
"""What the name of something ends in that a new folder takes the place of."""
TRIES = 20
"""Of emptying a folder that another thread may still be writing into."""


class ScratchFolder:
    """A temporary folder, deleted with the `with` block, with the last reference to it, or at the end of the process.

    Where the process was killed, the next one that makes such a folder in the same place deletes it (`sweep`).

    Args:
        parent: where to make it.
        hidden: whether its name begins with a dot; Gradio serves no file out of such a folder.

    Raises:
        OSError: it cannot be made.
    """

    def __init__(self, parent: Path, hidden: bool = True) -> None:
        sweep(parent)
        self.path, lock = _claimed(parent, f".{PREFIX}" if hidden else PREFIX)
        self.close = weakref.finalize(self, _delete, self.path, lock)

    def __enter__(self) -> Path:
        return self.path

    def __exit__(self, *_: object) -> None:
        self.close()


def sweep(parent: Path) -> None:
    """Delete the temporary folders of processes that are gone; those whose lock is held stay."""
    for file in parent.glob(f"*{PREFIX}*/{LOCK}"):
        lock = FileLock(file, thread_local=False)
        with suppress(OSError, NotImplementedError, RuntimeError):  # in use (Timeout is an OSError), or not ours
            lock.acquire(blocking=False)
            _delete(file.parent, lock)


def _claimed(parent: Path, prefix: str) -> tuple[Path, FileLock]:
    """A new folder and its lock, held. A sweep of another process may come first and take the folder away."""
    while True:
        folder = Path(tempfile.mkdtemp(prefix=prefix, dir=parent))
        lock = FileLock(folder / LOCK, thread_local=False)
        try:
            lock.acquire(blocking=False)
        except (Timeout, FileNotFoundError):
            continue
        except NotImplementedError:  # a file system without locks: nobody can sweep there either
            return folder, lock
        if (folder / LOCK).exists():
            return folder, lock


def _delete(folder: Path, lock: FileLock) -> None:
    """Delete a folder, and put back what a new folder was just about to take the place of."""
    for old in folder.glob(f"*{OLD}"):
        place = folder.parent / old.name.removesuffix(OLD)
        if not place.exists():
            with suppress(OSError):
                os.replace(old, place)
    for _ in range(TRIES):
        for entry in folder.glob("*"):  # the lock last: who dies here leaves a folder that can be told
            if entry.is_dir() and not entry.is_symlink():
                shutil.rmtree(entry, ignore_errors=True)
            elif entry.name != LOCK:
                entry.unlink(missing_ok=True)
        shutil.rmtree(folder, ignore_errors=True)
        if not folder.exists():
            break
    lock.release()
