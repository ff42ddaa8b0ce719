"""What llama.cpp's kernels reach of the float32 peak, by GGML type: `python -m benchmarks.kernels`.

Random Llamas of one width are run in each type; `surgery.fit.speed` holds the shares that explain the measured
tokens a second. One thread, and seconds on the processor: other programs on the machine disturb little. With --device
the measurement is by the wall's clock instead, with each number of threads up to the cores, and the file that it writes
describes this computer as llama.cpp sees it with the number that decodes fastest.

Which types a file has follows from the mix and the rows: rows of whole blocks of 256 give the K types, others what
stands for them.

Prints the shares for decoding and for reading a prompt, and what a block costs besides its matrices.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

import psutil

from benchmarks.fit import run_llama_cpp
from surgery.fit.devices import Device, Kernels, measure_this_computer
from surgery.fit.fit import fit
from surgery.fit.speed import ATTENTION_SHARE, PROMPT_TOKENS, attention_operations, operations
from surgery.fit.weight_types import TYPES, stored
from surgery.gguf.write import write_gguf
from surgery.structure.structure import Structure, dense
from surgery.workbench.workbench import Workbench

WHOLE, SHORT = (1024, 2816), (1056, 2784)
"""Hidden size and MLP width: multiples of 256, and of 32 only."""
PURE = ("F32", "F16", "Q8_0", "Q6_K", "Q4_0", "IQ4_NL", "MXFP4", "Q5_K", "Q4_K", "Q3_K", "Q2_K", "IQ4_XS", "IQ3_S")
"""Types on rows of whole blocks, each of which may need those before it."""
STANDING_IN = ("Q4_K", "Q5_K")
"""On short rows: Q5_0 and Q5_1."""
BLOCKS = 6
DECODED = 24


def run(file: Path, tries: int, threads: int, processor: bool) -> dict[str, float]:
    """Seconds a token, decoding and reading, by the processor's clock or the wall's."""
    speeds = [{"prompt": 16, "generate": DECODED}, {"prompt": PROMPT_TOKENS, "generate": 0}]
    decoding, reading = run_llama_cpp(
        file, 1024, threads=threads, processor=processor, most=400, tries=tries, speeds=speeds
    )["speeds"]  # fmt: skip
    return {"decode": 1 / decoding["decode"], "prefill": 1 / reading["prefill"]}


def written(folder: Path, sizes: tuple[int, int], blocks: int) -> tuple[Path, Structure]:
    """A checkpoint of random weights, and its structure."""
    from transformers import LlamaConfig, LlamaForCausalLM

    from analysis.model.describe import describe
    from tests import tiny_checkpoints

    hidden, width = sizes
    model = LlamaForCausalLM(
        LlamaConfig(
            hidden_size=hidden, intermediate_size=width, num_hidden_layers=blocks, num_attention_heads=hidden // 32,
            num_key_value_heads=hidden // 32, vocab_size=512, tie_word_embeddings=True,
        )
    )  # fmt: skip
    checkpoint = tiny_checkpoints.save(model, folder / f"{hidden}-{blocks}", tiny_checkpoints.tokenizer(size=512))
    return checkpoint, dense(describe(model))


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tries", type=int, default=6, help="the best counts")
    parser.add_argument("--device", type=Path, help="write this computer's file, measured by the wall's clock")
    chosen = parser.parse_args()
    if chosen.device is None:
        measure(1, True, chosen.tries)
        return
    cores = psutil.cpu_count(logical=False) or 1
    found = [measure(threads, False, chosen.tries) for threads in range(1, cores + 1)]
    best = max(found, key=decoding_speed)
    chosen.device.write_text(best.model_dump_json(by_alias=True, indent=1, exclude_none=True) + "\n", "utf-8")
    print(f"{chosen.device}: this computer with {best.llama_cpp.threads if best.llama_cpp else 1} threads")


def decoding_speed(device: Device) -> float:
    """Tokens a second of the embedded model in the mix that is used most: by it the number of threads is chosen."""
    structure = dense(Workbench().open("default").architecture)
    return fit(structure, device, 512, "Q4_K_M").decode_tokens_per_second


def measure(threads: int, processor: bool, tries: int) -> Device:
    """This computer with that many threads, llama.cpp's kernels included."""
    clock = time.process_time if processor else time.perf_counter
    here = [measure_this_computer(threads, clock) for _ in range(5)]
    fastest = max(here, key=lambda device: device.compute_operations_per_second.value)
    peak = fastest.compute_operations_per_second.value
    bandwidth = max((device.bandwidth_bytes_per_second for device in here), key=lambda figure: figure.value)
    print(f"{threads} threads: {peak / 1e9:.1f} GFLOP/s, {bandwidth.value / 1e9:.1f} GB/s")
    shares: dict[str, dict[str, float]] = {"decode": {}, "prefill": {}}
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        block = block_seconds(folder, tries, threads, processor)
        print(f"a block besides its matrices: {1e6 * block:.1f} microseconds a decoded token")
        for sizes, names in ((WHOLE, PURE), (SHORT, STANDING_IN)):
            checkpoint, structure = written(folder, sizes, BLOCKS)
            for name in names:
                file = folder / "model.gguf"
                write_gguf(checkpoint, file, name)
                explain(structure, name, run(file, tries, threads, processor), block, peak, shares)
    print(json.dumps(shares, indent=1))
    kernels = Kernels(
        decode_shares=shares["decode"],
        prefill_shares=shares["prefill"],
        block_seconds=max(block, 0.0),
        threads=threads,
        source=f"benchmarks.kernels: node-llama-cpp with {threads} threads",
    )
    return fastest.model_copy(
        update={"id": "measured-computer", "bandwidth_bytes_per_second": bandwidth, "llama_cpp": kernels}
    )


def block_seconds(folder: Path, tries: int, threads: int, processor: bool) -> float:
    """What a block takes besides its matrices: the difference of models of tiny blocks."""
    seconds = {}
    for blocks in (2, 32):
        checkpoint, _ = written(folder, (64, 64), blocks)
        file = folder / "small.gguf"
        write_gguf(checkpoint, file, "F16")
        seconds[blocks] = run(file, 2 * tries, threads, processor)["decode"]
    return (seconds[32] - seconds[2]) / 30


def explain(
    structure: Structure,
    name: str,
    measured: dict[str, float],
    block: float,
    peak: float,
    shares: dict[str, dict[str, float]],
) -> None:
    """The share of the one type in the file that has none yet, from the seconds that the known ones leave."""
    file = stored(structure, TYPES[name])
    decoding, reading = operations(file.shapes)
    counts: dict[str, Mapping[str, float]] = {"decode": decoding, "prefill": reading}
    attention = attention_operations(structure, PROMPT_TOKENS // 2)
    beside = {"decode": block * BLOCKS, "prefill": attention / peak / ATTENTION_SHARE}
    for part, found in shares.items():
        left = measured[part] - beside[part]
        unknown: dict[str, float] = {}
        for tensor, count in counts[part].items():
            kind = file.types[tensor]
            if kind in found:
                left -= count / peak / found[kind]
            else:
                unknown[kind] = unknown.get(kind, 0.0) + count
        if len(unknown) != 1:
            print(f"{name} {part}: {1 / measured[part]:.0f} tokens/s, nothing new ({', '.join(unknown) or 'none'})")
            continue
        ((kind, count),) = unknown.items()
        found[kind] = round(count / peak / left, 3)
        print(f"{name} {part}: {1 / measured[part]:.0f} tokens/s, {kind} {found[kind]:.3f} of the peak")


if __name__ == "__main__":
    main()
