"""Distillation losses against their definitions in float64, their invariants, whole distillations of tiny models."""

from __future__ import annotations

import math
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

from analysis.model.describe import describe
from analysis.model.runner import Runner
from surgery.checkpoints.build import build_model
from surgery.errors import InputError
from surgery.evaluation.evaluator import Evaluator
from surgery.healing.healer import Healer
from surgery.recipe.healing import Distillation, Heal
from surgery.recipe.recipe import Recipe
from surgery.structure.resolve import resolve
from surgery.structure.structure import Structure
from surgery.training import losses
from surgery.training.data import HealingText
from surgery.training.head import CrossEntropy, Head, loss_and_gradient
from surgery.training.objectives import Contrastive, Distilled
from surgery.training.student import Student
from surgery.training.teacher import Teacher, TopK, continuations
from surgery.training.trainer import Trainer
from tests.reference import random_windows
from tests.tiny_models import FAMILIES, VOCAB, build
from tests.tiny_workbench import open_model

NAMES = tuple(losses.DIVERGENCES)
WINDOWS = random_windows(count=8, seed=5)
TEXT = {"source": "random", "fingerprint": "none", "window": 24, "windows": 8}


def logits(seed: int, tokens: int = 5, words: int = 11) -> torch.Tensor:
    return 3 * torch.randn(tokens, words, generator=torch.Generator().manual_seed(seed)).double()


def softmax(row: list[float]) -> list[float]:
    top = max(row)
    powers = [math.exp(value - top) for value in row]
    return [power / sum(powers) for power in powers]


def naive(name: str, student: torch.Tensor, teacher: torch.Tensor, temperature: float, skew: float) -> list[float]:
    """The definitions, one word after the other."""
    found = []
    for q_row, p_row in zip(student.tolist(), teacher.tolist(), strict=True):
        q, p = (softmax([value / temperature for value in row]) for row in (q_row, p_row))
        total = 0.0
        for a, b in zip(p, q, strict=True):
            terms = {
                "kl": a * math.log(a / b),
                "reverse_kl": b * math.log(b / a),
                "skew_kl": a * math.log(a / (skew * a + (1 - skew) * b)),
                "skew_reverse_kl": b * math.log(b / ((1 - skew) * a + skew * b)),
            }
            total += terms[name]
        found.append(temperature**2 * total)
    return found


@pytest.mark.parametrize("temperature", [1.0, 2.5])
@pytest.mark.parametrize("name", NAMES)
def test_each_divergence_is_its_definition(name: str, temperature: float) -> None:
    student, teacher = logits(0), logits(1)
    found = losses.divergence(name, student, teacher, temperature, 0.1)
    assert found.tolist() == pytest.approx(naive(name, student, teacher, temperature, 0.1), rel=1e-10)


@pytest.mark.parametrize("name", NAMES)
def test_zero_at_equality_and_positive_elsewhere(name: str) -> None:
    teacher = logits(1)
    shifted = teacher + torch.arange(5).double()[:, None]  # the same distributions
    assert losses.divergence(name, shifted, teacher, 2.0).abs().max() < 1e-12
    assert losses.divergence(name, logits(0), teacher, 2.0).min() > 0


def test_the_skewed_divergence_without_skew_is_kl() -> None:
    student, teacher = logits(0), logits(1)
    torch.testing.assert_close(
        losses.divergence("skew_kl", student, teacher, 1.0, 0.0), losses.divergence("kl", student, teacher)
    )
    torch.testing.assert_close(
        losses.divergence("skew_reverse_kl", student, teacher, 1.0, 0.0),
        losses.divergence("reverse_kl", student, teacher),
    )


def test_the_mixture_of_the_students_text_is_a_constant_for_the_gradient() -> None:
    student, teacher = logits(0).requires_grad_(), logits(1)
    (found,) = torch.autograd.grad(losses.divergence("skew_reverse_kl", student, teacher, 1.0, 0.1).sum(), student)
    q, p = student.detach().softmax(-1), teacher.softmax(-1)
    slope = (q / (0.9 * p + 0.1 * q)).log() + 1  # d/dq of q log(q / c), c constant
    torch.testing.assert_close(found, q * (slope - (q * slope).sum(-1, keepdim=True)))


def contrastive(
    student_on_teacher: torch.Tensor,
    teacher_on_teacher: torch.Tensor,
    student_on_student: torch.Tensor,
    teacher_on_student: torch.Tensor,
    skew: float = 0.1,
    balance: float = 1.0,
    temperature: float = 1.0,
) -> torch.Tensor:
    """DistiLLM-2's pair: (2 - b) SKL on the teacher's text + b SRKL on the student's, each a mean over tokens.

    Source: DistiLLM-2 (2503.07067). All four are logits, (n, vocabulary) of a text's tokens.
    """
    towards = losses.divergence("skew_kl", student_on_teacher, teacher_on_teacher, temperature, skew).mean()
    away = losses.divergence("skew_reverse_kl", student_on_student, teacher_on_student, temperature, skew).mean()
    return (2 - balance) * towards + balance * away


@pytest.mark.parametrize("name", [*NAMES, "top", "contrastive", "features"])
def test_each_loss_has_a_gradient_and_falls_when_optimised_alone(name: str) -> None:
    student, teacher = logits(0).requires_grad_(), logits(1)

    def loss() -> torch.Tensor:
        if name == "features":
            return losses.feature_distance(student, teacher)
        if name == "contrastive":
            return contrastive(student, teacher, student.flip(0), teacher.flip(0))
        if name == "top":
            top, words = losses.top_log_probabilities(teacher, 3, 1.0)
            return losses.divergence_on_top("kl", student, top, words).mean()
        return losses.divergence(name, student, teacher).mean()

    start = float(loss().detach())
    (gradient,) = torch.autograd.grad(loss(), student)
    assert gradient.abs().max() > 1e-4
    optimiser = torch.optim.Adam([student], lr=0.1)
    for _ in range(200):
        optimiser.zero_grad()
        loss().backward()
        optimiser.step()
    assert float(loss().detach()) < 0.05 * start


def test_contrastive_is_the_published_sum() -> None:
    a, b, c, d = (logits(seed) for seed in range(4))
    towards = sum(naive("skew_kl", a, b, 1.0, 0.1)) / 5
    away = sum(naive("skew_reverse_kl", c, d, 1.0, 0.1)) / 5
    for balance in (0.0, 0.7, 1.0):
        found = contrastive(a, b, c, d, 0.1, balance)
        assert float(found) == pytest.approx((2 - balance) * towards + balance * away, rel=1e-10)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_the_likeliest_words_and_the_rest_as_one(name: str, temperature: float) -> None:
    student, teacher = logits(0), logits(1)
    top, words = losses.top_log_probabilities(teacher, 4, temperature)
    found = losses.divergence_on_top(name, student, top, words, temperature, 0.1)

    def joined(values: torch.Tensor) -> torch.Tensor:
        mass = (values / temperature).softmax(-1)
        kept = mass.gather(-1, words)
        return temperature * torch.cat([kept, 1 - kept.sum(-1, keepdim=True)], -1).log()

    expected = naive(name, joined(student), joined(teacher), temperature, 0.1)
    assert found.tolist() == pytest.approx(expected, rel=1e-6)
    whole = losses.divergence(name, student, teacher, temperature, 0.1)
    assert (found <= whole + 1e-9).all(), "joining outcomes never adds to a divergence"
    assert losses.divergence_on_top(name, teacher, top, words, temperature).abs().max() < 1e-6
    every, all_words = losses.top_log_probabilities(teacher, 10, temperature)
    torch.testing.assert_close(
        losses.divergence_on_top(name, student, every, all_words, temperature, 0.1), whole, atol=1e-6, rtol=1e-6
    )


def test_a_teacher_that_is_sure_leaves_no_rest() -> None:
    teacher = torch.tensor([[60.0, 0.0, 0.0, 0.0]])
    top, words = losses.top_log_probabilities(teacher, 1, 1.0)
    student = torch.zeros(1, 4, requires_grad=True)
    loss = losses.divergence_on_top("kl", student, top, words)
    loss.sum().backward()
    assert float(loss.detach()) == pytest.approx(math.log(4), rel=1e-4) and student.grad.isfinite().all()


def test_feature_distance() -> None:
    states = torch.randn(2, 3, 8)
    assert float(losses.feature_distance(states, 5 * states)) == pytest.approx(0, abs=1e-6)
    assert float(losses.feature_distance(states, -states)) == pytest.approx(2, abs=1e-6)


@cache
def evaluator_of(family: str) -> Evaluator:
    model = build(family).requires_grad_(False)
    return Evaluator(Runner(model, describe(model)))


def structure(family: str) -> Structure:
    document = {
        "schema": "model-surgery/recipe/1",
        "model": {"id": "tiny"},
        "edits": [{"op": "remove_blocks", "blocks": "2"}],
    }
    return resolve(evaluator_of(family).runner.architecture, Recipe.read(document))


def edit_of(**distillation: Any) -> Heal:
    return Heal.model_validate(
        {
            "text": TEXT, "steps": 40, "where": "all", "learning_rate": 3e-3, "method": "distill",
            "distillation": distillation, "batch": 2, "micro_batch": 2,
        }
    )  # fmt: skip


def text() -> HealingText:
    return HealingText(WINDOWS, torch.ones_like(WINDOWS.ids, dtype=torch.bool), {})


def trainer_of(family: str, edit: Heal, top: TopK | None = None) -> Trainer:
    training, held_out = text().split(2)
    student = Student(evaluator_of(family), structure(family), edit)
    material = Distilled(training, edit.distillation, Teacher(evaluator_of(family).runner), top)
    return Trainer(student, material, held_out, edit)


@pytest.mark.parametrize("family", ["llama", "llama_tied", "gemma2", "granite", "gpt2"])
@pytest.mark.parametrize(("name", "share"), [("kl", 0.0), *((name, 0.3) for name in NAMES)])
def test_the_gradient_of_a_distillation_is_autograds(family: str, name: str, share: float) -> None:
    """Through chunks, masks and the block loop, against whole logits of both whole models."""
    edit = edit_of(divergence=name, temperature=2.0, weight=0.7, cross_entropy=share)
    trainer = trainer_of(family, edit)
    student = trainer.student
    found, _ = trainer._gradients([[0, 1]], None)
    ids = WINDOWS.ids[:2]
    own = [parameter.grad.clone() for parameter in student.parameters]  # type: ignore[union-attr]
    trainer.optimiser.zero_grad()
    logits_ = student.runner.own_logits(student.normalised(ids).flatten(0, 1)).view(2, 24, VOCAB)[:, :-1].flatten(0, 1)
    teacher = evaluator_of(family).runner.model(input_ids=ids, use_cache=False).logits[:, :-1].flatten(0, 1)
    targets = ids[:, 1:].flatten()
    loss = 0.7 * losses.divergence(name, logits_, teacher, 2.0).mean()
    loss = loss + share * torch.nn.functional.cross_entropy(logits_, targets)
    loss.backward()
    assert found == pytest.approx(float(loss), rel=1e-4)
    for one, parameter in zip(own, student.parameters, strict=True):
        torch.testing.assert_close(one, parameter.grad, atol=1e-5, rtol=1e-3)


def test_features_follow_the_layer_map() -> None:
    edit = edit_of(features=2.0)
    trainer = trainer_of("llama", edit)
    own, _ = trainer._gradients([[0, 1]], None)
    gradients = [parameter.grad.clone() for parameter in trainer.student.parameters]  # type: ignore[union-attr]
    plain = trainer_of("llama", edit_of())
    without, _ = plain._gradients([[0, 1]], None)
    built = build_model(
        evaluator_of("llama").runner.model, evaluator_of("llama").runner.architecture, structure("llama")
    )
    seen: dict[str, list[torch.Tensor]] = {"student": [], "teacher": []}
    for name, model in (("student", built.model), ("teacher", evaluator_of("llama").runner.model)):
        hooks = [
            layer.register_forward_hook(
                lambda _, args, out, name=name: seen[name].append(out[0] if isinstance(out, tuple) else out)
            )
            for layer in model.model.layers
        ]
        model(input_ids=WINDOWS.ids[:2], use_cache=False)
        for hook in hooks:
            hook.remove()
    pairs = [(0, 0), (1, 1), (2, 3)]  # student block, its source
    expected = sum(losses.feature_distance(seen["student"][s], seen["teacher"][t]) for s, t in pairs) / 3
    assert own - without == pytest.approx(2.0 * float(expected), rel=1e-4)
    plain_gradients = [parameter.grad for parameter in plain.student.parameters]
    assert any((one - other).abs().max() > 1e-5 for one, other in zip(gradients, plain_gradients, strict=True))


class CountedTeacher(Teacher):
    """Counts the windows that it is run on."""

    windows = 0

    def normalised(self, ids: torch.Tensor, *arguments: Any) -> torch.Tensor:
        self.windows += len(ids)
        return super().normalised(ids, *arguments)


def test_the_teachers_words_are_computed_once_and_kept(tmp_path: Path) -> None:
    runner = evaluator_of("llama").runner
    training, _ = text().split(2)
    teacher = CountedTeacher(runner)
    made = TopK(teacher, training.windows, 5, 2.0, "tiny", folder=tmp_path)
    edit = edit_of(top_k=5, temperature=2.0)
    trainer = trainer_of("llama", edit, made)
    loss, _ = trainer._gradients([[0, 1]], None)
    assert teacher.windows == 2
    trainer.run()
    assert teacher.windows == 6, "each training window once, however many passes"
    second = CountedTeacher(runner)
    again = TopK(second, training.windows, 5, 2.0, "tiny", folder=tmp_path)
    fresh = trainer_of("llama", edit, again)
    assert fresh._gradients([[0, 1]], None)[0] == loss and second.windows == 0
    logits = runner.model(input_ids=WINDOWS.ids[:2], use_cache=False).logits[:, :-1].flatten(0, 1)
    student = Student(evaluator_of("llama"), structure("llama"), edit)
    own = student.runner.own_logits(student.normalised(WINDOWS.ids[:2]).flatten(0, 1)).view(2, 24, VOCAB)[:, :-1]
    top, words = losses.top_log_probabilities(logits, 5, 2.0)
    expected = losses.divergence_on_top("kl", own.flatten(0, 1), top, words, 2.0).mean()
    assert loss == pytest.approx(float(expected), rel=1e-4)
    for other in (TopK(Teacher(runner), training.windows, 5, 1.0, "tiny", folder=tmp_path),
                  TopK(Teacher(runner), training.windows, 5, 2.0, "other", folder=tmp_path)):  # fmt: skip
        assert other.folder != made.folder and not other._done.any()
    (made.folder / "words.npy").write_bytes(b"cut short")
    assert not TopK(Teacher(runner), training.windows, 5, 2.0, "tiny", folder=tmp_path)._done.any()


def test_too_many_words_for_the_disk_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("surgery.training.teacher.DISK_BUDGET", 6 * 23 * 5 * 8 + 10**3)
    runner = evaluator_of("llama").runner
    training, _ = text().split(2)
    first = TopK(Teacher(runner), training.windows, 5, 1.0, "tiny", folder=tmp_path)
    second = TopK(Teacher(runner), training.windows, 5, 2.0, "tiny", folder=tmp_path)
    assert not first.folder.exists() and second.folder.exists(), "the older one leaves"
    with pytest.raises(InputError, match="smaller top-k"):
        TopK(Teacher(runner), training.windows, 50, 1.0, "tiny", folder=tmp_path)


def test_contrastive_training_sees_both_continuations() -> None:
    edit = edit_of(divergence="contrastive", balance=0.6, skew=0.2)
    training, held_out = text().split(2)
    student = Student(evaluator_of("llama"), structure("llama"), edit)
    pair = (random_windows(6, seed=8).ids, random_windows(6, seed=9).ids)
    settings = edit.distillation
    assert settings is not None
    material = Contrastive(training, settings, Teacher(evaluator_of("llama").runner), pair, 12)
    trainer = Trainer(student, material, held_out, edit)
    found, _ = trainer._gradients([[1, 4], [5, 0]], None)
    chosen = [1, 4, 5, 0]
    sides = []
    for ids in pair:
        rows = ids[chosen]
        own = student.runner.own_logits(student.normalised(rows).flatten(0, 1)).view(4, 24, VOCAB)
        teacher = evaluator_of("llama").runner.model(input_ids=rows, use_cache=False).logits
        sides += [logit[:, 11:-1].flatten(0, 1) for logit in (own, teacher)]
    expected = contrastive(*sides, skew=0.2, balance=0.6)
    assert found == pytest.approx(float(expected.detach()), rel=1e-4)
    own_gradient = student.parameters[1].grad.clone()  # type: ignore[union-attr]
    trainer.optimiser.zero_grad()
    expected.backward()
    torch.testing.assert_close(own_gradient, student.parameters[1].grad, atol=1e-6, rtol=1e-3)


def test_continuations_are_samples_of_the_model() -> None:
    model = build("llama").requires_grad_(False)
    prompts = WINDOWS.ids[:1, :4].repeat(400, 1)
    found = continuations(model, prompts, 2, seed=1)
    assert found.shape == (400, 6) and torch.equal(found[:, :4], prompts)
    assert torch.equal(found, continuations(model, prompts, 2, seed=1))
    expected = model(input_ids=prompts[:1], use_cache=False).logits[0, -1].softmax(-1)
    seen = torch.bincount(found[:, 4], minlength=VOCAB) / 400
    assert (seen - expected).abs().max() < 5 * 0.5 / 20, "within five standard errors"


@pytest.mark.parametrize("divergence", [*NAMES, "contrastive"])
def test_every_distillation_brings_the_student_nearer_to_the_teacher(divergence: str) -> None:
    opened = open_model("llama")
    document = {
        "schema": "model-surgery/recipe/1",
        "model": {"id": "tiny"},
        "edits": [
            {"op": "remove_blocks", "blocks": "2"},
            edit_of(divergence=divergence).model_dump(mode="json"),
        ],
    }
    found = Healer(opened, Recipe.read(document), text()).run()
    losses_ = [entry["loss"] for entry in found.outcome.history]
    assert sum(losses_[-5:]) < 0.9 * sum(losses_[:5])
    assert found.recipe.edits[-1].result is not None  # type: ignore[union-attr]


@pytest.mark.parametrize("family", [name for name in FAMILIES if name in ("gemma2", "gemma3", "olmo2", "phi")])
def test_a_head_that_is_more_than_a_linear_gives_the_same_gradient(family: str) -> None:
    runner = evaluator_of(family).runner
    inputs = torch.randn(9, 48, generator=torch.Generator().manual_seed(0))
    targets = torch.arange(9)
    loss, gradient = loss_and_gradient(Head(runner), inputs, CrossEntropy(targets))
    leaf = inputs.clone().requires_grad_()
    expected = torch.nn.functional.cross_entropy(runner.own_logits(leaf), targets, reduction="sum")
    expected.backward()
    assert loss == pytest.approx(float(expected.detach()), rel=1e-5)
    torch.testing.assert_close(gradient, leaf.grad, atol=1e-5, rtol=1e-4)


def test_settings_of_a_distillation_are_kept() -> None:
    edit = edit_of(divergence="skew_kl", top_k=3)
    assert Heal.model_validate(edit.model_dump(mode="json")) == edit and isinstance(edit.distillation, Distillation)
