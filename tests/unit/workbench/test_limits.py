"""What a server allows: read from the environment, and refused in one sentence everywhere."""

from __future__ import annotations

import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from surgery.errors import InputError
from surgery.models.room import refuse_large_download
from surgery.recipe.texts import TextChoice
from surgery.session.session import Session
from surgery.workbench import workbench
from surgery.workbench.limits import PUBLIC, Limits, hosted, read_limits
from surgery.workbench.workbench import Workbench
from tests.sessions import SMALL, measured, opened
from tests.tiny_workbench import loaded, open_model


def test_nothing_set_is_no_limit() -> None:
    assert read_limits({}) == Limits() and read_limits({"MODEL_SURGERY_TOKENS": " "}) == Limits()


def test_everything_can_be_set() -> None:
    found = read_limits({
        "MODEL_SURGERY_MODELS": "default, HuggingFaceTB/SmolLM2-360M", "MODEL_SURGERY_TOKENS": "4096",
        "MODEL_SURGERY_UPLOAD": "2 MB", "MODEL_SURGERY_MINUTES": "2.5", "MODEL_SURGERY_LOCAL_FILES": "0",
        "MODEL_SURGERY_DOWNLOADS": "3", "MODEL_SURGERY_WINDOWS": "2",
    })  # fmt: skip
    assert found == Limits(frozenset({"default", "HuggingFaceTB/SmolLM2-360M"}), 4096, "2mb", 2.5, False, 3, 2)


SPACE = {"SPACE_ID": "owner/space"}


def test_a_public_space_has_the_defaults_of_a_public_server() -> None:
    found = read_limits(SPACE)
    assert found == PUBLIC and found.minutes == 5 and found.downloads == 1 and not found.local_files
    assert "default" in found.models and 1 < len(found.models) < 10
    for source in ("/etc", "owner/other", "model.gguf"):
        with pytest.raises(InputError, match="opens only"):
            found.check_model(source)
    with pytest.raises(InputError, match="at most 5 minutes"):
        found.check_minutes(10)


@pytest.mark.parametrize(
    ("name", "text", "field", "value"),
    [("MODELS", "any", "models", frozenset()), ("MODELS", "owner/name", "models", frozenset({"owner/name"})),
     ("MINUTES", "any", "minutes", None), ("MINUTES", "60", "minutes", 60.0), ("LOCAL_FILES", "1", "local_files", True),
     ("DOWNLOADS", "2", "downloads", 2), ("WINDOWS", "1", "windows", 1), ("TOKENS", "4096", "tokens", 4096)],
)  # fmt: skip
def test_each_default_of_a_space_can_be_raised_alone(name: str, text: str, field: str, value: Any) -> None:
    found = read_limits(SPACE | {f"MODEL_SURGERY_{name}": text})
    assert found == replace(PUBLIC, **{field: value})


def test_the_log_says_which_limits_are_in_force() -> None:
    assert read_limits(SPACE).words() == (
        "Limits: models HuggingFaceTB/SmolLM2-135M, HuggingFaceTB/SmolLM2-360M-Instruct, Qwen/Qwen2.5-0.5B-Instruct, "
        "Qwen/Qwen3-0.6B, default; local paths no; healing at most 5 minutes; 131,072 tokens a measurement; uploads up "
        "to 16mb; models fetched at the same time: 1."
    )
    assert "models any; local paths yes; healing any length;" in Limits().words()


def test_a_folder_with_the_name_of_a_hub_id_is_a_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "owner" / "name").mkdir(parents=True)
    limits = hosted(Limits())
    with pytest.raises(InputError, match="no files of its own"):
        limits.check_model("owner/name")
    for source in ("hub:owner/name", "hub:owner/name::test", f"hub:{tmp_path}"):
        with pytest.raises(InputError, match="no folder of its own"):
            limits.check_text(TextChoice(source))
        Limits().check_text(TextChoice(source))
    limits.check_text(TextChoice("hub:owner/other"))


@pytest.mark.parametrize("allowed", [1, 2])
def test_models_are_opened_one_at_a_time_unless_more_are_allowed(monkeypatch: pytest.MonkeyPatch, allowed: int) -> None:
    inside: list[str] = []
    most: list[int] = []

    def load(source: str, *_: Any) -> Any:
        inside.append(source)
        most.append(len(inside))
        time.sleep(0.1)
        inside.remove(source)
        return loaded(name=source)

    monkeypatch.setattr(workbench, "load", load)
    bench = Workbench(most_models=9, limits=Limits(downloads=allowed))
    with ThreadPoolExecutor(6) as pool:
        opened = list(pool.map(bench.open, ["tiny", "tinier"] * 3))
    assert max(most) == allowed and len(most) == len({id(model) for model in opened}) == 2, "each is loaded once"


class Hub:
    """Answers as `HfApi.model_info` does."""

    def __init__(self, **sizes: int) -> None:
        self.siblings = [SimpleNamespace(rfilename=name.replace("__", "-"), size=size) for name, size in sizes.items()]

    def model_info(self, source: str, **_: Any) -> Any:
        return self


def test_a_model_is_fetched_only_if_the_disk_holds_it(monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage("/")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=10**9))
    single = {"model.safetensors": 2 * 10**9}
    shards = {"model__00001.safetensors": 6 * 10**8, "model__00002.safetensors": 6 * 10**8}
    for sizes, fits in ((single, False), (shards, False), ({"model.safetensors": 10**8, **shards}, True)):
        hub = Hub(**sizes)
        if fits:
            refuse_large_download("owner/name", None, hub)
        else:
            with pytest.raises(InputError, match=r"Downloading owner/name: no space left .* MB needed, .* MB free"):
                refuse_large_download("owner/name", None, hub)
    refuse_large_download("owner/name", None, SimpleNamespace(model_info=None))  # the Hub does not answer


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
