"""Whether the GGUF file of a shipped folder runs in the real llama.cpp, and what memory it takes there."""

from __future__ import annotations

from pathlib import Path
from threading import Event

import psutil

from surgery.common.progress import Report
from surgery.errors import UnsupportedArchitecture
from surgery.fit.kv_cache import kv_cache_bytes
from surgery.fit.runtimes import LLAMA_CPP, activation_bytes
from surgery.fit.weight_types import weight_type
from surgery.gguf.llama_cpp import LONGEST, TOKENS, Ran, find_program, run_file
from surgery.gguf.plan import GgufPlan
from surgery.shipping.record import Part, Run
from surgery.structure.structure import Structure

ROOM = 0.8
"""Share of the free memory that a trial may take."""
SHORTEST = 256
"""Tokens of context below which nothing is tried: llama.cpp's caches hold no fewer."""


def llama_run(
    structure: Structure, plan: GgufPlan, part: Part, folder: Path, importance: bool, report: Report, stop: Event | None
) -> Run:
    """Run a file where a llama.cpp is at hand, with a context of the file's own length or what there is memory for.

    Args:
        structure: that the file holds.
        plan: of the file.
        part: the file, in the folder.
        importance: whether it was written with an importance matrix.

    Raises:
        UnsupportedArchitecture: llama.cpp does not run the file; the message has its words.
        InputError: MODEL_SURGERY_LLAMA names no program.
        Cancelled: stopped.
    """
    program = find_program()
    if program is None:
        return Run(version="", tried=())
    weights = sum(plan.tensor_bytes(part.type, importance).values())
    context = plan.layout.context_length
    free = ROOM * psutil.virtual_memory().available
    while sum(predicted(structure, part.type, weights, context).values()) > free and context >= SHORTEST:
        context //= 2
    if context < SHORTEST and context < plan.layout.context_length:
        return Run(version=program.version, tried=())
    report(0.0, f"Running {part.files[0]} in llama.cpp")
    adapter = folder / part.adapter if part.adapter else None
    ran = run_file(program, folder / part.files[0], context, adapter, stop)
    if ran.failure:
        raise UnsupportedArchitecture(
            f"llama.cpp {program.version} does not run the GGUF file of this recipe ({ran.failure}): ship the "
            "checkpoint alone, or choose other edits."
        )
    expected = predicted(structure, part.type, weights, context)
    return Run(version=program.version, tried=_tried(ran, context, expected), memory=ran.memory, predicted=expected)


def predicted(structure: Structure, type_name: str, weights: int, context: int) -> dict[str, int]:
    """Bytes that the memory model gives for what llama.cpp logs: `weights`, `kv_cache` and `computing`."""
    return {
        "weights": weights,
        "kv_cache": kv_cache_bytes(structure, context, "F16", LLAMA_CPP.together(context)),
        "computing": activation_bytes(structure, LLAMA_CPP, weight_type(type_name), context, gpu=True),
    }


def _tried(ran: Ran, context: int, expected: dict[str, int]) -> tuple[str, ...]:
    """In words; sizes in MB beside what was predicted."""
    names = {"weights": "weights", "kv_cache": "KV cache", "computing": "computing"}
    sizes = (
        f"{names[name]} {size / 1e6:.2f} MB ({expected[name] / 1e6:.2f} predicted)" for name, size in ran.memory.items()
    )
    written = f"{TOKENS} tokens written" if ran.finished else f"stopped after {LONGEST:.0f} s"
    return ("loaded", f"context of {context:,} tokens", written, *sizes)
