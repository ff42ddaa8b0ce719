"""Temporary folders have an owner: they go with it, with a signal, or with the next process that comes by."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from surgery.common.files import new_file, new_folder, write_atomically
from surgery.common.scratch import LOCK, PREFIX, ScratchFolder, sweep

ROOT = Path(__file__).resolve().parents[3]
WRITER = """
import sys, time
from pathlib import Path
from surgery.common.files import new_file, new_folder
from surgery.common.scratch import ScratchFolder
from surgery.common.stopping import end_on_signals
end_on_signals()
out = Path(sys.argv[1])
with new_folder(out / "folder", replace=True) as made, new_file(out / "file") as part, ScratchFolder(out) as scratch:
    for path in (made / "half", part, scratch / "half"):
        path.write_bytes(b"half")
    print("writing", flush=True)
    while True:
        (made / f"more {time.monotonic()}").write_bytes(b"half")
"""


def writer(out: Path, threaded: bool = False) -> subprocess.Popen[str]:
    """A process in the middle of writing; in a thread that its main thread waits for, as a job of the command line."""
    script = WRITER
    if threaded:
        body = "".join(f"    {line}\n" for line in WRITER.partition("out =")[2].splitlines()[1:])
        script = WRITER.partition("with new_folder")[0] + f"def work():\n{body}"
        script += "import threading\nthread = threading.Thread(target=work)\nthread.start()\nthread.join()\n"
    command = [sys.executable, "-c", script, str(out)]
    started = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, start_new_session=True)
    assert started.stdout is not None and started.stdout.readline() == "writing\n"
    return started


def names(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir())


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
@pytest.mark.parametrize("threaded", [False, True])
def test_a_signal_leaves_the_old_files_and_nothing_else(
    tmp_path: Path, number: signal.Signals, code: int, threaded: bool
) -> None:
    write_atomically(tmp_path / "file", "old")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "old").touch()
    process = writer(tmp_path, threaded)
    begun = time.monotonic()
    process.send_signal(number)
    assert process.wait(30) == code and time.monotonic() - begun < 10  # 2 s, and what busy cores may add
    assert names(tmp_path) == ["file", "folder"] and names(tmp_path / "folder") == ["old"]
    assert (tmp_path / "file").read_text() == "old"


@pytest.mark.parametrize("way", ["file", "folder", "sweep"])
def test_what_a_killed_process_left_goes_with_the_next(tmp_path: Path, way: str) -> None:
    process = writer(tmp_path)
    assert len(names(tmp_path)) == 3
    sweep(tmp_path)
    assert len(names(tmp_path)) == 3, "its owner lives"
    process.kill()
    process.wait(30)
    assert len(names(tmp_path)) == 3
    if way == "file":
        with new_file(tmp_path / "file") as part:
            part.touch()
    elif way == "folder":
        with new_folder(tmp_path / "folder"):
            pass
    else:
        sweep(tmp_path)
    assert names(tmp_path) == ([way] if way != "sweep" else [])


def test_what_was_about_to_be_replaced_comes_back(tmp_path: Path) -> None:
    """A process that dies between the two renames of a replacement."""
    left = tmp_path / f".{PREFIX}x"
    (left / "folder.old").mkdir(parents=True)
    (left / "folder.old" / "old").touch()
    (left / LOCK).touch()
    sweep(tmp_path)
    assert names(tmp_path) == ["folder"] and names(tmp_path / "folder") == ["old"]


def test_only_folders_with_a_lock_of_ours_are_swept(tmp_path: Path) -> None:
    (tmp_path / f".{PREFIX}mine").mkdir()
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / LOCK).touch()
    (tmp_path / f"{PREFIX}file").touch()
    before = names(tmp_path)
    sweep(tmp_path)
    sweep(tmp_path / "none")
    assert names(tmp_path) == before


def test_a_folder_goes_with_its_last_reference(tmp_path: Path) -> None:
    made = ScratchFolder(tmp_path, hidden=False)
    (made.path / "inner").mkdir()
    assert not made.path.name.startswith(".") and made.path.is_dir()
    del made
    assert names(tmp_path) == []


def test_long_names_can_be_written(tmp_path: Path) -> None:
    longest = "x" * os.pathconf(tmp_path, "PC_NAME_MAX")
    write_atomically(tmp_path / longest, "words")
    assert names(tmp_path) == [longest]
