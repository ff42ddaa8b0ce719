"""The memory and speed model against measurement: `python -m benchmarks.fit`.

The embedded model as GGUF files in a real llama.cpp (`make .venv/.llama`), and as safetensors in transformers, each
measurement in a process of its own, weights read into memory instead of mapped. Compared are the bytes that llama.cpp
says its buffers take, the resident memory of the process without its host (Node.js, whose heap is taken out), and
tokens a second. With flash attention, which llama.cpp takes by itself where it can and a quantised KV cache needs.

Prints tables, and writes docs/fit.json; what is in it already is measured again only with --again.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil

from surgery.fit.devices import Device, Devices, has_amx, measure_this_computer, read_device
from surgery.fit.fit import Fit, fit
from surgery.fit.runtimes import TRANSFORMERS
from surgery.gguf.write import write_gguf
from surgery.models import embedded
from surgery.structure.structure import Structure, dense
from surgery.workbench.workbench import Workbench

SCRIPT = Path(__file__).with_name("llama_fit.mjs")
FOLDER = Path(sys.prefix) / "llama"
QUIET_HEAP = {"MALLOC_ARENA_MAX": "1", "MALLOC_TRIM_THRESHOLD_": "0"}
"""The C library gives back what is freed: what stays resident is what is needed."""
TYPES = ("F32", "F16", "Q8_0", "Q6_K", "Q5_K_M", "Q4_K_M", "Q4_0", "IQ4_NL", "Q3_K_M", "Q2_K")
MEMORY = [(kind, 2048, "F16") for kind in ("F32", "F16", "Q8_0", "Q4_K_M", "Q4_0", "Q2_K")] + [
    ("Q8_0", 512, "F16"), ("Q8_0", 8192, "F16"), ("Q8_0", 8192, "Q8_0"), ("Q8_0", 8192, "Q4_0"), ("F16", 512, "Q8_0"),
]  # fmt: skip
"""Weight type, context, KV-cache type."""
FILLED = {"F16": 2**20, "Q8_0": 2048, "Q4_0": 2048}
"""Most tokens that are read by KV-cache type: quantised ones are slow; their cache is resident from the start."""
SPEEDS = [{"prompt": 128, "generate": 64}, {"prompt": 512, "generate": 0}]
DECODING_CONTEXT = 128 + 64
RUNTIME_STAGE = "program"


def run_llama_cpp(file: Path, context: int = 512, kv: str = "F16", timeout: float = 900, **more: Any) -> dict[str, Any]:
    """One process of llama.cpp; see llama_fit.mjs.

    Raises:
        RuntimeError: it did not load or run the file; with llama.cpp's own words.
    """
    request = {"context": context, "batch": 512, "kv": kv, "flash": True, "threads": 2, "tries": 1, **more}
    command = ["node", "--expose-gc", str(SCRIPT), str(FOLDER), str(file)]
    done = subprocess.run(
        command, input=json.dumps(request), capture_output=True, text=True, timeout=timeout, check=False,
        env=os.environ | QUIET_HEAP,
    )  # fmt: skip
    if done.returncode:
        raise RuntimeError(f"llama.cpp did not run {file.name}: {done.stderr[-2000:]}")
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


def memory_row(file: Path, structure: Structure, kind: str, context: int, kv: str) -> dict[str, Any]:
    """Predicted and measured bytes of one file in llama.cpp."""
    device = Devices().get("hugging-face-cpu-basic").model_copy(update={"amx": has_amx()})
    found = fit(structure, device, context, kind, kv)
    filled = min(context, FILLED[kv]) - 8
    measured = run_llama_cpp(file, context, kv, fill=filled, threads=1)  # its time does not count
    resident, buffers = measured["resident"], measured["buffers"]
    vocabulary = run_llama_cpp(file, vocabulary_only=True)["resident"]
    return {
        "type": kind,
        "context": context,
        "kv_type": kv,
        "filled_tokens": filled,
        "predicted": parts(found),
        "measured": {
            "weights_bytes": round(buffers["model"]),
            "kv_cache_bytes": round(buffers["KV"]),
            "activation_bytes": resident["filled"] - resident["context"],
            "reserved_activation_bytes": round(buffers["compute"] + buffers["output"]),
            "tokenizer_bytes": vocabulary["model"] - vocabulary["libraries"],
            "total_bytes": resident["filled"] - resident[RUNTIME_STAGE],
        },
        "host_bytes": resident[RUNTIME_STAGE],
        "load_seconds": measured["load_seconds"],
        "error": found.needed_bytes / (resident["filled"] - resident[RUNTIME_STAGE]) - 1,
    }


def this_computer(one_core: bool) -> Device:
    """All cores by the wall's clock, or one by its own."""
    return measure_this_computer(1, time.process_time) if one_core else measure_this_computer()


def speed_row(
    file: Path, structure: Structure, kind: str, tries: int, one_core: bool, own: Device | None = None
) -> dict[str, Any]:
    """Predicted and measured tokens a second of one file in llama.cpp on this computer."""
    tried = [own] if own else [this_computer(one_core) for _ in range(3)]
    here = max(tried, key=lambda found: found.compute_operations_per_second.value)
    found = fit(structure, here, DECODING_CONTEXT, kind).speed
    threads = 1 if one_core else psutil.cpu_count(logical=False)
    if own is not None and own.llama_cpp is not None:
        threads = own.llama_cpp.threads
    measured = run_llama_cpp(file, 1024, speeds=SPEEDS, tries=tries, threads=threads, processor=one_core)
    decoding, reading = measured["speeds"]
    return {
        "type": kind,
        "predicted": {"decode": found.decode, "prefill": found.prefill},
        "bound": {"decode": found.decode_bound, "prefill": found.prefill_bound},
        "measured": {"decode": decoding["decode"], "prefill": reading["prefill"]},
        "error": {
            "decode": found.decode / decoding["decode"] - 1,
            "prefill": found.prefill / reading["prefill"] - 1,
        },
        "bandwidth": here.bandwidth_bytes_per_second.value,
        "peak": here.compute_operations_per_second.value,
    }


def transformers_row(structure: Structure, context: int, tries: int) -> dict[str, Any]:
    """Predicted and measured bytes of the float32 checkpoint in transformers, and its speed."""
    found = fit(structure, Devices().get("hugging-face-cpu-basic"), context, "safetensors-F32", runtime=TRANSFORMERS)
    command = [sys.executable, "-m", "benchmarks.transformers_fit", str(embedded.directory()), str(context), str(tries)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=os.environ | QUIET_HEAP)
    measured = json.loads(done.stdout.splitlines()[-1])
    return {
        "type": found.type,
        "context": context,
        "kv_type": found.kv_type,
        "predicted": parts(found),
        "measured": {"total_bytes": measured["peak"], "tokenizer_bytes": measured["resident"]["tokenizer"]},
        "load_seconds": measured["load_seconds"],
        "speed": {"decode": measured["decode"], "prefill": measured["prefill"]},
        "error": found.needed_bytes / measured["peak"] - 1,
    }


def parts(found: Fit) -> dict[str, int]:
    """The predicted bytes."""
    names = ("weights_bytes", "kv_cache_bytes", "activation_bytes", "overhead_bytes")
    return {name: getattr(found, name) for name in names} | {"total_bytes": found.needed_bytes}


def files(kinds: list[str], scratch: Path) -> Iterator[tuple[str, Path]]:
    """The embedded model in each type, one file at a time."""
    for kind in kinds:
        path = scratch / f"{kind}.gguf"
        write_gguf(embedded.directory(), path, kind)
        yield kind, path
        path.unlink()


def main() -> None:
    """Measure what has not been measured, print tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=("memory", "speed", "transformers"), help="one part; all if not given")
    parser.add_argument("--types", default=",".join(TYPES), help="GGUF types of the speed part")
    parser.add_argument("--tries", type=int, default=5, help="of each speed; the best counts")
    parser.add_argument(
        "--one-core", action="store_true", help="speeds of one thread in seconds on the processor: on a busy machine"
    )
    parser.add_argument("--device", type=Path, help="this computer's own file, from benchmarks.kernels --device")
    parser.add_argument(
        "--again",
        action="store_true",
        help="measure again what the file holds of these parts and types; the rest stays",
    )
    parser.add_argument("--out", type=Path, default=Path("docs/fit.json"))
    chosen = parser.parse_args()
    structure = dense(Workbench().open("default").architecture)
    known: dict[str, Any] = json.loads(chosen.out.read_text()) if chosen.out.exists() else {}
    cores = psutil.cpu_count(logical=False)
    own = read_device(chosen.device) if chosen.device else None
    speeds = "speed_of_one_core" if chosen.one_core else "speed_with_measured_kernels" if own else "speed"
    memories = "memory_with_amx" if has_amx() else "memory"
    parts = ("memory", "memory_with_amx", "speed", "speed_of_one_core", "speed_with_measured_kernels", "transformers")
    result = {part: {} for part in parts} | known | {"cores": cores}

    def missing(part: str, key: str) -> bool:
        return chosen.again or key not in result[part]

    def keep(part: str, key: str, row: dict[str, Any]) -> None:
        result[part][key] = row
        chosen.out.write_text(json.dumps(result, indent=1) + "\n")
        print(part, key, json.dumps(row), file=sys.stderr, flush=True)

    with tempfile.TemporaryDirectory() as scratch:
        wanted = chosen.types.split(",") if chosen.only != "memory" else []
        memory = [row for row in MEMORY if chosen.only in (None, "memory")]
        both = list(dict.fromkeys([*(wanted if chosen.only in (None, "speed") else []), *(row[0] for row in memory)]))
        for kind, path in files(both, Path(scratch)):
            for _, context, kv in (row for row in memory if row[0] == kind):
                if missing(memories, f"{kind} {context} {kv}"):
                    keep(memories, f"{kind} {context} {kv}", memory_row(path, structure, kind, context, kv))
            if kind in wanted and missing(speeds, kind):
                keep(speeds, kind, speed_row(path, structure, kind, chosen.tries, chosen.one_core, own))
    if chosen.only in (None, "transformers"):
        for context in (512, 2048):
            if missing("transformers", str(context)):
                keep("transformers", str(context), transformers_row(structure, context, 2 if context == 512 else 0))
    show(result)


def show(result: dict[str, Any]) -> None:
    """Tables for people; MB are millions of bytes."""
    print("weights   context KV    predicted: weights     KV  activations  program   total   measured total   error")
    for row in (row for part in ("memory", "memory_with_amx", "transformers") for row in result[part].values()):
        predicted, measured = row["predicted"], row["measured"]["total_bytes"]
        sizes = " ".join(f"{size / 1e6:9.1f}" for size in predicted.values())
        name = f"{row['type']:16} {row['context']:6} {row['kv_type']:5}"
        print(f"{name} {sizes} {measured / 1e6:12.1f} {100 * row['error']:+9.1f}%")
    for part in ("speed", "speed_of_one_core", "speed_with_measured_kernels"):
        show_speeds(part, result[part])


def show_speeds(title: str, rows: dict[str, Any]) -> None:
    """Tokens a second."""
    if not rows:
        return
    print(f"\n{title.replace('_', ' ')}, tokens a second")
    print("type      decode: at most  predicted  measured   error   prefill: at most  predicted  measured   error")
    for row in rows.values():
        line = f"{row['type']:8}"
        for part in ("decode", "prefill"):
            line += f" {row['bound'][part]:14.0f} {row['predicted'][part]:10.0f} {row['measured'][part]:10.0f}"
            line += f" {100 * row['error'][part]:+7.0f}%"
        print(line)


if __name__ == "__main__":
    main()
