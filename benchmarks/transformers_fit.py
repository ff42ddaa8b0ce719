"""Measures one checkpoint in one transformers process: `python -m benchmarks.transformers_fit FOLDER TOKENS`.

Prints one JSON object: resident bytes after importing the libraries, loading the tokenizer, loading the model, and
reading a prompt that fills the context; the peak; the seconds of loading; tokens a second, the best of the tries.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any


def resident(key: str = "VmRSS") -> int:
    """Bytes of this process: `VmRSS` now, `VmHWM` at its peak."""
    words = Path("/proc/self/status").read_text().split(f"{key}:")[1].split()
    return int(words[0]) * 1024


def measure(folder: str, context: int, tries: int) -> dict[str, Any]:
    """Load, read a prompt of `context` tokens less one, and generate 32 after 128."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    found: dict[str, int] = {"libraries": resident()}
    AutoTokenizer.from_pretrained(folder)
    found["tokenizer"] = resident()
    begun = time.perf_counter()
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype="auto").eval()
    load_seconds = time.perf_counter() - begun
    found["model"] = resident()
    vocabulary = model.config.vocab_size
    best = {"prefill": 0.0, "decode": 0.0}

    def generate(count: int, more: int) -> float:
        ids = torch.arange(count)[None] * 7919 % (vocabulary - 100) + 100
        start = time.perf_counter()
        with torch.inference_mode():
            model.generate(ids, max_new_tokens=more, min_new_tokens=more, do_sample=False)
        return time.perf_counter() - start

    generate(context - 1, 1)
    found["filled"] = resident()
    for _ in range(tries):
        first, all_of_them = generate(128, 1), generate(128, 33)
        best["prefill"] = max(best["prefill"], 512 / generate(512, 1))
        best["decode"] = max(best["decode"], 32 / max(all_of_them - first, 1e-9))
    return {"resident": found, "peak": resident("VmHWM"), "load_seconds": load_seconds, **best}


if __name__ == "__main__":
    print(json.dumps(measure(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))))
