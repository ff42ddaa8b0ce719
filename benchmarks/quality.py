"""Perplexity of every method at the same sizes, without training, with and without compensation.

    python -m benchmarks.quality [--sizes 90,80,70] [--methods cfsp_fine,block_influence] [--data DIR] [--out F]

The embedded model on WikiText-2-raw: scores, searches and compensations from the first windows of the validation
split, perplexity from the first windows of the test split, rows joined by two line feeds, no BOS. Each result is
written at once, and what the file holds already is not measured again.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from analysis.text import Windows
from benchmarks import measuring
from surgery.errors import InputError
from surgery.pruning import catalogue
from surgery.pruning.budget import Budget, Rules
from surgery.pruning.kinds import Procedure
from surgery.pruning.suggest import suggest
from surgery.recipe.base import TextReference
from surgery.recipe.edits import Compensate
from surgery.recipe.recipe import Recipe
from surgery.recipe.texts import TextChoice, text_reference
from surgery.structure.structure import Structure
from surgery.workbench.open_model import OpenModel
from surgery.workbench.workbench import Workbench

DATA = Path(__file__).resolve().parents[2] / "shared" / "data"
RESULT = Path(__file__).resolve().parents[1] / "docs" / "quality.json"
"""Kept with the project: an hour of measuring that the README's table is made of."""
WINDOW = 512
SEARCH_WINDOWS = 2
"""Of the calibration windows, what a search by measuring sees: it measures hundreds of times."""
GREEDY = Rules(keep_candidates=8, per_parameter=True)
COMPENSATIONS = {
    "blocks": "linear_patch",
    "attention": "linear_patch",
    "mlp": "linear_patch",
    "sublayers": "linear_patch",
    "neurons": "least_squares",
    "heads": "least_squares",
}
"""What makes up for the removals of each kind; channels of the residual stream cannot be compensated."""


@dataclass(frozen=True)
class Variant:
    """A method under rules, with the name of its row."""

    name: str
    method: str
    rules: Rules = field(default_factory=Rules)


def variants() -> list[Variant]:
    """Every method with its usual rules, and the rules that are published with some of them."""
    found = []
    for item in catalogue.everything():
        if item.kind == "kv_heads":  # merging heads has no parameter budget
            continue
        greedy = item.name in ("perplexity_greedy", "greedy_sublayers")
        found.append(Variant(item.name, item.name, GREEDY if greedy else Rules()))
    ends = Rules(protect_first=4, protect_last=2)
    found.append(Variant("taylor_blocks+", "taylor_blocks", ends))
    found.append(Variant("maw (block 0 spared)", "maw", Rules(protect_first=1)))
    found.append(Variant("cfsp_fine (CFSP budget)", "cfsp_fine", Rules(allocation="cfsp")))
    found.append(Variant("taylor_first (one ranking)", "taylor_first", Rules(allocation="raw")))
    return found


class Quality:
    """The open model and its two texts.

    Args:
        data: the folder with the WikiText-2 files.
        windows: test windows that are measured.
        calibration: validation windows that methods and compensations see.
    """

    def __init__(self, data: Path, windows: int, calibration: int) -> None:
        self.model: OpenModel = Workbench().open("default")
        self.data = data
        self.test = self._windows("test", windows)
        self.calibration = self.validation(calibration)
        self.searching = self.validation(SEARCH_WINDOWS)

    def validation(self, count: int) -> Windows:
        """The first windows of the validation split."""
        return self._windows("validation", count)

    def _windows(self, split: str, count: int) -> Windows:
        return self.model.windows(TextChoice(str(self.data / f"wikitext-2-raw-{split}.jsonl"), WINDOW, count))

    @property
    def text(self) -> TextReference:
        """How a recipe names the calibration windows."""
        return text_reference(self.calibration)

    def perplexity(self, structure: Structure) -> float:
        """On the test windows. States of one recipe do not help the next: they would only fill the memory."""
        self.model.evaluator.states.clear()
        return self.model.evaluator.measure(structure, self.test).perplexity

    def compensated(self, recipe: Recipe, *how: str) -> Structure:
        """The structure of a recipe with compensations computed."""
        edits = [Compensate(how=name, text=self.text) for name in how]  # type: ignore[arg-type]
        structure = self.model.resolve(recipe.with_edits(*recipe.edits, *edits))
        return self.model.completer.compensator.compute(structure, self.calibration).structure

    def row(self, variant: Variant, size: float, known: list[dict[str, Any]]) -> dict[str, Any]:
        """One method at one size in percent of the parameters; what an earlier row measured is taken from there."""
        begun = time.perf_counter()
        kind = catalogue.entry(variant.method).kind
        made: dict[str, Any] = {"method": variant.name, "kind": kind, "size": size}
        text = self.searching if isinstance(catalogue.entry(variant.method), Procedure) else self.calibration
        try:
            recipe = suggest(self.model, variant.method, Budget(params=f"{size}%"), variant.rules, text)
        except InputError as error:
            return made | {"refused": str(error)}
        structure = self.model.resolve(recipe)
        made["structure"] = structure.key
        made["parameters"] = 100 * structure.parameters / self.model.architecture.parameters
        same = next((row for row in known if row.get("structure") == structure.key and row["kind"] == kind), None)
        if same is not None:
            return made | {name: same[name] for name in ("perplexity", "compensated")}
        made["perplexity"] = self.perplexity(structure)
        how = COMPENSATIONS.get(kind)
        made["compensated"] = self.perplexity(self.compensated(recipe, how)) if how else None
        return made | {"seconds": time.perf_counter() - begun}


def benchmark(options: argparse.Namespace) -> dict[str, Any]:
    """Everything that is asked for and not yet in the result file."""
    torch.set_num_threads(options.threads)
    quality = Quality(options.data, options.windows, options.calibration)
    document = _known(options.out) or {
        "machine": measuring.machine(),
        "model": quality.model.reference.model_dump(),
        "test": text_reference(quality.test).model_dump(),
        "calibration": quality.text.model_dump(),
        "dense": quality.perplexity(quality.model.evaluator.dense),
        "rows": [],
    }
    done = {(row["method"], row["size"]) for row in document["rows"]}
    chosen = [variant for variant in variants() if not options.methods or variant.name in options.methods.split(",")]
    for size in map(float, options.sizes.split(",")):
        for variant in chosen:
            if (variant.name, size) not in done:
                row = quality.row(variant, size, document["rows"])
                document["rows"].append(row)
                measuring.write("quality", document, options.out)
                print({key: value for key, value in row.items() if key != "kind"}, file=sys.stderr)
    return document


def _known(out: Path) -> dict[str, Any] | None:
    return json.loads(out.read_text("utf-8")) if out.is_file() else None


def summary(document: dict[str, Any]) -> list[dict[str, Any]]:
    """One line a method: perplexity and, behind an arrow, with compensation, at each size."""
    sizes = sorted({row["size"] for row in document["rows"]}, reverse=True)
    lines: dict[str, dict[str, Any]] = {}
    for row in document["rows"]:
        empty = {"method": row["method"], "removes": row["kind"]} | {f"{size:g}%": "" for size in sizes}
        lines.setdefault(row["method"], empty)[f"{row['size']:g}%"] = _cell(row)
    return list(lines.values())


def _cell(row: dict[str, Any]) -> str:
    if "refused" in row:
        return "out of reach"
    plain = _number(row["perplexity"])
    return plain if row["compensated"] is None else f"{plain} → {_number(row['compensated'])}"


def _number(value: float) -> str:
    return f"{value:,.1f}" if value < 1000 else f"{value:,.0f}" if value < 1e6 else f"{value:.0e}"


def main() -> int:
    """Run the command."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.quality", description=__doc__.split("\n")[0])
    parser.add_argument("--sizes", default="90,80,70", help="percent of the parameters that stay")
    parser.add_argument("--methods", default="", help="names of rows; all if absent")
    parser.add_argument("--windows", type=int, default=16)
    parser.add_argument("--calibration", type=int, default=8)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--data", type=Path, default=DATA, help="folder with wikitext-2-raw-{test,validation}.jsonl")
    parser.add_argument("--out", type=Path, default=RESULT)
    options = parser.parse_args()
    document = benchmark(options)
    measuring.table(summary(document), f"Perplexity (dense {document['dense']:.2f}), → with compensation")
    return 0


if __name__ == "__main__":
    sys.exit(main())
