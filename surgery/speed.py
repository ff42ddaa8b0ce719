"""How fast an edited model runs on a device: a bound from the device's peaks, and what llama.cpp is expected to reach.

The bound ("at most"): decoding reads every weight (of embeddings that are not the head too, one row) and the KV cache
once a token, at the peak bandwidth, and does two operations a weight at peak compute; reading a prompt does the same
operations for every token, but the head's for the last one only, and the attention's over the tokens before.

Expected on a CPU: llama.cpp's kernels reach a share of the float32 peak that depends on how weights are stored, much
smaller for one row of input (decoding) than for a batch. The shares below are measured. A GPU or a microcontroller has
kernels of its own, and what transformers reaches depends on the machine: there only the bound is given.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from surgery.devices import Device
from surgery.kv_cache import kv_cache_bytes
from surgery.runtimes import LLAMA_CPP, Runtime
from surgery.structure import Structure
from surgery.weight_types import Stored
from surgery.weights import Shapes

PROMPT_TOKENS = 512
"""Length of the prompt whose reading speed is told."""
CPUS = ("laptop", "server", "single-board computer", "phone")
DECODE_SHARES = {"F32": 0.06, "F16": 0.12, "Q8_0": 0.25, "Q4_0": 0.3}
PREFILL_SHARES = {"F32": 0.5, "F16": 0.5, "Q8_0": 0.5, "Q4_0": 0.5}
OTHER_SHARE = "Q4_0"


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
    """The speed model.

    Args:
        structure: what runs.
        device: where.
        weights: as they are stored.
        runtime: what runs it.
        context: tokens in the KV cache while decoding.
        kv_type: of its elements.
    """
    bandwidth, peak = device.bandwidth_bytes_per_second.value, device.compute_operations_per_second.value
    cache = kv_cache_bytes(structure, context, kv_type)
    idle = 0 if structure.architecture.tied else weights.by_class["embeddings"]
    by_bandwidth = (sum(weights.bytes.values()) - idle + cache) / bandwidth
    decoding, reading = operations(weights.shapes)
    decode_bound = 1 / max(by_bandwidth, sum(decoding.values()) / peak)
    attention = attention_operations(structure, PROMPT_TOKENS // 2)
    prefill_bound = peak / (sum(reading.values()) + attention)
    decode, prefill, basis = decode_bound, prefill_bound, "bound"
    if runtime is LLAMA_CPP and device.kind in CPUS and device.compute_operations_per_second.type == "float32":
        decode = 1 / max(by_bandwidth, _seconds(decoding, weights.types, DECODE_SHARES) / peak)
        prefill = peak / (_seconds(reading, weights.types, PREFILL_SHARES) + attention / PREFILL_SHARES["F16"])
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


def _seconds(counts: dict[str, int] | dict[str, float], types: dict[str, str], shares: dict[str, float]) -> float:
    """Operations over the share of the peak that each matrix's type reaches."""
    return sum(count / shares.get(types[name], shares[OTHER_SHARE]) for name, count in counts.items())
