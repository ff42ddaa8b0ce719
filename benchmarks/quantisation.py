"""What fewer bits cost: perplexity and bytes of quantised models.

    python -m benchmarks.quantisation [--sections packed] [--rows NAME,...] [--windows 16] [--calibration 24]

The embedded model on WikiText-2-raw: perplexity from the first windows of the test split, rows joined by two line
feeds, no BOS; calibration windows evenly spaced over the validation split. Each result is written at once, and what the
file holds already is not measured again.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import tempfile
import time
from collections.abc import Callable, Collection
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from analysis.text import Windows
from benchmarks import measuring
from benchmarks.quality import DATA, WINDOW
from surgery.adapters import save_adapter
from surgery.build import build_model
from surgery.eora import Repairer
from surgery.packed_checkpoint import codecs_by_name, save_packed
from surgery.recipe import Eora, Recipe
from surgery.structure import Structure
from surgery.text_names import text_reference
from surgery.workbench import OpenModel, TextChoice, Workbench

RESULT = Path(__file__).resolve().parents[1] / "docs" / "quantisation.json"
"""Kept with the project, for the README's table."""


@dataclass(frozen=True)
class PackedRow:
    """One way to store the linears as compressed-tensors or torchao."""

    name: str
    type: str
    method: str = "round_to_nearest"
    group_size: int | None = 64
    symmetric: bool = True
    act_order: bool = False
    true_sequential: bool = True
    format: str = "compressed-tensors"
    ranks: tuple[int, ...] = ()
    """Of the EoRA repairs that are measured besides."""
    reload: bool = False
    """Whether the perplexity is measured again from the reloaded files."""


def packed_rows() -> list[PackedRow]:
    """Round to nearest against GPTQ at equal bits, what GPTQ's choices do, repairs, and torchao's types."""
    rows = []
    for bits in (4, 3):
        for group in (None, 64, 32):
            size = f"groups of {group}" if group else "whole rows"
            ranks = (8, 16, 32, 64, 128) if bits == 3 and group != 32 else ()
            nearest = PackedRow(f"{bits} bits, {size}", f"int{bits}", group_size=group, ranks=ranks)
            solved = replace(nearest, name=f"{nearest.name}, GPTQ", method="gptq", ranks=())
            rows += [
                replace(nearest, reload=bool(ranks) and group is None),
                replace(solved, reload=group == 64),
                replace(solved, name=f"{solved.name}, act-order", act_order=True, ranks=(32,) if ranks else ()),
            ]
        middle = PackedRow(f"{bits} bits, groups of 64", f"int{bits}")
        solved = replace(middle, name=f"{middle.name}, GPTQ", method="gptq")
        rows += [
            replace(middle, name=f"{middle.name}, zero points", symmetric=False, reload=bits == 4),
            replace(solved, name=f"{solved.name}, zero points", symmetric=False),
            replace(solved, name=f"{solved.name}, blocks at once", true_sequential=False),
        ]
    rows.append(PackedRow("8 bits, whole rows", "int8", group_size=None))
    rows.append(PackedRow("torchao int8", "int8", group_size=None, format="torchao", reload=True))
    rows.append(PackedRow("torchao int4, groups of 32", "int4", group_size=32, format="torchao", reload=True))
    return rows


class Quantisation:
    """The open model, its texts and the results so far.

    Args:
        options: of the command line.
    """

    def __init__(self, options: argparse.Namespace) -> None:
        self.out: Path = options.out
        self.wanted: set[str] = set(filter(None, options.rows.split(";")))
        self.model: OpenModel = Workbench().open("default")
        self.test = self._windows(options.data, "test", options.windows, False)
        self.calibration = self._windows(options.data, "validation", options.calibration, True)
        known = json.loads(self.out.read_text("utf-8")) if self.out.is_file() else {}
        self.document: dict[str, Any] = known or {
            "machine": measuring.machine(),
            "model": self.model.reference.model_dump(),
            "test": text_reference(self.test).model_dump(),
            "calibration": text_reference(self.calibration).model_dump(),
            "dense": self.perplexity(self.model.evaluator.dense),
        }

    def _windows(self, data: Path, split: str, count: int, spread: bool) -> Windows:
        path = str(data / f"wikitext-2-raw-{split}.jsonl")
        return self.model.windows(
            TextChoice(path, WINDOW, count, "calibration" if spread else "evaluation", None, spread)
        )

    def perplexity(self, structure: Structure) -> float:
        """On the test windows. States of one row do not help the next: they would only fill the memory."""
        self.model.evaluator.states.clear()
        self.model.evaluator.weights.clear()
        return self.model.evaluator.measure(structure, self.test).perplexity

    def section(self, name: str) -> list[dict[str, Any]]:
        """The rows of a section so far."""
        rows: list[dict[str, Any]] = self.document.setdefault(name, [])
        return rows

    def add(self, section: str, row: dict[str, Any]) -> None:
        """Keep a row, and write everything."""
        self.section(section).append(row)
        measuring.write("quantisation", self.document, self.out)
        print(row, file=sys.stderr)

    def missing(self, section: str, name: str) -> bool:
        """Whether a row is wanted and not yet there."""
        return (not self.wanted or name in self.wanted) and all(row["name"] != name for row in self.section(section))

    def packed(self) -> None:
        """Everything of the section "packed"."""
        for row in packed_rows():
            repairs = {rank: f"{row.name}, EoRA {rank}" for rank in row.ranks}
            if not any(self.missing("packed", name) for name in (row.name, *repairs.values())):
                continue
            begun = time.perf_counter()
            recipe = self._recipe(row)
            made = self.model.completer.complete(
                self.model.resolve(recipe), lambda _: self.calibration, lambda share, words: None, None
            ).structure
            seconds = time.perf_counter() - begun
            if self.missing("packed", row.name):
                self.add("packed", self._packed_row(row, row.name, recipe, made, seconds))
            for rank, name in repairs.items():
                if self.missing("packed", name):
                    begun = time.perf_counter()
                    wanted = replace(made, eora=Eora(rank=rank, text=text_reference(self.calibration)))
                    repaired = Repairer(self.model.runner).compute(wanted, self.calibration)
                    seconds = time.perf_counter() - begun
                    shown = replace(row, reload=row.reload and rank == 32)
                    self.add("packed", self._packed_row(shown, name, recipe, repaired, seconds) | {"rank": rank})

    def _recipe(self, row: PackedRow) -> Recipe:
        fields = {name: value for name, value in asdict(row).items() if name not in ("name", "ranks", "reload")}
        text = text_reference(self.calibration) if row.method == "gptq" else None
        return self.model.recipe().with_edits({"op": "quantize", **fields, "text": text})

    def _packed_row(self, row: PackedRow, name: str, recipe: Recipe, made: Structure, seconds: float) -> dict[str, Any]:
        """Perplexity live, the bytes of the files, and the perplexity of what reloads."""
        found = {key: value for key, value in asdict(row).items() if key not in ("name", "ranks", "reload")}
        found = {"name": name, **found, "seconds": seconds, "perplexity": self.perplexity(made)}
        with tempfile.TemporaryDirectory() as scratch:
            built = build_model(self.model.loaded.model, self.model.architecture, made)
            saved = save_packed(built, made, self.model.loaded.tokenizer, recipe, Path(scratch) / "checkpoint")
            adapter = None
            found |= {"bytes": saved.bytes, "bits_per_weight": 8 * saved.bytes / saved.parameters}
            found["linear_bits"] = _linear_bits(saved.bytes, built.model, codecs_by_name(made))
            if any(spec.repair is not None for spec in made.blocks):
                adapter = save_adapter(made, "checkpoint", Path(scratch) / "adapter")
                found["adapter_bytes"] = (adapter / "adapter_model.safetensors").stat().st_size
            if row.reload:
                found["reloaded"] = self._reloaded(saved.path, adapter)
        return found

    @torch.inference_mode()
    def _reloaded(self, checkpoint: Path, adapter: Path | None) -> float:
        """Perplexity by the reloaded model's own forward pass."""
        from peft import PeftModel
        from transformers import AutoModelForCausalLM

        model = AutoModelForCausalLM.from_pretrained(checkpoint)
        if adapter is not None:
            model = PeftModel.from_pretrained(model, adapter)
        losses = []
        for window in self.test.ids:
            logits = model(input_ids=window[None], use_cache=False).logits[0, :-1].float()
            losses.append(torch.nn.functional.cross_entropy(logits, window[1:]))
        return math.exp(float(torch.stack(losses).double().mean()))


def _linear_bits(file_bytes: int, model: torch.nn.Module, quantised: Collection[str]) -> float:
    """Bits a weight of the quantised linears alone: what the file holds besides the other tensors."""
    weights = {f"{name}.weight" for name in quantised}
    named = dict(model.named_parameters())  # tied ones once
    others = sum(part.numel() * part.element_size() for name, part in named.items() if name not in weights)
    return 8 * (file_bytes - others) / sum(named[name].numel() for name in weights)


SECTIONS: dict[str, Callable[[Quantisation], None]] = {"packed": Quantisation.packed}


def main() -> int:
    """Run the command."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.quantisation", description=__doc__.split("\n")[0])
    parser.add_argument("--sections", default=",".join(SECTIONS))
    parser.add_argument("--rows", default="", help="names of rows, between semicolons; all if absent")
    parser.add_argument("--windows", type=int, default=16)
    parser.add_argument("--calibration", type=int, default=24)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--data", type=Path, default=DATA, help="folder with wikitext-2-raw-{test,validation}.jsonl")
    parser.add_argument("--out", type=Path, default=RESULT)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    work = Quantisation(options)
    for name in options.sections.split(","):
        SECTIONS[name](work)
        shown = [
            {key: row.get(key, "") for key in ("name", "linear_bits", "bytes", "perplexity", "reloaded", "seconds")}
            for row in work.section(name)
        ]
        measuring.table(shown, f"{name} (dense {work.document['dense']:.3f})")
    return 0


if __name__ == "__main__":
    sys.exit(main())
