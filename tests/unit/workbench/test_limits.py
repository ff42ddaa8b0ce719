"""What a server allows: read from the environment, and refused in one sentence everywhere."""

from __future__ import annotations

from typing import Any

import pytest

from surgery.errors import InputError
from surgery.recipe.texts import TextChoice
from surgery.session.session import Session
from surgery.workbench.limits import Limits, hosted, read_limits
from surgery.workbench.workbench import Workbench
from tests.sessions import SMALL, measured, opened
from tests.tiny_workbench import open_model


def test_nothing_set_is_no_limit() -> None:
    assert read_limits({}) == Limits() and read_limits({"MODEL_SURGERY_TOKENS": " "}) == Limits()


def test_everything_can_be_set() -> None:
    found = read_limits({
        "MODEL_SURGERY_MODELS": "default, HuggingFaceTB/SmolLM2-360M", "MODEL_SURGERY_TOKENS": "4096",
        "MODEL_SURGERY_UPLOAD": "2 MB", "MODEL_SURGERY_MINUTES": "2.5", "MODEL_SURGERY_LOCAL_FILES": "0",
    })  # fmt: skip
    assert found == Limits(frozenset({"default", "HuggingFaceTB/SmolLM2-360M"}), 4096, "2mb", 2.5, False)


@pytest.mark.parametrize(
    ("name", "value"),
    [("MODELS", "../etc"), ("MODELS", ","), ("TOKENS", "many"), ("TOKENS", "1"), ("TOKENS", "4096.0"),
     ("TOKENS", "4e3"), ("UPLOAD", "16"), ("UPLOAD", "-1mb"), ("MINUTES", "0"), ("MINUTES", "nan"),
     ("LOCAL_FILES", "no")],
)  # fmt: skip
def test_a_value_that_makes_no_sense_names_its_variable(name: str, value: str) -> None:
    with pytest.raises(InputError, match=f"MODEL_SURGERY_{name}"):
        read_limits({f"MODEL_SURGERY_{name}": value})


def test_numbers_are_read_as_python_reads_them() -> None:
    found = read_limits({"MODEL_SURGERY_TOKENS": "٤٠٩٦", "MODEL_SURGERY_MINUTES": " ٥.5 "})
    assert (found.tokens, found.minutes) == (4096, 5.5)


@pytest.mark.parametrize("source", ["owner/name", "/etc/passwd", "model.gguf", "../default"])
def test_only_allowed_models_are_opened(source: str) -> None:
    session = Session(Workbench(limits=Limits(models=frozenset({"default"}))))
    job = session.edit.open(source)
    assert job is not None
    job.wait(30)
    assert job.state == "failed" and job.error == "This server opens only default: choose one of them."


@pytest.mark.parametrize("source", ["/etc", "folder", "x.gguf", "a/b/c", "~/x"])
def test_a_hosted_server_opens_no_paths(source: str) -> None:
    with pytest.raises(InputError, match="no files of its own"):
        hosted(Limits()).check_model(source)
    hosted(Limits()).check_model("owner/name")
    hosted(Limits()).check_model("default")
    Limits().check_model(source)


def session_with(**limits: Any) -> Session:
    made = opened(Workbench(limits=Limits(**limits)), open_model("llama"))
    measured(made)
    return made


def test_long_measurements_are_refused() -> None:
    session = session_with(tokens=64)
    with pytest.raises(InputError, match="at most 64 tokens"):
        session.edit.set_text(TextChoice(window=16, windows=5))
    assert session.view().text == SMALL


def test_long_healings_are_refused() -> None:
    session = session_with(minutes=2)
    session.edit.switch([1], [], [])
    for ask in (session.heal.start, session.heal.forecast):
        with pytest.raises(InputError, match="at most 2 minutes"):
            ask("ten-minutes", "lora")
    assert not session.view().working
