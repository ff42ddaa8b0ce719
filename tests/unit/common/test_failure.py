"""What is not foreseen is one line with a code, and a log without anything that a person typed."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from surgery.common import failure
from surgery.common.failure import sentence_of
from surgery.errors import CorruptFile, Failed, VerificationFailed

SECRET = "hf_my-token and my prompt"


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MODEL_SURGERY_CACHE", str(tmp_path))
    return tmp_path


def broken(kind: type[Exception], message: str = SECRET) -> Exception:
    try:
        try:
            {}[message]  # type: ignore[index]
        except KeyError:
            raise kind(message)  # noqa: B904  # its context is to be seen
    except Exception as error:
        return error


def test_a_sentence_a_code_and_a_log(cache: Path) -> None:
    sentence = sentence_of(broken(TypeError))
    [log] = (cache / "logs").iterdir()
    assert sentence == (
        f"Something unforeseen went wrong (code {log.stem}, TypeError): the details are in {str(log)!r}."
    )
    written = log.read_text()
    assert "builtins.TypeError" in written and "builtins.KeyError" in written and "in broken" in written
    assert SECRET not in written and SECRET not in sentence
    assert sentence_of(broken(TypeError)) == sentence and len(list((cache / "logs").iterdir())) == 1, (
        "one fault, one log"
    )
    assert sentence_of(broken(IndexError)) != sentence


def test_what_has_a_sentence_keeps_it_and_is_never_nested(cache: Path) -> None:
    once = sentence_of(broken(ZeroDivisionError))
    assert sentence_of(Failed(once)) == once
    for error in (CorruptFile("x is\n damaged."), VerificationFailed("x is damaged.")):
        assert sentence_of(error) == "x is damaged."
    assert len(list((cache / "logs").iterdir())) == 1


def test_logs_are_bounded(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(failure, "MOST_LOGS", 3)
    monkeypatch.setattr(failure, "LARGEST_LOG", 200)
    kinds = [type(f"Kind{number}", (Exception,), {}) for number in range(6)]
    for number, kind in enumerate(kinds):
        sentence = sentence_of(broken(kind))
        path = cache / "logs" / f"{sentence.partition('code ')[2][:6]}.log"
        os.utime(path, (number, number))
    logs = list((cache / "logs").iterdir())
    assert len(logs) == 3 and path in logs and all(log.stat().st_size <= 200 for log in logs)


def test_a_cache_that_cannot_be_written_is_no_second_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("MODEL_SURGERY_CACHE", str(tmp_path / "file"))
    assert "could not be written (Not a directory)." in sentence_of(broken(TypeError))
