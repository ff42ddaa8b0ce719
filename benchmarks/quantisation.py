"""What fewer bits cost in the formats compressed-tensors and torchao: perplexity and bytes, with and without repair.

    python -m benchmarks.quantisation [--rows 'NAME;NAME'] [--windows 16] [--calibration 24] [--out F]

The embedded model on WikiText-2-raw: perplexity from the first windows of the test split, rows joined by two line
feeds, no BOS; calibration windows evenly spaced over the validation split. Each result is written at once, and what the
file holds already is not measured again.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Collection
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from analysis.model.describe import describe
from analysis.model.modules import weight_of
from analysis.model.runner import Runner
from benchmarks import measuring
from benchmarks.quality import DATA, WINDOW
from surgery.calibration.sweep import Sweep
from surgery.checkpoints.adapter import save_adapter
from surgery.checkpoints.build import build_model
from surgery.common.progress import silent
from surgery.evaluation.evaluator import Evaluator
from surgery.formats.table import FORMATS
from surgery.quantization.eora import low_rank, repair
from surgery.quantization.quantizer import codecs_by_name
from surgery.recipe.edits import Eora
from surgery.recipe.recipe import Recipe
from surgery.recipe.texts import TextChoice, text_reference
from surgery.structure.structure import BlockSpec, LowRank, Structure
from surgery.workbench.open_model import OpenModel
from surgery.workbench.workbench import Workbench

RESULT = Path(__file__).resolve().parents[1] / "docs" / "quantisation.json"
"""Kept with the project, for the README's table."""


RANKS = (8, 16, 32, 64, 128)


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
        for group in (64, 32, None):
            size = f"groups of {group}" if group else "whole rows"
            nearest = PackedRow(f"{bits} bits, {size}", f"int{bits}", group_size=group)
            solved = replace(nearest, name=f"{nearest.name}, GPTQ", method="gptq")
            if bits == 3:
                nearest = replace(nearest, ranks=RANKS if group == 64 else (32,) if group is None else ())
            rows += [replace(nearest, reload=bool(nearest.ranks)), replace(solved, reload=group == 64)]
        middle = PackedRow(f"{bits} bits, groups of 64", f"int{bits}")
        solved = replace(middle, name=f"{middle.name}, GPTQ", method="gptq")
        ordered = replace(solved, name=f"{solved.name}, act-order", act_order=True)
        rows += [
            replace(ordered, ranks=(32,) if bits == 3 else ()),
            replace(middle, name=f"{middle.name}, zero points", symmetric=False, reload=bits == 4),
            replace(solved, name=f"{solved.name}, zero points", symmetric=False),
            replace(solved, name=f"{solved.name}, blocks at once", true_sequential=False),
        ]
    rows.append(PackedRow("8 bits, whole rows", "int8", group_size=None))
    rows.append(PackedRow("torchao int8", "int8", group_size=None, format="torchao", reload=True))
    rows.append(PackedRow("torchao int4, groups of 32", "int4", group_size=32, format="torchao", reload=True))
    return rows


def plain_repair(model: OpenModel, structure: Structure, rank: int) -> Structure:
    """The repair that knows no inputs: a truncated SVD of each linear's error."""
    sweep = Sweep(model.runner, structure, None, silent, None, "")

    def repaired(spec: BlockSpec) -> BlockSpec:
        floating = sweep.module(replace(spec, codecs=()))
        up, down = {}, {}
        for path, codec in spec.codecs:
            weight = weight_of(floating.get_submodule(path))
            missing = weight - codec.apply(weight)
            made = low_rank(missing, torch.eye(missing.shape[1]), rank)
            up[path], down[path] = (part.float() for part in made)
        return replace(spec, repair=LowRank(f"svd {rank} {spec.key}", down, up))

    return replace(structure, blocks=sweep.rework(repaired))


class Quantisation:
    """The open model, its texts and the results so far.

    Args:
        options: of the command line.
    """

    def __init__(self, options: argparse.Namespace) -> None:
        self.out: Path = options.out
        self.wanted: set[str] = set(filter(None, options.rows.split(";")))
        self.model: OpenModel = Workbench().open("default")
        self.test = self.model.windows(_text(options.data, "test", options.windows))
        self.choice = replace(
            _text(options.data, "validation", options.calibration), purpose="calibration", spread=True
        )
        self.calibration = self.model.windows(self.choice)
        known = json.loads(self.out.read_text("utf-8")) if self.out.is_file() else {}
        self.document: dict[str, Any] = known or {
            "machine": measuring.machine(),
            "model": self.model.reference.model_dump(),
            "test": text_reference(self.test).model_dump(),
            "calibration": text_reference(self.calibration).model_dump(),
            "dense": self.perplexity(self.model.evaluator.dense),
        }

    def perplexity(self, structure: Structure) -> float:
        """On the test windows. States of one row do not help the next: they would only fill the memory."""
        self.model.evaluator.states.clear()
        self.model.evaluator.weights.clear()
        return self.model.evaluator.measure(structure, self.test).perplexity

    @property
    def rows(self) -> list[dict[str, Any]]:
        """The rows so far."""
        rows: list[dict[str, Any]] = self.document.setdefault("packed", [])
        return rows

    def add(self, row: dict[str, Any]) -> None:
        """Keep a row, and write everything."""
        self.rows.append(row)
        measuring.write("quantisation", self.document, self.out)
        print(row, file=sys.stderr)

    def missing(self, name: str) -> bool:
        """Whether a row is wanted and not yet there."""
        return (not self.wanted or name in self.wanted) and all(row["name"] != name for row in self.rows)

    def run(self) -> None:
        """Every row that is asked for and not yet there."""
        for row in packed_rows():
            repairs = [(f"{row.name}, EoRA {rank}", rank, True) for rank in row.ranks]
            if len(row.ranks) > 1:
                repairs.append((f"{row.name}, plain SVD 32", 32, False))
            if not any(self.missing(name) for name in (row.name, *(name for name, _, _ in repairs))):
                continue
            begun = time.perf_counter()
            recipe = self._recipe(row)
            made = self.model.complete(self.model.resolve(recipe), [self.choice]).structure
            seconds = time.perf_counter() - begun
            if self.missing(row.name):
                self.add(self._packed_row(row, row.name, recipe, made, seconds))
            for name, rank, calibrated in repairs:
                if self.missing(name):
                    begun = time.perf_counter()
                    repaired = self._repaired(made, rank) if calibrated else plain_repair(self.model, made, rank)
                    seconds = time.perf_counter() - begun
                    shown = replace(row, reload=row.reload and rank == 32 and calibrated)
                    self.add(self._packed_row(shown, name, recipe, repaired, seconds) | {"rank": rank})

    def _repaired(self, made: Structure, rank: int) -> Structure:
        wanted = replace(made, eora=Eora(rank=rank, text=text_reference(self.calibration)))
        return repair(self.model.runner, wanted, self.calibration)

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
            out, tokenizer = Path(scratch) / "checkpoint", self.model.loaded.tokenizer
            saved = FORMATS[row.format].save(built, made, tokenizer, recipe, out)
            adapter = None
            found |= {"bytes": saved.bytes, "bits_per_weight": 8 * saved.bytes / saved.parameters}
            found["linear_bits"] = _linear_bits(saved.bytes, built.model, codecs_by_name(made))
            if any(spec.repair is not None for spec in made.blocks):
                adapter = save_adapter(made, "checkpoint", Path(scratch) / "adapter")
                found["adapter_bytes"] = (adapter / "adapter_model.safetensors").stat().st_size
            if row.reload:
                found["reloaded"] = self._reloaded(saved.path, adapter)
        return found

    def _reloaded(self, checkpoint: Path, adapter: Path | None) -> float:
        """Perplexity of the model in the files, an adapter merged by PEFT."""
        from peft import PeftModel
        from transformers import AutoModelForCausalLM

        model = AutoModelForCausalLM.from_pretrained(checkpoint)
        if adapter is not None:
            model = PeftModel.from_pretrained(model, adapter).merge_and_unload()
        evaluator = Evaluator(Runner(model, describe(model)))
        return evaluator.measure(evaluator.dense, self.test).perplexity


def _linear_bits(file_bytes: int, model: torch.nn.Module, quantised: Collection[str]) -> float:
    """Bits a weight of the quantised linears alone: what the file holds besides the other tensors."""
    weights = {f"{name}.weight" for name in quantised}
    named = dict(model.named_parameters())  # tied ones once
    others = sum(part.numel() * part.element_size() for name, part in named.items() if name not in weights)
    return 8 * (file_bytes - others) / sum(named[name].numel() for name in weights)


def _text(data: Path, split: str, windows: int) -> TextChoice:
    return TextChoice(str(data / f"wikitext-2-raw-{split}.jsonl"), WINDOW, windows)


def main() -> int:
    """Run the command."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.quantisation", description=__doc__.split("\n")[0])
    parser.add_argument("--rows", default="", help="names of rows, between semicolons; all if absent")
    parser.add_argument("--windows", type=int, default=16)
    parser.add_argument("--calibration", type=int, default=24)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--data", type=Path, default=DATA, help="folder with wikitext-2-raw-{test,validation}.jsonl")
    parser.add_argument("--out", type=Path, default=RESULT)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    work = Quantisation(options)
    work.run()
    shown = [
        {key: row.get(key, "") for key in ("name", "linear_bits", "bytes", "perplexity", "reloaded", "seconds")}
        for row in work.rows
    ]
    measuring.table(shown, f"compressed-tensors and torchao (dense {work.document['dense']:.3f})")
    return 0


if __name__ == "__main__":
    sys.exit(main())
