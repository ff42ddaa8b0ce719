"""Healing: tokens a second and loss against a plain peft loop, and perplexity after two and ten minutes.

    python -m benchmarks.healing speed [--steps 12] [--threads 2] [--data DIR] [--out F]
    python -m benchmarks.healing plan  [--minutes 2,10] [--threads 2] [--data DIR] [--out F]
    python -m benchmarks.healing table [--minutes 2,10] [--threads 2] [--data DIR] [--out F]

The embedded model on WikiText-2-raw: healing on windows of 512 of the validation split, perplexity on the first 16 of
the test split, rows joined by two line feeds, no BOS. Two cuts: 6 blocks chosen by measuring, and every MLP at 80% of
its width. Each result is written at once, and what the file holds already is not measured again.

`plan`, on quiet cores, measures how many steps fit into the minutes; `table` trains that many steps, so that what else
the machine does later changes the seconds and not the perplexities.

`speed` trains the same cut with the same settings, windows and start in all loops, a step of each in turn: in float32,
and where the processor is fast at them with factors of bfloat16, which is what `--precision auto` chooses there (the
plain loop then under autocast). The FLOP rate counts 2 x weights x tokens for the forward pass through the blocks'
linears and the head, and as much again for the gradients of activations; attention, norms and the adapters themselves
are left out. The rate of the fastest step is a share of the fastest float32 product, and of the fastest bfloat16 one.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from threading import Event
from typing import Any

import torch

from analysis.model.modules import device_of
from benchmarks import measuring
from surgery.checkpoints.build import build_model
from surgery.healing.healer import Healer, TrainingSpeed, heal_of, measure_speed, with_heal
from surgery.healing.presets import forecast
from surgery.pruning.budget import Budget, Rules
from surgery.pruning.suggest import suggest
from surgery.recipe.edits import PruneNeurons, RemoveBlocks
from surgery.recipe.healing import Precision
from surgery.recipe.recipe import Recipe
from surgery.recipe.texts import TextChoice, text_reference
from surgery.structure.structure import Structure
from surgery.training.adapters import adapter_of, write
from surgery.training.data import HealingText, check_apart, largest_count, load_healing_text
from surgery.training.precision import best_precision, product_type
from surgery.training.student import Student
from surgery.training.trainer import order_of, rate
from surgery.workbench.open_model import OpenModel
from surgery.workbench.workbench import Workbench

DATA = Path(__file__).resolve().parents[2] / "shared" / "data"
RESULT = Path(__file__).resolve().parents[1] / "docs" / "healing.json"
WINDOW = 512
TEST_WINDOWS = 16
SEARCH_WINDOWS = 2
SCORE_WINDOWS = 8
HELD_OUT = 4
SHARED = {"where": "all", "rank": 8, "alpha": 16.0, "held_out": HELD_OUT}
PLAN_TRIES = 4
"""Measurements of a step, of which the fastest counts: other work on the cores can only slow them."""
CUTS = ("blocks", "width")
METHODS: dict[str, dict[str, Any]] = {
    "lora": {"method": "lora", "learning_rate": 1e-3},
    "distill": {"method": "distill", "learning_rate": 1e-3, "distillation": {"divergence": "kl"}},
}


class Bench:
    """The open model, its texts and the two cuts.

    Args:
        data: the folder with the WikiText-2 files.
        document: results so far; cuts are taken from there or added.
    """

    def __init__(self, data: Path, document: dict[str, Any]) -> None:
        self.model: OpenModel = Workbench().open("default")
        self.data, self.document = data, document
        path = str(data / "wikitext-2-raw-validation.jsonl")
        count = largest_count(self.model.loaded.tokenizer, path, WINDOW, 10**6)
        self.text: HealingText = load_healing_text(self.model.loaded.tokenizer, path, WINDOW, count)
        test = TextChoice(str(data / "wikitext-2-raw-test.jsonl"), WINDOW, TEST_WINDOWS)
        check_apart(self.text.documents, self.model.text(test).content)
        self.test = self.model.windows(test)

    def cut(self, name: str) -> Recipe:
        """A cut by its name, made once."""
        known = self.document.setdefault("cuts", {})
        if name not in known:
            edit = self._blocks() if name == "blocks" else self._width()
            known[name] = edit.model_dump(mode="json", exclude={"chosen_by"})
        return self.model.recipe().with_edits(known[name])

    def _blocks(self) -> RemoveBlocks:
        windows = self._validation(SEARCH_WINDOWS)
        rules = Rules(keep_candidates=10)
        (edit,) = suggest(self.model, "perplexity_greedy", Budget(blocks=6), rules, windows).edits
        assert isinstance(edit, RemoveBlocks)
        return edit

    def _width(self) -> PruneNeurons:
        windows = self._validation(SCORE_WINDOWS)
        (edit,) = suggest(self.model, "cfsp_fine", Budget(percent=20), Rules(allocation="cfsp"), windows).edits
        assert isinstance(edit, PruneNeurons)
        return edit

    def _validation(self, count: int) -> Any:
        return self.model.windows(TextChoice(str(self.data / "wikitext-2-raw-validation.jsonl"), WINDOW, count))

    def perplexity(self, structure: Structure) -> float:
        """On the test windows."""
        self.model.evaluator.states.clear()
        return self.model.evaluator.measure(structure, self.test).perplexity

    def healer(self, recipe: Recipe, settings: dict[str, Any]) -> Healer:
        """A healing of a cut."""
        edit = {"op": "heal", "text": text_reference(self.text.windows).model_dump(), "steps": 1, **SHARED, **settings}
        return Healer(self.model, with_heal(recipe, heal_of(recipe.with_edits(edit))), self.text)

    @property
    def precision(self) -> Precision:
        """What `--precision auto` chooses here."""
        return best_precision(device_of(self.model.loaded.model))


def flops_a_token(student: Student) -> int:
    """Counted work of training: forward and activation gradients of the linears and of the head."""
    source = student.structure.architecture
    head = source.vocabulary_size * source.hidden_size
    blocks = sum(weight.numel() for module in student.modules for name, weight in _matrices(module) if "weight" in name)
    return 2 * 2 * (blocks + head)


def _matrices(module: torch.nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """Weights of a block's linears, trained ones once."""
    for part in module.modules():
        weight: Any = getattr(part, "weight", None)
        if isinstance(weight, torch.Tensor) and weight.dim() == 2:
            yield "weight", weight


class PlainLoop:
    """What one writes around peft: the model's own loss, backward, clip, AdamW. It starts where the student starts.

    Args:
        healer: whose start, windows and settings it takes, its precision by autocast.
        folder: for the adapter.
    """

    def __init__(self, healer: Healer, folder: Path) -> None:
        from peft import PeftModel

        model, student = healer.model, healer.student
        built = build_model(model.loaded.model, model.architecture, healer.structure).model
        folder.mkdir(parents=True, exist_ok=True)
        write(adapter_of(student), student, "default", folder)
        self.model: Any = PeftModel.from_pretrained(built, str(folder), is_trainable=True).train()
        self.parameters = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        self.optimiser = torch.optim.AdamW(self.parameters, lr=healer.edit.learning_rate, weight_decay=0.0)
        self.edit, self.ids = healer.edit, healer.training.windows.ids

    def step(self, number: int) -> float:
        """One step of the optimiser; the loss."""
        (window,) = order_of(len(self.ids), number, 1, self.edit.seed)
        ids = self.ids[window][None]
        with torch.autocast("cpu", enabled=self.edit.precision == "bfloat16"):
            loss = self.model(input_ids=ids, labels=ids).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.parameters, 1.0)
        for group in self.optimiser.param_groups:
            group["lr"] = rate(number, self.edit.steps, self.edit.learning_rate, self.edit.warm_up)
        self.optimiser.step()
        self.optimiser.zero_grad()
        return float(loss.detach())


def speed(options: argparse.Namespace, document: dict[str, Any]) -> dict[str, Any]:
    """All loops in turn, step by step."""
    import tempfile

    bench = Bench(options.data, document)
    precisions = dict.fromkeys(("float32", bench.precision))
    peaks = {name: measuring.gemm_peak(options.threads, product_type(name)) for name in precisions}
    with tempfile.TemporaryDirectory() as folder:
        steps: dict[str, Callable[[int], float]] = {}
        for name in precisions:
            settings = {"steps": options.steps, "learning_rate": 2e-4, "precision": name}
            healer = bench.healer(bench.cut("blocks"), settings)
            steps[f"plain {name}"] = PlainLoop(healer, Path(folder) / name).step
            steps[f"own {name}"] = partial(_own_step, healer)
        times: dict[str, list[float]] = {loop: [] for loop in steps}
        losses: dict[str, list[float]] = {loop: [] for loop in steps}
        for number in range(options.steps):
            for loop in list(steps)[:: 1 if number % 2 else -1]:
                begun = time.perf_counter()
                losses[loop].append(steps[loop](number))
                times[loop].append(time.perf_counter() - begun)
    for kind, peak in peaks.items():
        peaks[kind] = peak.better_of(measuring.gemm_peak(options.threads, product_type(kind)))
    rates = {name: WINDOW / measuring.median(values[1:]) for name, values in times.items()}
    best = {name: WINDOW / min(values[1:]) for name, values in times.items()}
    flops = flops_a_token(healer.student)
    return {
        "machine": measuring.machine(),
        "settings": healer.edit.model_dump(mode="json", exclude={"chosen_by", "precision"}),
        "trainable_parameters": healer.student.trainable,
        "tokens_per_second": rates,
        "best_tokens_per_second": best,
        "gemm_peak": {kind: peak.rate for kind, peak in peaks.items()},
        "flops_a_token": flops,
        "losses": losses,
    }


def _own_step(healer: Healer, number: int) -> float:
    """One step of the workbench's training; the loss."""
    healer.trainer.take_step(Event())
    return healer.trainer.state.history[number]["loss"]


def speed_rows(found: dict[str, Any]) -> list[dict[str, Any]]:
    """What `speed` found, a row for each loop."""
    rates, best = found["tokens_per_second"], found["best_tokens_per_second"]
    losses, peaks = found["losses"], found["gemm_peak"]
    return [
        {
            "loop": name,
            "tokens/s": rate,
            "times plain float32": rate / rates["plain float32"],
            "times plain": rate / rates[f"plain {name.split()[1]}"],
            "best tokens/s": best[name],
            **{f"of {kind} peak": best[name] * found["flops_a_token"] / peak for kind, peak in peaks.items()},
            "last loss": losses[name][-1],
        }
        for name, rate in rates.items()
    ]


def plans(options: argparse.Namespace, document: dict[str, Any]) -> None:
    """Steps, and steps between held-out measurements, of every cut, loss and time."""
    bench = Bench(options.data, document)
    document["plans"] = {}
    for cut in CUTS:
        for method, settings in METHODS.items():
            healer = bench.healer(bench.cut(cut), settings | {"precision": bench.precision})
            tries = [measure_speed(healer) for _ in range(PLAN_TRIES)]
            measured = TrainingSpeed(min(found.step for found in tries), min(found.evaluation for found in tries))
            for minutes in map(float, options.minutes.split(",")):
                found = forecast(healer, measured, minutes)
                document["plans"][f"{cut} {method} {minutes:g}"] = [found.steps, found.evaluate_every]
                print(cut, method, found.words, file=sys.stderr)


def table_rows(options: argparse.Namespace, document: dict[str, Any]) -> None:
    """Every cut, loss and time that the file does not hold yet."""
    bench = Bench(options.data, document)
    rows: list[dict[str, Any]] = document.setdefault("rows", [])
    done = {(row["cut"], row["method"], row["minutes"]) for row in rows}
    document.setdefault("dense", None)
    document["dense"] = document["dense"] or bench.perplexity(bench.model.evaluator.dense)
    for cut in CUTS:
        recipe = bench.cut(cut)
        before: float | None = None
        for minutes in map(float, options.minutes.split(",")):
            for method, settings in METHODS.items():
                if (cut, method, minutes) in done:
                    continue
                before = before or bench.perplexity(bench.model.resolve(recipe))
                steps, every = document["plans"][f"{cut} {method} {minutes:g}"]
                planned = {**settings, "steps": steps, "evaluate_every": every, "precision": bench.precision}
                row = {"cut": cut, "method": method, "minutes": minutes, "before": before}
                rows.append(row | _healed(bench, recipe, planned))
                measuring.write("healing", document, options.out)
                print({name: value for name, value in rows[-1].items() if name != "curve"}, file=sys.stderr)


def _healed(bench: Bench, recipe: Recipe, settings: dict[str, Any]) -> dict[str, Any]:
    """One healing, and the test perplexity of what it gives."""
    healer = bench.healer(recipe, settings)
    healed = healer.run()
    return {
        "after": bench.perplexity(healed.structure),
        **{name: value for name, value in healed.document().items() if name not in ("before", "after")},
        "held_out": [healed.outcome.before, healed.outcome.after],
        "settings": healer.edit.model_dump(mode="json", exclude={"chosen_by", "text"}),
        "curve": list(healed.outcome.history),
    }


def main() -> int:
    """Run the command."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.healing", description=__doc__.split("\n")[0])
    parser.add_argument("what", choices=("speed", "plan", "table"))
    parser.add_argument("--steps", type=int, default=12, help="of the comparison of speed")
    parser.add_argument("--minutes", default="2,10")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--data", type=Path, default=DATA, help="folder with wikitext-2-raw-{test,validation}.jsonl")
    parser.add_argument("--out", type=Path, default=RESULT)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    document = json.loads(options.out.read_text("utf-8")) if options.out.is_file() else {}
    if options.what == "speed":
        document["speed"] = speed(options, document)
        measuring.write("healing", document, options.out)
        measuring.table(speed_rows(document["speed"]), "Training, tokens a second")
    elif options.what == "plan":
        plans(options, document)
        measuring.write("healing", document, options.out)
    else:
        document.setdefault("machine", measuring.machine())
        table_rows(options, document)
        rows = [
            {name: row[name] for name in ("cut", "method", "minutes", "before", "after", "steps", "tokens_per_second")}
            for row in document["rows"]
        ]
        measuring.table(rows, f"Perplexity (dense {document['dense']:.2f})")
    return 0


if __name__ == "__main__":
    sys.exit(main())
