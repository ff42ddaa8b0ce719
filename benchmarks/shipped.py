"""A shipped GGUF file in a real llama.cpp: does it run, what does it say, how fast is it beside the prediction?

    python -m benchmarks.shipped DIR [--tries 5]

DIR is a folder that `ship` made with a GGUF file, of the embedded model. Needs the llama.cpp of the tests
(`make .venv/.llama`). Greedy text from a prompt, and tokens a second with the machine's cores.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import torch

from benchmarks import measuring
from benchmarks.fit import speed_row
from surgery.recipe.recipe import Recipe
from surgery.recipe.storage import Quantize
from surgery.workbench.workbench import Workbench
from tests import llama_cpp

PROMPT = "The capital of France is"
TOKENS = 32


def benchmark(folder: Path, tries: int) -> dict[str, Any]:
    """Run the file of a folder."""
    recipe = Recipe.load(folder / "recipe.json")
    model = Workbench().open("default")
    structure = model.resolve(recipe)
    quantize = recipe.find(Quantize)
    assert quantize is not None  # there is a .gguf file
    file = next(folder.glob("*.gguf"))
    ids = model.loaded.tokenizer(PROMPT)["input_ids"]
    said = llama_cpp.run(file, [ids], TOKENS)["greedy"][0]
    row = speed_row(file, structure.floating_shape, quantize.type, tries, one_core=False)
    return {
        "machine": measuring.machine(),
        "file": file.name,
        "bytes": file.stat().st_size,
        "parameters": structure.parameters,
        "architecture": model.gguf_plan(structure).layout.architecture,
        "text": PROMPT + model.loaded.tokenizer.decode(torch.tensor(said)),
        "speed": row,
    }


def main() -> int:
    """Run the command."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.shipped", description=__doc__.split("\n")[0])
    parser.add_argument("folder", type=Path, metavar="DIR")
    parser.add_argument("--tries", type=int, default=5)
    options = parser.parse_args()
    found = benchmark(options.folder, options.tries)
    measuring.write("shipped", found)
    rows = [
        {"": part} | {name: found["speed"][name][part] for name in ("bound", "predicted", "measured", "error")}
        for part in ("decode", "prefill")
    ]
    print(found["text"])
    measuring.table(rows, f"{found['file']} ({found['architecture']}, {found['bytes']:,} bytes): tokens a second")
    return 0


if __name__ == "__main__":
    sys.exit(main())
