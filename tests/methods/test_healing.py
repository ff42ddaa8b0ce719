"""Healing against a plain peft loop: the same gradients, the same steps, the same logits, on every family."""

from __future__ import annotations

import copy
import json
from functools import cache
from pathlib import Path
from threading import Event
from typing import Any

import pytest
import torch

from analysis.model.describe import describe
from analysis.model.runner import Runner
from surgery.checkpoints.build import build_model
from surgery.errors import Cancelled, InputError, RecipeError
from surgery.evaluation.evaluator import Evaluator
from surgery.healing.healer import Healed, Healer
from surgery.recipe.healing import Heal
from surgery.recipe.recipe import Recipe
from surgery.structure.resolve import healing_key, resolve
from surgery.structure.structure import Structure
from surgery.training import adapters, results
from surgery.training import state as checkpoints
from surgery.training.data import HealingText
from surgery.training.objectives import PlainText
from surgery.training.student import Student
from surgery.training.targets import around_cuts, ranks_by_importance
from surgery.training.trainer import Progress, Trainer, TrainingError, order_of, rate
from surgery.workbench.open_model import OpenModel
from tests.reference import random_windows, token_nll
from tests.tiny_models import FAMILIES, build
from tests.tiny_workbench import open_model

CUT = ({"op": "remove_blocks", "blocks": "2"}, {"op": "prune_neurons", "removed": {"1": "0-15"}})
WINDOWS = random_windows(count=10, seed=5)
TEXT = {"source": "random", "fingerprint": "none", "window": 24, "windows": 10}


def heal_edit(**settings: Any) -> dict[str, Any]:
    return {"op": "heal", "text": TEXT, "steps": 4, "where": "all", "learning_rate": 1e-2, **settings}


def recipe(*edits: dict[str, Any], **settings: Any) -> Recipe:
    document = {"schema": "model-surgery/recipe/1", "model": {"id": "tiny"}, "edits": [*edits, heal_edit(**settings)]}
    found = Recipe.read(document)
    assert Recipe.parse(found.to_json()) == found
    return found


def healing_text(learnt: torch.Tensor | None = None) -> HealingText:
    everything = torch.ones_like(WINDOWS.ids, dtype=torch.bool)
    return HealingText(WINDOWS, everything if learnt is None else learnt, {})


@cache
def runner_of(family: str) -> Runner:
    model = build(family).requires_grad_(False)  # as loading leaves it
    return Runner(model, describe(model))


@cache
def evaluator_of(family: str) -> Evaluator:
    return Evaluator(runner_of(family))


def structure(family: str, *edits: dict[str, Any]) -> Structure:
    document = {"schema": "model-surgery/recipe/1", "model": {"id": "tiny"}, "edits": list(edits)}
    return resolve(runner_of(family).architecture, Recipe.read(document))


def edit_of(**settings: Any) -> Heal:
    return Heal.model_validate(heal_edit(**settings))


def student_of(family: str, edits: Any = CUT, **settings: Any) -> Student:
    return Student(evaluator_of(family), structure(family, *edits), edit_of(**settings))


def trainer_of(student: Student, folder: Path | None = None) -> Trainer:
    training, held_out = healing_text().split(student.edit.held_out)
    return Trainer(student, PlainText(training), held_out, student.edit, "key", folder=folder)


def peft_model(student: Student, tmp_path: Path) -> Any:
    """peft's own model of the built checkpoint, with the student's adapter loaded from its files, ready to train."""
    from peft import PeftModel

    runner = student.runner
    built = build_model(runner.model, runner.architecture, student.structure).model
    folder = tmp_path / "adapter"
    folder.mkdir(exist_ok=True)
    adapters.write(adapters.adapter_of(student), student, "tiny", folder)
    return PeftModel.from_pretrained(built, str(folder), is_trainable=True)


def peft_gradients(model: Any, student: Student) -> list[torch.Tensor]:
    """peft's gradients in the order of the student's parameters."""
    named = dict(model.named_parameters())
    blocks = student.runner.architecture.block_list
    found = []
    for place, linear in student.linears.items():
        for name, _ in linear.named_parameters():
            ending = {"down": "lora_A.default.weight", "up": "lora_B.default.weight"}.get(
                name, "lora_magnitude_vector.default.weight"
            )
            found.append(named[f"base_model.model.{blocks}.{place.position}.{place.path}.{ending}"])
    return found


def shaken(student: Student) -> Student:
    """A student whose adapters are not at their start, where half of the gradients are zero."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in student.parameters:
            parameter += 0.05 * torch.randn(parameter.shape, generator=generator)
    student.refresh()
    return student


@pytest.mark.parametrize("family", FAMILIES)
def test_gradients_are_those_of_a_plain_peft_model(family: str, tmp_path: Path) -> None:
    student = shaken(student_of(family))
    model = peft_model(student, tmp_path)
    ids = WINDOWS.ids[:2]
    logits = model(input_ids=ids, use_cache=False).logits[:, :-1]
    loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())
    loss.backward()
    trainer = trainer_of(student)
    own, _ = trainer._gradients([[0], [1]], None)
    assert own == pytest.approx(float(loss), abs=1e-5)
    for parameter, expected in zip(student.parameters, peft_gradients(model, student), strict=True):
        assert parameter.grad is not None and expected.grad.abs().max() > 1e-6
        torch.testing.assert_close(parameter.grad, expected.grad, atol=1e-5, rtol=1e-4)


OPTIONS: list[dict[str, Any]] = [
    {"train": "dora"},
    {"linears": ["query", "down"], "blocks": "1,3"},
    {"checkpointing": True},
]


@pytest.mark.parametrize("settings", OPTIONS)
def test_gradients_of_the_options(settings: dict[str, Any], tmp_path: Path) -> None:
    student = shaken(student_of("qwen2", **settings))
    model = peft_model(student, tmp_path)
    ids = WINDOWS.ids[:1]
    logits = model(input_ids=ids, use_cache=False).logits[:, :-1]
    torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten()).backward()
    trainer_of(student)._gradients([[0]], None)
    for parameter, expected in zip(student.parameters, peft_gradients(model, student), strict=True):
        torch.testing.assert_close(parameter.grad, expected.grad, atol=1e-5, rtol=1e-4)


def plain_loop(model: Any, parameters: list[torch.Tensor], edit: Heal, ids: torch.Tensor) -> list[float]:
    """The loop that anyone would write around a peft model: one window at a time, the model's own loss, AdamW."""
    optimiser = torch.optim.AdamW(parameters, lr=edit.learning_rate, weight_decay=edit.weight_decay)
    losses = []
    for step in range(edit.steps):
        windows = order_of(len(ids), step * edit.batch, edit.batch, edit.seed)
        total = 0.0
        for window in windows:
            loss = model(input_ids=ids[window][None], labels=ids[window][None], use_cache=False).loss / edit.batch
            loss.backward()
            total += float(loss.detach())
        torch.nn.utils.clip_grad_norm_(parameters, edit.clip)
        for group in optimiser.param_groups:
            group["lr"] = rate(step, edit.steps, edit.learning_rate, edit.warm_up)
        optimiser.step()
        optimiser.zero_grad()
        losses.append(total)
    return losses


@pytest.mark.parametrize("settings", [{}, {"batch": 3, "micro_batch": 2, "weight_decay": 0.1}, {"train": "dora"}])
@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt2"])
def test_training_is_a_plain_loop_step_for_step(family: str, settings: dict[str, Any], tmp_path: Path) -> None:
    if family == "gpt2" and settings.get("train") == "dora":
        settings = {"linears": ["value"], "rank": 3}
    student = student_of(family, steps=6, learning_rate=1e-3, **settings)
    model = peft_model(student, tmp_path)
    trainer = trainer_of(student)
    expected = plain_loop(model, peft_gradients(model, student), student.edit, trainer.material.ids)
    outcome = trainer.run()
    assert [entry["loss"] for entry in outcome.history] == pytest.approx(expected, rel=2e-5)
    assert outcome.steps == 6 and outcome.ending == "steps"


@pytest.mark.parametrize("family", ["llama_tied", "phi3", "olmo2", "opt"])
@pytest.mark.parametrize("train", ["lora", "dora"])
def test_merged_built_and_adapted_models_are_one(family: str, train: str, tmp_path: Path) -> None:
    """Student, live evaluation of the merged structure, the built checkpoint, and peft on the unhealed checkpoint."""
    student = shaken(student_of(family, train=train))
    structure_ = student.structure
    folder = tmp_path / "adapter"
    model = peft_model(student, tmp_path).eval()
    adapter = adapters.read(folder)
    assert adapter.fingerprint == adapters.adapter_of(student).fingerprint and adapter.low_rank
    merged = adapters.merge(student.runner, structure_, adapter)
    live = evaluator_of(family).token_losses(merged, WINDOWS.ids)
    torch.testing.assert_close(student.losses(WINDOWS.ids), live, atol=2e-5, rtol=1e-4)
    built = build_model(student.runner.model, student.runner.architecture, merged).model
    for other in (model, built):
        torch.testing.assert_close(token_nll(other, WINDOWS.ids).float(), live, atol=2e-5, rtol=1e-4)
    assert (live - evaluator_of(family).token_losses(structure_, WINDOWS.ids)).abs().max() > 1e-3


@pytest.mark.parametrize("family", ["llama", "gpt2", "phi"])
def test_trained_weights_get_the_gradients_of_the_model(family: str) -> None:
    student = student_of(family, train="weights", linears=["down", "query"])
    model = copy.deepcopy(build_model(student.runner.model, student.runner.architecture, student.structure).model)
    model.requires_grad_(True)
    ids = WINDOWS.ids[:1]
    model(input_ids=ids, labels=ids, use_cache=False).loss.backward()
    trainer_of(student)._gradients([[0]], None)
    blocks = model.get_submodule(student.runner.architecture.block_list)
    for place, linear in student.linears.items():
        weight = blocks[place.position].get_submodule(place.path).weight.grad
        expected = weight.T if family == "gpt2" else weight
        torch.testing.assert_close(linear.weight.grad, expected, atol=1e-5, rtol=1e-4)


def test_dropout_is_on_the_adapters_input_alone_and_seeded() -> None:
    student = shaken(student_of("llama", dropout=0.5))
    linear = next(iter(student.linears.values()))
    x = torch.randn(3, linear.weight.shape[1])
    kept = linear(x)
    linear.masks = torch.Generator().manual_seed(1)
    dropped = linear(x)
    mask = torch.rand(x.shape, generator=torch.Generator().manual_seed(1)) >= 0.5
    expected = x @ linear.frozen.T + linear.scale * (2 * mask * x) @ linear.down.T @ linear.up.T
    torch.testing.assert_close(dropped, expected, atol=1e-5, rtol=1e-5)
    linear.masks = None
    assert torch.equal(linear(x), kept) and not torch.allclose(kept, dropped)


def test_only_answers_count() -> None:
    learnt = torch.zeros_like(WINDOWS.ids, dtype=torch.bool)
    learnt[:, 10:14] = True
    student = shaken(student_of("llama"))
    training, held_out = healing_text(learnt).split(2)
    trainer = Trainer(student, PlainText(training), held_out, student.edit)
    loss, _ = trainer._gradients([[0, 3]], None)
    nll = student.losses(WINDOWS.ids)
    assert loss == pytest.approx(float(nll[[0, 3], 9:13].mean()), rel=1e-5)
    assert trainer.evaluate() == pytest.approx(float(nll[-2:, 9:13].mean()), rel=1e-5)


def test_frozen_blocks_before_the_first_trained_one_run_once(monkeypatch: pytest.MonkeyPatch) -> None:
    student = student_of("llama", blocks="3", steps=20)
    runs: list[int] = []
    original = Runner.run
    first = student.modules[0]

    def counted(self: Runner, block: Any, *rest: Any) -> torch.Tensor:
        runs.append(block is first)
        return original(self, block, *rest)

    monkeypatch.setattr(Runner, "run", counted)
    trainer_of(student).run()
    assert sum(runs) == 10, "8 training windows and 2 held out, each once"


def test_a_resumed_training_is_an_uninterrupted_one(tmp_path: Path) -> None:
    whole = trainer_of(student_of("llama", steps=9, evaluate_every=2))
    expected = whole.run()
    first = trainer_of(student_of("llama", steps=9, evaluate_every=2), tmp_path / "state")

    def crash(progress: Progress) -> None:
        if progress.step == 5:
            first.checkpoint()
            raise KeyError("power cut")

    with pytest.raises(KeyError):
        first.run(crash)
    assert sorted(path.suffix for path in (tmp_path / "state").iterdir()) == [".json", ".safetensors"]
    again = trainer_of(student_of("llama", steps=9, evaluate_every=2), tmp_path / "state")
    assert again.state.step == 5
    found = again.run()
    assert found.history == expected.history and found.after == expected.after
    for one, other in zip(again.student.tensors(), whole.student.tensors(), strict=True):
        assert torch.equal(one, other)
    (tmp_path / "state" / "state.safetensors").write_bytes(b"cut short")
    assert checkpoints.load(tmp_path / "state", "key") is None
    assert trainer_of(student_of("llama"), tmp_path / "state").state.step == 0


@pytest.mark.parametrize("how", ["stop", "report"])
def test_a_cancel_ends_within_a_step_and_keeps_the_best_state(how: str) -> None:
    student, stop = student_of("llama", steps=1000, learning_rate=1e-3), Event()

    def publish(progress: Progress) -> None:
        if progress.step == 7:
            if how == "report":
                raise Cancelled("Cancelled.")
            stop.set()

    trainer = trainer_of(student)
    outcome = trainer.run(publish, stop)
    assert outcome.ending == "cancelled" and outcome.steps == 7
    assert outcome.after == pytest.approx(float(torch.tensor(trainer.evaluate()).exp()), rel=1e-5)
    assert outcome.after <= outcome.before


def test_the_best_state_is_kept_and_patience_ends_a_training_that_gets_worse() -> None:
    student = student_of("llama", steps=500, learning_rate=0.3, clip=None, evaluate_every=1, patience=3)
    trainer = trainer_of(student)
    outcome = trainer.run()
    assert outcome.ending == "patience" and outcome.steps == outcome.best_step + 3
    measured = [entry["held_out"] for entry in outcome.history]
    assert outcome.after == min([outcome.before, *measured])
    assert outcome.after == pytest.approx(float(torch.tensor(trainer.evaluate()).exp()), rel=1e-5)


def test_a_loss_that_is_no_number_is_a_sentence() -> None:
    student = student_of("llama")
    with torch.no_grad():
        student.parameters[0][0, 0] = float("nan")
    student.refresh()
    with pytest.raises(TrainingError, match=r"no longer a number.*lower learning rate"):
        trainer_of(student).run()


def test_short_memory_is_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = trainer_of(student_of("llama"))
    for error in (MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory"), torch.OutOfMemoryError()):

        def fail(*_: Any, error: Exception = error) -> None:
            raise error

        monkeypatch.setattr(trainer, "_accumulate", fail)
        with pytest.raises(TrainingError, match="not enough memory"):
            trainer.run()


def test_the_learning_rate_rises_and_falls() -> None:
    rates = [rate(step, 20, 1.0, 0.2) for step in range(20)]
    assert rates[:4] == [0.25, 0.5, 0.75, 1.0] and rates[4] == 1.0
    assert all(one > other for one, other in zip(rates[4:], rates[5:], strict=False)) and 0 < rates[-1] < 0.02
    assert rate(0, 20, 1.0, 0.0) == 1.0


def test_every_pass_is_a_shuffle_of_all_windows() -> None:
    order = order_of(7, 0, 21, seed=3)
    for start in (0, 7, 14):
        assert sorted(order[start : start + 7]) == list(range(7))
    assert order[:7] != order[7:14] and order_of(7, 5, 9, seed=3) == order[5:14] and order_of(7, 0, 7, 4) != order[:7]


@pytest.mark.parametrize(
    ("edits", "expected"),
    [
        ([{"op": "remove_blocks", "blocks": "2"}], [1, 2]),
        ([{"op": "remove_blocks", "blocks": "0"}], [0]),
        ([{"op": "remove_blocks", "blocks": "3"}], [2]),
        ([{"op": "prune_neurons", "removed": {"1": "0"}}], [1]),
        ([{"op": "remove_attention", "blocks": "3"}, {"op": "remove_blocks", "blocks": "0"}], [0, 2]),
        ([{"op": "arrange_blocks", "order": [0, 1, 1, 2, 3]}], [1, 2]),
        ([], []),
    ],
)
def test_around_the_cuts(edits: list[dict[str, Any]], expected: list[int]) -> None:
    assert around_cuts(structure("llama", *edits)) == expected


def test_nothing_cut_has_no_neighbours() -> None:
    with pytest.raises(RecipeError, match="train all blocks"):
        Student(evaluator_of("llama"), structure("llama"), edit_of(where="around"))


@pytest.mark.parametrize("importance", [[1.0, 1.0, 1.0], [0.1, 0.5, 3.0], [0.0, 0.0, 1.0], [0.0, 0.0, 0.0]])
def test_ranks_keep_their_mean_and_the_order_of_importance(importance: list[float]) -> None:
    ranks = ranks_by_importance(importance, 8)
    assert sum(ranks) == 24 and min(ranks) >= 1
    assert all(one <= other for one, other in zip(ranks, ranks[1:], strict=False)) or len(set(importance)) == 1


def test_ranks_by_importance_load_into_peft(tmp_path: Path) -> None:
    student = shaken(Student(evaluator_of("llama"), structure("llama", *CUT), edit_of(), [2, 15, 7]))
    model = peft_model(student, tmp_path).eval()
    torch.testing.assert_close(token_nll(model, WINDOWS.ids).float(), student.losses(WINDOWS.ids), atol=2e-5, rtol=1e-4)


@cache
def opened() -> OpenModel:
    return open_model("llama")


def healed(folder: Path, monkeypatch: pytest.MonkeyPatch, **settings: Any) -> Healed:
    monkeypatch.setenv("MODEL_SURGERY_CACHE", str(folder / "cache"))
    healer = Healer(opened(), recipe(*CUT, **settings), healing_text())
    return healer.run()


@pytest.mark.parametrize("train", ["lora", "dora", "weights"])
def test_a_healed_recipe_is_found_measured_and_refused_without_its_result(
    train: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = healed(tmp_path, monkeypatch, train=train, steps=8, learning_rate=1e-3)
    out = tmp_path / "out"
    results.save(found.recipe, found.adapter, found.student, found.report(), out)
    assert json.loads((out / "report.json").read_text())["steps"] == 8
    saved = Recipe.load(out / "recipe.json")
    assert saved == found.recipe and healing_key(saved) == healing_key(
        recipe(*CUT, train=train, steps=8, learning_rate=1e-3)
    )
    fresh = open_model("llama")
    resolved = fresh.resolve(saved)
    assert resolved.pending
    with pytest.raises(RecipeError, match="run `heal`"):
        fresh.complete(resolved)
    complete = fresh.complete(resolved, results=[out]).structure
    assert not complete.pending and complete.key != fresh.resolve(recipe(*CUT)).key
    expected = found.student.losses(WINDOWS.ids)
    torch.testing.assert_close(fresh.evaluator.token_losses(complete, WINDOWS.ids), expected, atol=2e-5, rtol=1e-4)
    assert fresh.known_complete(resolved) is not None
    results.remember(found.recipe, found.adapter, found.student, found.report())
    assert open_model("llama").complete(resolved).structure == complete
    other = saved.with_edits(
        *(edit if edit.op != "heal" else edit.model_copy(update={"seed": 9}) for edit in saved.edits)
    )
    with pytest.raises(RecipeError, match="run `heal`"):
        fresh.complete(fresh.resolve(other), results=[out])
    with pytest.raises(InputError, match="there already"):
        results.save(found.recipe, found.adapter, found.student, found.report(), out)


def test_healing_helps_and_another_text_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = healed(tmp_path, monkeypatch, steps=30, learning_rate=3e-3, rank_by="coarse_importance")
    assert found.outcome.after < found.outcome.before
    assert found.recipe.edits[-1].result.after == found.outcome.after  # type: ignore[union-attr]
    assert found.document()["trainable_parameters"] == found.student.trainable
    wrong = HealingText(random_windows(count=9), healing_text().learnt, {})
    with pytest.raises(RecipeError, match="give that text"):
        Healer(opened(), recipe(*CUT), wrong)


@pytest.mark.parametrize(
    ("edits", "message"),
    [
        ([heal_edit(), heal_edit()], "two such edits"),
        ([heal_edit(), {"op": "remove_blocks", "blocks": "1"}], "order structure, compensation, heal"),
        ([heal_edit(blocks="9")], "out of range"),
        ([heal_edit(method="distill")], "goes with"),
        ([heal_edit(held_out=10)], "held out"),
        ([heal_edit(train="weights", dropout=0.1)], "low-rank"),
        ([heal_edit(rank=0)], "rank"),
        ([heal_edit(distillation={"divergence": "contrastive", "top_k": 4}, method="distill")], "top_k"),
    ],
)
def test_heal_edits_that_make_no_sense(edits: list[dict[str, Any]], message: str) -> None:
    document = {"schema": "model-surgery/recipe/1", "model": {"id": "tiny"}, "edits": edits}
    with pytest.raises(RecipeError, match=message):
        resolve(runner_of("llama").architecture, Recipe.read(document))


class Eighths:
    """A codec that rounds to eighths."""

    key = "eighths"

    def apply(self, weight: torch.Tensor) -> torch.Tensor:
        return (weight * 8).round() / 8


def test_training_over_a_quantised_base() -> None:
    """QLoRA: the frozen weights are what the stored ones read back as, in every linear of every block."""
    from dataclasses import replace

    plain = structure("llama", *CUT)
    paths = ("mlp.down_proj", "self_attn.q_proj")
    codecs = tuple((path, Eighths()) for path in paths)
    base = replace(plain, blocks=tuple(replace(spec, codecs=codecs) for spec in plain.blocks))
    student = shaken(Student(evaluator_of("llama"), base, edit_of(blocks="1", linears=["down", "up"])))
    for place, linear in student.linears.items():
        original = runner_of("llama").blocks[1].get_submodule(place.path).weight
        kept = original[:, 16:] if "down" in place.path else original[16:]
        assert torch.equal(linear.frozen, Eighths().apply(kept) if "down" in place.path else kept)
    merged = adapters.merge(student.runner, base, adapters.adapter_of(student))
    assert all(not spec.codecs for spec in merged.blocks)
    live = evaluator_of("llama").token_losses(merged, WINDOWS.ids)
    torch.testing.assert_close(student.losses(WINDOWS.ids), live, atol=2e-5, rtol=1e-4)


def test_a_recipe_over_a_quantised_base_gives_what_was_trained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Through the recipe: the base is quantised for the training, merged, and quantised again behind it."""
    monkeypatch.setenv("MODEL_SURGERY_CACHE", str(tmp_path / "cache"))
    base = {"format": "compressed-tensors", "type": "int4", "group_size": 16}
    healer = Healer(opened(), recipe(*CUT, base=base, steps=8, learning_rate=1e-3), healing_text())
    assert all(spec.codecs for spec in healer.structure.blocks) and not healer.structure.outer
    found = healer.run()
    results.remember(found.recipe, found.adapter, found.student, found.report())
    fresh = open_model("llama")
    complete = fresh.complete(fresh.resolve(found.recipe)).structure
    expected = found.student.losses(WINDOWS.ids)
    torch.testing.assert_close(fresh.evaluator.token_losses(complete, WINDOWS.ids), expected, atol=2e-5, rtol=1e-4)
    unquantised = fresh.complete(fresh.resolve(recipe(*CUT).with_edits(*CUT))).structure
    assert (expected - fresh.evaluator.token_losses(unquantised, WINDOWS.ids)).abs().max() > 1e-2
    both = found.recipe.with_edits(*found.recipe.edits, {"op": "quantize", **base})
    again = fresh.complete(fresh.resolve(both)).structure
    assert all(spec.codecs and spec.refit for spec in again.blocks) and again.key != complete.key
    assert fresh.known_complete(fresh.resolve(both)) is not None
