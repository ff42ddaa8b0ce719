"""GGUF types of the embedded model: size and perplexity, predicted before the file is written and from the file.

    python -m benchmarks.gguf_types [--types Q4_K_M,IQ4_XS] [--recipe R] [--data DIR] [--out F]

WikiText-2-raw: the importance matrix from windows spread over the validation split, perplexity from the first windows
of the test split. Each row is written at once, and what the file holds already is not measured again.
"""

from __future__ import annotations

import argparse
import copy
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, get_args

import torch

from analysis.model.describe import describe
from analysis.model.runner import Runner
from benchmarks import measuring
from benchmarks.quality import DATA, WINDOW
from surgery.checkpoints.build import build_model, draft_model
from surgery.checkpoints.planned import on_meta
from surgery.checkpoints.save import save_checkpoint
from surgery.evaluation.evaluator import Evaluator
from surgery.gguf.read import read_tensors
from surgery.gguf.write import write_gguf
from surgery.models.from_gguf import filled
from surgery.quantization.gguf_codecs import importance_of
from surgery.recipe.recipe import Recipe
from surgery.recipe.storage import GgufType, Quantize
from surgery.recipe.texts import TextChoice, text_reference
from surgery.structure.structure import Structure
from surgery.workbench.open_model import OpenModel
from surgery.workbench.workbench import Workbench

RESULT = Path(__file__).resolve().parents[1] / "docs" / "gguf_types.json"
UNWEIGHTED = ("F32", "F16", "Q8_0", "MXFP4")
"""Types whose encoder does not look at an importance matrix."""

COLUMNS = ("bits per weight", "bytes", "as predicted", "perplexity", "with importance matrix")


class Types:
    """The open model, its texts, and the checkpoint that the files are made from.

    Args:
        options: of the command.
        folder: where files may be written.
    """

    def __init__(self, options: argparse.Namespace, folder: Path) -> None:
        self.model: OpenModel = Workbench().open("default")
        self.folder = folder
        data: Path = options.data
        self.test = self.model.windows(TextChoice(str(data / "wikitext-2-raw-test.jsonl"), WINDOW, options.windows))
        self.choice = TextChoice(
            str(data / "wikitext-2-raw-validation.jsonl"), WINDOW, options.calibration, "calibration", spread=True
        )
        self.text = text_reference(self.model.windows(self.choice))
        self.base = Recipe.load(options.recipe) if options.recipe else self.model.recipe()
        self.dense = self._perplexity(self._complete(self.base))
        built = build_model(self.model.loaded.model, self.model.architecture, self._complete(self.base))
        save_checkpoint(built, self.model.loaded.tokenizer, self.base, folder / "checkpoint")

    def _complete(self, recipe: Recipe) -> Structure:
        return self.model.complete(self.model.resolve(recipe), [self.choice]).structure

    def _perplexity(self, structure: Structure) -> float:
        self.model.evaluator.states.clear()  # states of one type do not help the next
        return self.model.evaluator.measure(structure, self.test).perplexity

    def row(self, type_name: str, weighted: bool) -> dict[str, Any]:
        """One type: predicted, then written, then read back."""
        edit = Quantize(type=type_name, text=self.text if weighted else None)
        recipe = self.base.with_edits(*self.base.edits, edit)
        begun = time.perf_counter()
        structure = self._complete(recipe)
        plan = self.model.gguf_plan(structure)
        predicted = plan.file_bytes(type_name, "model", weighted)
        live = self._perplexity(structure)
        seconds = time.perf_counter() - begun
        path = self.folder / "model.gguf"
        importance = None
        if weighted:
            importance = importance_of(structure, self.model.moments(structure, self.text, [self.choice]))
        made = write_gguf(self.folder / "checkpoint", path, type_name, importance=importance, name="model")
        reloaded = self._reloaded(path, structure)
        path.unlink()
        return {
            "type": type_name,
            "importance_matrix": weighted,
            "bits_per_weight": made.bits_per_weight,
            "predicted_bytes": predicted,
            "bytes": made.bytes,
            "predicted_perplexity": live,
            "perplexity": reloaded,
            "seconds_to_predict": seconds,
        }

    def _reloaded(self, path: Path, structure: Structure) -> float:
        """Perplexity of the model that is in the file."""
        model = reload_gguf(path, self.model, structure)
        evaluator = Evaluator(Runner(model, describe(model)))
        return evaluator.measure(evaluator.dense, self.test).perplexity


def benchmark(options: argparse.Namespace) -> dict[str, Any]:
    """Every row that is asked for and not yet in the result file."""
    torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as scratch:
        types = Types(options, Path(scratch))
        document: dict[str, Any] = json.loads(options.out.read_text("utf-8")) if options.out.is_file() else {
            "machine": measuring.machine(),
            "model": types.model.reference.model_dump(),
            "recipe": types.base.document(),
            "test": text_reference(types.test).model_dump(),
            "importance_matrix": types.text.model_dump(),
            "dense": types.dense,
            "rows": [],
        }  # fmt: skip
        done = {(row["type"], row["importance_matrix"]) for row in document["rows"]}
        for name in options.types.split(","):
            for weighted in (False, True):
                if (name, weighted) not in done and not (weighted and name in UNWEIGHTED):
                    document["rows"].append(types.row(name, weighted))
                    measuring.write("gguf_types", document, options.out)
                    print(document["rows"][-1], file=sys.stderr)
    return document


def summary(document: dict[str, Any]) -> list[dict[str, Any]]:
    """One line a type; perplexity without and with the importance matrix."""
    lines: dict[str, dict[str, Any]] = {}
    for row in document["rows"]:
        line = lines.setdefault(row["type"], {"type": row["type"]} | dict.fromkeys(COLUMNS, ""))
        same = abs(row["predicted_perplexity"] - row["perplexity"]) < 0.0005
        shown = f"{row['perplexity']:.3f}" + ("" if same else f" (live {row['predicted_perplexity']:.3f})")
        if not row["importance_matrix"]:
            line |= {"bits per weight": f"{row['bits_per_weight']:.2f}", "bytes": f"{row['bytes']:,}"}
            line |= {"as predicted": "yes" if row["bytes"] == row["predicted_bytes"] else "NO", "perplexity": shown}
        else:
            line["with importance matrix"] = shown
    return list(lines.values())


def main() -> int:
    """Run the command."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gguf_types", description=__doc__.split("\n")[0])
    parser.add_argument("--types", default=",".join(get_args(GgufType)))
    parser.add_argument("--recipe", type=Path, default=None, help="a recipe without quantisation to start from")
    parser.add_argument("--windows", type=int, default=16)
    parser.add_argument("--calibration", type=int, default=16)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--data", type=Path, default=DATA, help="folder with wikitext-2-raw-{test,validation}.jsonl")
    parser.add_argument("--out", type=Path, default=RESULT)
    options = parser.parse_args()
    document = benchmark(options)
    measuring.table(summary(document), f"GGUF types (perplexity before: {document['dense']:.3f})")
    return 0


if __name__ == "__main__":
    sys.exit(main())


def reload_gguf(path: Path, model: OpenModel, structure: Structure) -> Any:
    """The model that a GGUF file holds, as a model of the transformers library in float32.

    Args:
        path: the file.
        model: the source model, which gives the code and the configuration; all weights come from the file.
        structure: what the file was made from.

    Raises:
        CorruptFile: as `read_tensors`.
    """
    plan = model.gguf_plan(structure)
    draft = draft_model(on_meta(model.loaded.model), model.architecture, structure.floating_shape)
    made = filled(read_tensors(path, plan), plan, model.architecture, draft.config, draft.model_class)
    made.generation_config = copy.deepcopy(model.loaded.model.generation_config)
    return made
