"""A real llama.cpp for the tests: the npm package node-llama-cpp, which the Makefile puts into .venv/llama."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

SCRIPT = Path(__file__).with_name("llama_cpp.mjs")
FOLDER = Path(sys.prefix) / "llama"

needs_llama_cpp = pytest.mark.skipif(
    shutil.which("npm") is None, reason="npm is missing: install Node.js 20 or newer to run the files in llama.cpp"
)


def run(
    file: Path,
    prompts: list[list[int]] | None = None,
    tokens: int = 0,
    texts: list[str] | None = None,
    probabilities: bool = False,
    threads: int = 1,
    timeout: float = 300,
    lora: Path | None = None,
    back: list[list[int]] | None = None,
    contexts: list[dict[str, Any]] | None = None,
    ends: list[int] | None = None,
) -> dict[str, Any]:
    """Load a GGUF file and answer; see llama_cpp.mjs. Fails with llama.cpp's own words where it does not load."""
    assert (FOLDER / "node_modules" / "node-llama-cpp").is_dir(), f"run `make {FOLDER.parent.name}/.llama` first"
    request = {
        "prompts": prompts or [],
        "tokens": tokens,
        "texts": texts or [],
        "probabilities": probabilities,
        "threads": threads,
        "lora": str(lora) if lora else None,
        "back": back or [],
        "contexts": contexts or [],
        "ends": ends or [],
    }
    done = subprocess.run(
        ["node", str(SCRIPT), str(FOLDER), str(file)],
        input=json.dumps(request),
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )
    assert done.returncode == 0, f"llama.cpp did not run {file.name}: {done.stderr[-3000:]}"
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer
