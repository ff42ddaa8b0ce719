"""The trial of a shipped GGUF file in llama.cpp: the real one, none, stand-ins, and a file that does not run."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from threading import Event, Timer

import psutil
import pytest
from transformers import Gemma2Config, Gemma2ForCausalLM

from surgery.errors import Cancelled, InputError, UnsupportedArchitecture
from surgery.gguf import families, llama_cpp
from surgery.gguf.llama_cpp import Program, find_program, run_file
from surgery.models.loading import load
from surgery.shipping import llama_run
from surgery.shipping.record import ShipRecord
from surgery.shipping.ship_folder import ship
from surgery.shipping.weights import ShipOptions
from surgery.workbench.open_model import OpenModel
from tests import llama_cpp as real
from tests import tiny_checkpoints
from tests.shipped import TEXT, mixed, source
from tests.tiny_models import _GQA, FULL, _make

PRINTED = 2 * 0.0051 * 2**20
"""llama.cpp prints two decimals of a MiB, computing in two parts."""


@real.needs_llama_cpp
def test_a_shipped_file_is_run(tmp_path: Path) -> None:
    model = source(tmp_path / "source")
    shipped = ship(model, mixed(model), tmp_path / "out", TEXT, ShipOptions(gguf="Q8_0"))
    run = ShipRecord.load(shipped.path).runs["llama.cpp"]
    assert run.version and run.tried[:3] == ("loaded", "context of 128 tokens", "32 tokens written")
    for part in ("weights", "kv_cache"):
        assert run.memory[part] == pytest.approx(run.predicted[part], abs=PRINTED)
    assert run.memory["kv_cache"] > 0 and set(run.memory) == set(run.predicted)
    assert f"Tried when it was shipped, in llama.cpp {run.version}: loaded" in (shipped.path / "README.md").read_text()


def test_without_a_program_the_card_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(llama_run, "find_program", lambda: None)
    model = source(tmp_path / "source")
    shipped = ship(model, mixed(model), tmp_path / "out", TEXT, ShipOptions(checkpoint=False, gguf="F16"))
    assert ShipRecord.load(shipped.path).runs["llama.cpp"].tried == ()
    assert "not tried in llama.cpp when it was shipped: no such program" in (shipped.path / "README.md").read_text()


@real.needs_llama_cpp
def test_a_file_that_does_not_run_is_not_shipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Written as it once was: a Gemma 2 without a sliding block, which llama.cpp gives up on."""
    size = {"hidden_size": 96, "head_dim": 32, "query_pre_attn_scalar": 32, "layer_types": [FULL] * 4}
    tiny = _make(Gemma2ForCausalLM, Gemma2Config, _GQA, **size)
    model = OpenModel(load(str(tiny_checkpoints.save(tiny, tmp_path / "source"))))
    options = ShipOptions(checkpoint=False, gguf="F16")
    ship(model, model.recipe(), tmp_path / "right", TEXT, options)
    with monkeypatch.context() as patch:
        patch.setattr(families, "_add_sliding", lambda writer, *rest: writer.add_sliding_window_pattern(1))
        model = OpenModel(load(str(tmp_path / "source")))
        with pytest.raises(UnsupportedArchitecture, match=r"does not run the GGUF file of this recipe \(.*is_swa_any"):
            ship(model, model.recipe(), tmp_path / "out", TEXT, options)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["right", "source"]


def stand_in(folder: Path, name: str, body: str) -> Path:
    """A program on PATH that says its version, and otherwise does what `body` says."""
    path = folder / name
    path.write_text(f"#!{sys.executable}\nimport sys\nif '--version' in sys.argv:\n    print('version: 7 (abc)')\n"
                    f"    sys.exit()\n{body}\n")  # fmt: skip
    path.chmod(0o755)
    return path


LOG = """
print("0.01 I load_tensors:   CPU_Mapped model buffer size =     4.00 MiB")
print("0.01 I load_tensors:   CPU_REPACK model buffer size =     3.00 MiB")
print("0.01 I llama_kv_cache: CPU KV buffer size = 1.50 MiB", file=sys.stderr)
print("0.01 I llama_kv_cache: CPU KV buffer size = 0.50 MiB")
print("0.01 I sched_reserve: CPU compute buffer size = 2.00 MiB")
"""


def test_programs_are_looked_for_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(llama_cpp, "PREBUILT", tmp_path / "nowhere")
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("MODEL_SURGERY_LLAMA", raising=False)
    assert find_program() is None
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    named = stand_in(elsewhere, "my-llama", LOG)
    monkeypatch.setenv("MODEL_SURGERY_LLAMA", str(named))
    assert find_program() == Program("command line", str(named), "7 (abc)")
    server = stand_in(tmp_path, "llama-server", "")
    assert find_program() == Program("server", str(server), "7 (abc)")
    command_line = stand_in(tmp_path, "llama-cli", LOG)
    assert find_program() == Program("command line", str(command_line), "7 (abc)")
    command_line.write_text(f"#!{sys.executable}\nraise SystemExit(1)\n")  # one that is broken is passed over
    assert find_program() == Program("server", str(server), "7 (abc)")
    server.unlink()
    monkeypatch.setenv("MODEL_SURGERY_LLAMA", "no-such-program")
    with pytest.raises(InputError, match="MODEL_SURGERY_LLAMA names 'no-such-program'"):
        find_program()


def program(folder: Path, body: str) -> Program:
    return Program("command line", str(stand_in(folder, "llama-cli", body)), "7")


def test_what_a_log_says(tmp_path: Path) -> None:
    ran = run_file(program(tmp_path, LOG), tmp_path / "x.gguf", 256)
    assert ran.finished and not ran.failure
    assert ran.memory == {"weights": 4 * 2**20, "kv_cache": 2 * 2**20, "computing": 2 * 2**20}
    failing = "print('one')\nprint('0.01 E error loading model: unknown architecture')\nprint('bye')\nsys.exit(3)"
    assert run_file(program(tmp_path, failing), tmp_path / "x.gguf", 256).failure == (
        "error loading model: unknown architecture"
    )


def test_a_program_is_stopped_with_what_it_started(tmp_path: Path) -> None:
    """After a stated time, and when the work is cancelled."""
    waiting = (
        "import subprocess, time\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'])\n"
        "print('child', child.pid, flush=True)\n"
        f"open({str(tmp_path / 'pid')!r}, 'w').write(str(child.pid))\n"
        "time.sleep(60)"
    )
    found = program(tmp_path, waiting)
    ran = run_file(found, tmp_path / "x.gguf", 256, seconds=3)
    assert not ran.finished and not ran.failure and ran.seconds < 30
    stop = Event()
    Timer(0.5, stop.set).start()
    with pytest.raises(Cancelled):
        run_file(found, tmp_path / "x.gguf", 256, stop=stop)
    number = int((tmp_path / "pid").read_text())
    deadline = time.monotonic() + 20
    while psutil.pid_exists(number) and psutil.Process(number).status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < deadline
        time.sleep(0.05)
