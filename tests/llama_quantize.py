"""The real llama-quantize, without a program of that name: the library inside node-llama-cpp, in a process of its own.

`python -m tests.llama_quantize IN.gguf OUT.gguf NUMBER`, where the number is the file type's.
"""

from __future__ import annotations

import ctypes
import platform
import subprocess
import sys
from pathlib import Path

from tests.llama_cpp import FOLDER

PLATFORM = {"x86_64": "linux-x64", "aarch64": "linux-arm64"}


class Parameters(ctypes.Structure):
    """llama_model_quantize_params of include/llama.h, llama.cpp v0.5.0."""

    _fields_ = (
        *((name, ctypes.c_int32) for name in ("threads", "type", "output_type", "embedding_type")),
        *((name, ctypes.c_bool) for name in ("again", "output", "copy", "pure", "split", "dry")),
        *((name, ctypes.c_void_p) for name in ("importance", "overrides", "tensor_overrides", "prune")),
        ("buffer", ctypes.c_size_t),
    )


def types_by_llama_cpp(source: Path, out: Path, type_name: str) -> dict[str, str]:
    """GGML's type of each tensor of the file that llama.cpp makes of another one."""
    import gguf  # heavy, and not for the process that quantises

    from surgery.gguf.mixes import file_type

    command = [sys.executable, "-m", "tests.llama_quantize", str(source), str(out), str(int(file_type(type_name)))]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return {tensor.name: tensor.tensor_type.name for tensor in gguf.GGUFReader(out).tensors}


def main(source: str, out: str, number: str) -> int:
    """Quantise one file; the exit code is llama.cpp's."""
    (folder,) = (FOLDER / "node_modules/@node-llama-cpp" / PLATFORM[platform.machine()] / "bins").iterdir()
    library = ctypes.CDLL(str(next(folder.glob("libllama.v*.so"))))
    library.llama_model_quantize_default_params.restype = Parameters
    parameters = library.llama_model_quantize_default_params()
    parameters.threads, parameters.type = 1, int(number)
    return int(library.llama_model_quantize(source.encode(), out.encode(), ctypes.byref(parameters)))


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
