"""How fast an edited model runs on a device: a bound from the device's peaks, and what llama.cpp is expected to reach.

The bound ("at most"): decoding reads every weight (of embeddings that are not the head too, one row) and the KV cache
once a token, at the peak bandwidth, and does two operations a weight at peak compute; reading a prompt does the same
operations for every token, but the head's for the last one only, and the attention's over the tokens before. Where the
peak is told in float32 and the weights are quantised, four times as many operations are allowed: integers of 8 bits.

Expected on a CPU: what llama.cpp's kernels reach of the float32 peak depends on how weights are stored and on the
instructions that the processor has: with one row of input (decoding) less than the peak, with a batch up to twice of it
and more, since integer instructions do more at once. A device file may hold what was measured on the device itself;
otherwise the shares of one processor stand in, and another one may be twice as fast or half as fast. A GPU or a
microcontroller has kernels of its own, and transformers' speed depends on more than the device: there only the bound is
given.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from surgery.fit.devices import Device
from surgery.fit.kv_cache import kv_cache_bytes
from surgery.fit.runtimes import LLAMA_CPP, Runtime
from surgery.fit.weight_types import Stored
from surgery.fit.weights import Shapes
from surgery.structure.structure import Structure

PROMPT_TOKENS = 512
"""Length of the prompt whose reading speed is told."""
CPUS = ("laptop", "server", "single-board computer", "phone")
INTEGER_SPEEDUP = 4
"""Products of 8-bit integers for one of float32, in instructions of the same width (x86 VNNI, Arm dot product)."""
DECODE_SHARES = {
    "F32": 0.15, "F16": 0.26, "Q8_0": 0.41, "Q6_K": 0.61, "Q5_K": 0.57, "Q4_K": 0.72, "Q3_K": 0.59, "Q2_K": 0.77,
    "Q5_1": 0.42, "Q5_0": 0.46, "Q4_1": 0.65, "Q4_0": 0.65, "IQ4_NL": 0.67, "IQ4_XS": 0.54, "IQ3_S": 0.25,
    "MXFP4": 0.71,
}  # fmt: skip
"""Of the float32 peak, with one row of input. Measured by `benchmarks.kernels` (node-llama-cpp 3.22.1) on one core of
an AMD EPYC with AVX-512 beside other work, then raised together (float32 by 1.1, F16 by 1.25, the rest by 1.45) to what
whole models decode on it when it is quiet (docs/fit.json); another instruction set has other shares. Q4_1 is taken as
Q4_0. Threads that wait for each other are not counted: on shared virtual cores they can cost more than a second one
gains."""
PREFILL_SHARES = {
    "F32": 0.71, "F16": 0.78, "Q8_0": 1.35, "Q6_K": 0.88, "Q5_K": 0.69, "Q4_K": 1.93, "Q3_K": 0.69, "Q2_K": 0.69,
    "Q5_1": 0.48, "Q5_0": 0.96, "Q4_1": 0.48, "Q4_0": 2.40, "IQ4_NL": 2.36, "IQ4_XS": 2.06, "IQ3_S": 2.07,
    "MXFP4": 2.45,
}  # fmt: skip
"""The same with 512 rows; above 1 where kernels multiply integers. Q4_1 is taken as Q5_1, which is not repacked."""
ATTENTION_SHARE = 0.5
"""The same of flash attention; an estimate."""
BLOCK_OPERATIONS = 4e6
"""What a block takes besides its matrices for one token (norms, rotation, attention, threads that wait for each other),
told in operations at the peak: 15 to 40 microseconds on that core."""


@dataclass(frozen=True)
class Speed:
    """Tokens a second with a full context, and while a prompt of `PROMPT_TOKENS` is read.

    `basis` tells what the first two are: what is expected, or only the bound.
    """

    decode: float
    prefill: float
    decode_bound: float
    prefill_bound: float
    basis: Literal["expected", "bound"]
    energy_joules_per_token: float | None
    """Estimate for decoding: the device's power when busy over the tokens a second. None where it is not known."""


def speed(structure: Structure, device: Device, weights: Stored, runtime: Runtime, context: int, kv_type: str) -> Speed:
    """The speed model, with that many tokens in the KV cache while decoding."""
    bandwidth, peak = device.bandwidth_bytes_per_second.value, device.compute_operations_per_second.value
    cache = kv_cache_bytes(structure, context, kv_type)
    idle = 0 if structure.architecture.tied else weights.by_class["embeddings"]
    by_bandwidth = (sum(weights.bytes.values()) - idle + cache) / bandwidth
    decoding, reading = operations(weights.shapes)
    attention = attention_operations(structure, PROMPT_TOKENS // 2)
    in_float32 = device.compute_operations_per_second.type == "float32"
    most = peak * (INTEGER_SPEEDUP if in_float32 and weights.kind.integers else 1)
    decode_bound = 1 / max(by_bandwidth, sum(decoding.values()) / most)
    prefill_bound = most / (sum(reading.values()) + attention)
    decode, prefill, basis = decode_bound, prefill_bound, "bound"
    if runtime is LLAMA_CPP and device.kind in CPUS and in_float32:
        known = device.llama_cpp
        shares = [DECODE_SHARES | known.decode_shares, PREFILL_SHARES | known.prefill_shares] if known else None
        decode_shares, prefill_shares = shares or [DECODE_SHARES, PREFILL_SHARES]
        kernels = _operations_at_peak(decoding, weights.types, decode_shares)
        block = known.block_seconds * peak if known else BLOCK_OPERATIONS
        blocks = block * len(structure.kept)
        decode = 1 / max(by_bandwidth, (kernels + blocks) / peak)
        prefill = peak / (_operations_at_peak(reading, weights.types, prefill_shares) + attention / ATTENTION_SHARE)
        basis = "expected"
    power = device.power_watts
    return Speed(
        decode=decode,
        prefill=prefill,
        decode_bound=decode_bound,
        prefill_bound=prefill_bound,
        basis=basis,  # type: ignore[arg-type]
        energy_joules_per_token=power.value / decode if power else None,
    )


def operations(shapes: Shapes) -> tuple[dict[str, int], dict[str, float]]:
    """Operations of each matrix for a token that is decoded, and for one of a prompt (two a weight).

    The head is the embeddings' matrix where it is tied. Of a prompt it sees the last token only.
    """
    head = "output.weight" if "output.weight" in shapes else "token_embd.weight"
    decoding = {
        name: 2 * shape[0] * shape[1]
        for name, shape in shapes.items()
        if len(shape) == 2 and (name.startswith("blk.") or name == head)
    }
    reading = {name: count / PROMPT_TOKENS if name == head else float(count) for name, count in decoding.items()}
    return decoding, reading


def attention_operations(structure: Structure, tokens: int) -> float:
    """Operations of the attention itself for one token that looks back on that many: scores, and their sums."""
    total = 0
    for spec in structure.blocks:
        attention = structure.architecture.blocks[spec.source].attention
        if attention is not None and spec.attention:
            seen = min(tokens, attention.window or tokens)
            total += 4 * len(spec.query_heads) * attention.head_size * seen
    return total


def _operations_at_peak(counts: Mapping[str, float], types: Mapping[str, str], shares: Mapping[str, float]) -> float:
    """The operations at the peak that take as long as these do at the shares of it that their types reach."""
    return sum(count / shares[types[name]] for name, count in counts.items())
