"""The real llama.cpp, where it is at hand: which program it is, and whether it runs a file.

Looked for are `llama-cli` and `llama-server` on PATH, then the program that MODEL_SURGERY_LLAMA names, then the
prebuilt one of `make llama`, which Node.js hosts. Every program is asked for its version first.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import Event
from typing import IO, Literal

from surgery.common.progress import raise_if_set
from surgery.errors import InputError, brief

NAMED = "MODEL_SURGERY_LLAMA"
"""The environment variable that names a program."""
SCRIPT = Path(__file__).with_name("llama_cpp.mjs")
PREBUILT = Path(sys.prefix) / "llama"
PROMPT = "Once upon a time"
TOKENS = 32
"""That a file is made to write."""
ON_PROCESSOR = ("-np", "1", "-t", "1", "-ngl", "0", "-dev", "none", "-lv", "4")
"""One sequence in one thread, no GPU, and the log of the library too."""
LONGEST = 300.0
"""Seconds after which a program is stopped."""
VERSION_SECONDS = 20.0
MIB = 2**20
BUFFER = re.compile(r"(\w+) (model|KV|compute|output) buffer size =\s*([\d.]+) MiB")
OF = {"model": "weights", "KV": "kv_cache", "compute": "computing", "output": "computing"}
LARGEST_LOG = 2**20
"""Bytes of a program's log that are read, from its end."""


@dataclass(frozen=True)
class Program:
    """A llama.cpp that is at hand."""

    kind: Literal["command line", "server", "node-llama-cpp"]
    path: str
    version: str


@dataclass(frozen=True)
class Ran:
    """What came of running a file."""

    failure: str
    """The program's own words where it does not run the file; else empty."""
    finished: bool
    """Whether all tokens were written before time was up."""
    seconds: float
    memory: dict[str, int]
    """Bytes of `weights`, `kv_cache` and `computing`, as the program logs them (to two decimals of a MiB)."""


def find_program() -> Program | None:
    """The llama.cpp that is at hand, or None. Raises InputError: MODEL_SURGERY_LLAMA names no program."""
    for kind, path in _candidates():
        command = [path, str(SCRIPT), str(PREBUILT)] if kind == "node-llama-cpp" else [path, "--version"]
        try:
            done = subprocess.run(command, capture_output=True, timeout=VERSION_SECONDS, stdin=subprocess.DEVNULL)
        except (OSError, subprocess.TimeoutExpired):
            continue
        said = (done.stdout + done.stderr).decode("utf-8", "replace")
        match = re.search(r"version: *([^\n]+)", said)
        if done.returncode == 0 and match is not None:
            return Program(kind, path, brief(match[1]))
    return None


def _candidates() -> Iterator[tuple[Literal["command line", "server", "node-llama-cpp"], str]]:
    if found := shutil.which("llama-cli"):
        yield "command line", found
    if found := shutil.which("llama-server"):
        yield "server", found
    if named := os.environ.get(NAMED):
        found = shutil.which(named)
        if found is None:
            raise InputError(f"{NAMED} names {named[:200]!r}, which is no program: correct it or take it away.")
        yield ("server" if "server" in Path(found).name else "command line"), found
    node = shutil.which("node")
    if node is not None and (PREBUILT / "node_modules" / "node-llama-cpp").is_dir():
        yield "node-llama-cpp", node


def run_file(
    program: Program,
    file: Path,
    context: int,
    adapter: Path | None = None,
    stop: Event | None = None,
    seconds: float = LONGEST,
) -> Ran:
    """Load a GGUF file, make a context of that many tokens on the processor, and write 32 tokens, in one thread.

    Raises:
        Cancelled: stopped; the program is ended.
    """
    lora = ["--lora", str(adapter)] if adapter is not None else []
    shared = ["-m", str(file), "-c", str(context), *ON_PROCESSOR, *lora]
    if program.kind == "node-llama-cpp":
        asked = [str(SCRIPT), str(PREBUILT), str(file), str(context), str(TOKENS), PROMPT, *lora[1:]]
        return _finish([program.path, *asked], seconds, stop)
    if program.kind == "command line":
        asked = ["-p", PROMPT, "-n", str(TOKENS), "--ignore-eos", "--temp", "0", "-st", "--simple-io"]
        return _finish([program.path, *shared, *asked], seconds, stop)
    return _serve([program.path, *shared], seconds, stop)


def _finish(command: list[str], seconds: float, stop: Event | None) -> Ran:
    """Run a program that ends by itself."""
    begun = time.monotonic()
    with _started(command) as (process, log):
        while process.poll() is None and time.monotonic() - begun < seconds:
            raise_if_set(stop)
            time.sleep(0.02)
        return _result(process.poll(), log, time.monotonic() - begun)


def _serve(command: list[str], seconds: float, stop: Event | None) -> Ran:
    """Start a server, ask it for an answer, end it."""
    begun = time.monotonic()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    address = f"http://127.0.0.1:{port}"
    asked = {"prompt": PROMPT, "n_predict": TOKENS, "temperature": 0, "ignore_eos": True}
    request = urllib.request.Request(f"{address}/completion", json.dumps(asked).encode(), {"Content-Type": "text/json"})
    with _started([*command, "--host", "127.0.0.1", "--port", str(port)]) as (process, log):
        while process.poll() is None and (left := seconds - time.monotonic() + begun) > 0:
            raise_if_set(stop)
            try:
                urllib.request.urlopen(f"{address}/health", timeout=1).close()
                with urllib.request.urlopen(request, timeout=left) as answer:
                    answer.read()
                return _result(0, log, time.monotonic() - begun)
            except (OSError, urllib.error.HTTPError):  # not there yet, or loading
                time.sleep(0.1)
        return _result(process.poll(), log, time.monotonic() - begun)


@contextmanager
def _started(command: list[str]) -> Iterator[tuple[subprocess.Popen[bytes], IO[bytes]]]:
    """A program with what it says in a file; it and what it started are ended with the block."""
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            yield process, log
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _result(code: int | None, log: IO[bytes], seconds: float) -> Ran:
    """What an exit code (None: still running) and a log tell."""
    log.seek(max(0, log.seek(0, os.SEEK_END) - LARGEST_LOG))
    said = log.read().decode("utf-8", "replace")
    found = BUFFER.findall(said)
    mapped = any("Mapped" in where for where, _, _ in found)
    memory: dict[str, int] = {}
    for where, kind, size in found:
        if kind == "model" and mapped and "Mapped" not in where:
            continue  # a copy that is laid out for the processor, beside the mapped file
        memory[OF[kind]] = memory.get(OF[kind], 0) + round(float(size) * MIB)
    failure = "" if code in (0, None) else _reason(said, int(code or 0))
    return Ran(failure, code == 0, seconds, memory)


def _reason(said: str, code: int) -> str:
    """The line of a log that says why a program failed."""
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    telling = [line for line in lines if re.search(r"GGML_ASSERT|Error\b|\berror\b|failed|invalid", line)]
    found = telling[0] if telling else lines[-1] if lines else f"it ended with {code}"
    return brief(re.sub(r"^[\d.]+ [A-Z] ", "", found))  # without the time before it
