"""The best combination of methods at a size, found by measuring, and written as a preset recipe.

    python -m benchmarks.combinations [--sizes 95,88,80] [--attentions 0,4,8,12] [--order 6,7,...] [--out DIR]

The embedded model on WikiText-2-raw. Attention sublayers go in the order of a greedy search, narrower MLPs (CFSP's
scores and budget, block 0 spared) make up the rest, and least-squares refits and linear patches are computed. How many
attentions go is decided by perplexity on validation windows that neither the scores nor the refits have seen; the
test split is measured once, for the combination that won.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from analysis.text import Windows
from benchmarks import measuring
from benchmarks.quality import DATA, WINDOW, Quality
from surgery.errors import InputError
from surgery.pruning import greedy
from surgery.pruning.blocks import Goal
from surgery.pruning.budget import Budget, Rules
from surgery.pruning.suggest import suggest
from surgery.recipe.base import ChosenBy
from surgery.recipe.edits import Compensate, RemoveAttention
from surgery.recipe.recipe import Recipe
from surgery.recipe.texts import TextChoice, text_reference

CALIBRATION, SELECTION, SEARCH = 48, 8, 3
"""Windows of the validation split: for scores and refits, evenly spaced over it; for the choice among combinations and
for the greedy search, half-way between two of those."""
WIDTH = Rules(allocation="cfsp", protect_first=1)
PRESETS = Path(__file__).resolve().parents[1] / "presets" / "recipes"


@dataclass(frozen=True)
class Found:
    """One combination, and its perplexity on the selection windows without and with compensation."""

    attentions: int
    recipe: Recipe
    plain: float
    compensated: float


class Combinations:
    """See the module.

    Args:
        data: the folder with the WikiText-2 files.
        windows: test windows of the final figure.
    """

    def __init__(self, data: Path, windows: int) -> None:
        self.quality = Quality(data, windows, 1)
        self.model = self.quality.model
        path = str(data / "wikitext-2-raw-validation.jsonl")
        self.calibration = self.model.windows(TextChoice(path, WINDOW, CALIBRATION, spread=True))
        between = self.model.windows(TextChoice(path, WINDOW, 2 * CALIBRATION, spread=True)).ids[1::2]
        self.selection = replace(self.calibration, ids=between[:: CALIBRATION // SELECTION])
        self.search = replace(self.calibration, ids=between[1 :: CALIBRATION // SEARCH].reshape(-1, WINDOW // 2))

    def attention_order(self, count: int) -> list[int]:
        """Blocks whose attention goes, first to last."""
        rules = Rules(keep_candidates=8)
        parts = greedy.step_by_step(
            self.model, self.search, ("attention",), Goal(count=count), rules, None, lambda share, message: None
        )
        self.model.evaluator.states.clear()
        return [part.block for part in parts]

    def combine(self, size: float, order: list[int]) -> Recipe:
        """Those attentions gone, and the MLPs as narrow as the rest of the budget asks.

        Raises:
            InputError: more than the MLPs hold.
        """
        edits: list[Any] = []
        if order:
            origin = ChosenBy(method="greedy_sublayers", budget={"blocks": len(order), "attention_only": True})
            edits.append(RemoveAttention(blocks=tuple(sorted(order)), chosen_by=origin))
        whole = self.model.architecture.parameters
        gone = whole - self.model.resolve(self.model.recipe(*edits)).parameters
        stay = round(whole * size / 100) + gone
        if stay < whole:
            edits += suggest(self.model, "cfsp_fine", Budget(params=str(stay)), WIDTH, self.calibration).edits
        text = text_reference(self.calibration)
        edits.append(Compensate(how="least_squares", text=text))
        return self.model.recipe(*edits, *([Compensate(how="linear_patch", text=text)] if order else []))

    def measure(self, recipe: Recipe, windows: Windows) -> tuple[float, float]:
        """Perplexity without and with the recipe's compensations."""
        structure = self.model.resolve(recipe)
        made = self.model.completer.compensator.compute(structure, self.calibration).structure
        found = []
        for candidate in (replace(structure, compensations=()), made):
            self.model.evaluator.states.clear()
            found.append(self.model.evaluator.measure(candidate, windows).perplexity)
        return found[0], found[1]

    def best(self, size: float, order: list[int], counts: list[int]) -> Found:
        """The combination with the lowest perplexity on the selection windows."""
        found = []
        for count in counts:
            try:
                recipe = self.combine(size, order[:count])
            except InputError as error:
                print(f"{size:g}%, {count} attentions: {error}", file=sys.stderr)
                continue
            found.append(Found(count, recipe, *self.measure(recipe, self.selection)))
            print(
                f"{size:g}%, {count} attentions: {found[-1].plain:.2f} -> {found[-1].compensated:.2f}", file=sys.stderr
            )
        return min(found, key=lambda item: item.compensated)

    def preset(self, size: float, order: list[int], counts: list[int], out: Path) -> dict[str, Any]:
        """Find the best combination, measure it on the test split and write it."""
        best = self.best(size, order, counts)
        plain, compensated = self.measure(best.recipe, self.quality.test)
        parameters = self.model.resolve(best.recipe).parameters
        results = {
            "perplexity": compensated,
            "perplexity_without_compensation": plain,
            "dense_perplexity": self.quality.perplexity(self.model.evaluator.dense),
            "parameters": parameters,
            "text": text_reference(self.quality.test).model_dump(),
        }
        target = {"parameters_percent": size}
        recipe = best.recipe.model_copy(update={"target": target, "results": results})
        out.mkdir(parents=True, exist_ok=True)
        recipe.save(out / f"smollm2-135m-{size:g}.json")
        return {
            "size": f"{size:g}%",
            "attentions": best.attentions,
            "parameters %": 100 * parameters / self.model.architecture.parameters,
            "perplexity": plain,
            "compensated": compensated,
        }


def main() -> int:
    """Run the command."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.combinations", description=__doc__.split("\n")[0])
    parser.add_argument("--sizes", default="95,88,80", help="percent of the parameters that stay")
    parser.add_argument("--attentions", default="0,4,8,12", help="how many attentions may go")
    parser.add_argument("--order", default="", help="blocks in the order of an earlier search, instead of a new one")
    parser.add_argument("--windows", type=int, default=16)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--data", type=Path, default=DATA, help="folder with wikitext-2-raw-{test,validation}.jsonl")
    parser.add_argument("--out", type=Path, default=PRESETS, help="folder for the recipes")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    work = Combinations(options.data, options.windows)
    counts = [int(count) for count in options.attentions.split(",")]
    order = [int(block) for block in options.order.split(",")] if options.order else work.attention_order(max(counts))
    print(f"Attentions, in the order of their removal: {order}", file=sys.stderr)
    rows = [work.preset(float(size), order, counts, options.out) for size in options.sizes.split(",")]
    measuring.table(rows, "The best combination at each size, WikiText-2-raw test")
    return 0


if __name__ == "__main__":
    sys.exit(main())
