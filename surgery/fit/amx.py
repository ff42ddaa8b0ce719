"""What llama.cpp adds to the weights where it lays matrices out for AMX, the matrix unit of newer Intel processors.

Matrices of some types move to a buffer of their own, in which some types carry a sum beside each block. Embeddings that
are also the head stay where rows are looked up, and come into that buffer a second time. Source: llama.cpp's
ggml-cpu/amx; `benchmarks.fit` compares it with measurement.
"""

from __future__ import annotations

from surgery.fit.speed import operations
from surgery.fit.weight_types import Stored

OUTPUTS = 32
"""Rows of a matrix that moves are a multiple of this."""
INPUTS = {"F16": 16, "Q4_0": 32, "Q4_1": 32, "Q8_0": 32, "Q4_K": 256, "Q5_K": 256, "Q6_K": 256, "IQ4_XS": 256}
"""Types that move, and what the length of their rows is a multiple of."""
SUMS = {"Q8_0": (32, 4), "Q4_K": (256, 4), "Q5_K": (256, 4), "IQ4_XS": (256, 2)}
"""Weights in a block, and bytes that are added to it."""


def amx_bytes(weights: Stored) -> int:
    """Bytes that the weights of a GGUF file take on such a processor besides the file's."""
    multiplied, _ = operations(weights.shapes)
    return sum(_added(weights, name) for name in multiplied)


def _added(weights: Stored, name: str) -> int:
    """Bytes that one matrix adds."""
    (outputs, inputs), kind = weights.shapes[name], weights.types[name]
    if kind not in INPUTS or outputs % OUTPUTS or inputs % INPUTS[kind]:
        return 0
    block, more = SUMS.get(kind, (1, 0))
    again = weights.bytes[name] if name == "token_embd.weight" else 0
    return outputs * inputs // block * more + again
