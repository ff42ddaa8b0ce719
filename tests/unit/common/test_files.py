"""Files and folders that appear when they are complete, and leave nothing behind when they do not."""

from __future__ import annotations

import errno
import os
import zipfile
from pathlib import Path
from typing import Any

import pytest
from safetensors import SafetensorError

from surgery.common.files import disk_errors, new_file, new_folder, write_atomically, zip_folder
from surgery.errors import Cancelled, InputError, RecipeError

FULL = OSError(errno.ENOSPC, "No space left on device")
FAILURES = [FULL, SafetensorError("I/O error: full"), Cancelled("Cancelled."), InputError("no"), KeyboardInterrupt()]


@pytest.mark.parametrize("replace", [False, True])
@pytest.mark.parametrize("there", [False, True])
def test_a_folder_appears_when_it_is_complete(tmp_path: Path, replace: bool, there: bool) -> None:
    out = tmp_path / "above" / "out"
    if there:
        out.mkdir(parents=True)
    with new_folder(out, replace=replace) as made:
        (made / "file").write_text("new")
        (made.parent / "scratch").write_text("gone with the temporary folder")
        assert made.name == "out" and not (out / "file").exists()
    assert [path.name for path in out.parent.iterdir()] == ["out"] and (out / "file").read_text() == "new"


@pytest.mark.parametrize("error", FAILURES, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize("replace", [False, True])
def test_a_failure_leaves_nothing_behind(tmp_path: Path, error: BaseException, replace: bool) -> None:
    if replace:
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / "old").write_text("old")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(BaseException) as caught, new_folder(tmp_path / "out", "It fails", "wait", replace) as made:
        (made / "file").write_text("new")
        raise error
    assert sorted(tmp_path.rglob("*")) == before
    if isinstance(error, OSError | SafetensorError):
        reason = "No space left on device" if error is FULL else "I/O error: full"
        assert type(caught.value) is InputError and str(caught.value) == f"It fails ({reason}): wait."
    else:
        assert caught.value is error


def test_a_folder_in_use_is_refused_before_and_after_the_work(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(InputError, match="is there already"), new_folder(out):
        out.mkdir()
        (out / "mine").write_text("mine")
    with pytest.raises(InputError, match="is there already"), new_folder(out):
        raise AssertionError("not reached")
    assert [path.name for path in tmp_path.rglob("*")] == ["out", "mine"]
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"cannot be written \(File exists\)"), new_folder(tmp_path / "file" / "x"):
        raise AssertionError("not reached")


@pytest.mark.parametrize("old", ["folder", "file"])
def test_what_is_replaced_is_there_until_the_new_folder_is(tmp_path: Path, old: str) -> None:
    out = tmp_path / "out"
    if old == "folder":
        out.mkdir()
        (out / "old").write_text("old")
    else:
        out.write_text("old")
    with new_folder(out, replace=True) as made:
        assert out.exists()
        (made / "file").write_text("new")
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["file", "out"]


@pytest.mark.parametrize("error", FAILURES, ids=lambda error: type(error).__name__)
def test_a_file_is_the_old_one_or_the_new_one(tmp_path: Path, error: BaseException) -> None:
    path = tmp_path / "file"
    write_atomically(path, "old ✓")
    with pytest.raises(BaseException) as caught, new_file(path) as temporary:
        temporary.write_text("half")
        raise error
    assert isinstance(caught.value, InputError) or caught.value is error
    assert path.read_text("utf-8") == "old ✓" and [entry.name for entry in tmp_path.iterdir()] == ["file"]
    write_atomically(path, "new")
    assert path.read_text() == "new" and [entry.name for entry in tmp_path.iterdir()] == ["file"]


def test_any_file_that_cannot_be_written_is_an_input_error_of_no_special_kind(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "none" / "x", tmp_path / "file" / "x"):
        with pytest.raises(InputError, match=r"cannot be written \(.*\): choose another place or free some") as caught:
            write_atomically(path, "text")
        assert not isinstance(caught.value, RecipeError) and str(path) in str(caught.value)


def test_the_sentence_of_a_disk_error_takes_words_as_they_are() -> None:
    for error, reason in ((FULL, "No space left on device"), (OSError("no words"), "no words")):
        with pytest.raises(InputError) as caught, disk_errors("{0} fails", "mend it"):
            raise error
        assert str(caught.value) == f"{{0}} fails ({reason}): mend it."


def test_a_zip_file_appears_when_it_is_complete(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, path = tmp_path / "folder", tmp_path / "folder.zip"
    (folder / "inner").mkdir(parents=True)
    (folder / "inner" / "file").write_text("words")

    def stop(_: float) -> None:
        raise Cancelled("Cancelled.")

    with pytest.raises(Cancelled):
        zip_folder(folder, path, stop)

    def full(*_: Any) -> None:
        raise FULL

    with monkeypatch.context() as patch, pytest.raises(OSError, match="No space left"):
        patch.setattr(os, "replace", full)
        zip_folder(folder, path)
    assert [entry.name for entry in tmp_path.iterdir()] == ["folder"]
    shares: list[float] = []
    zip_folder(folder, path, shares.append)
    assert shares == [1.0]
    with zipfile.ZipFile(path) as archive:
        assert archive.read("folder/inner/file") == b"words" and archive.namelist() == ["folder/inner/file"]
        mode = archive.getinfo("folder/inner/file").external_attr >> 16
        assert mode == (folder / "inner" / "file").stat().st_mode, "others may read what they unpack too"
