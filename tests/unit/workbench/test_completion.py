"""The stages in which a structure is completed: what each needs, what is remembered, and what progress is told."""

from __future__ import annotations

from threading import Event
from typing import Any

import pytest

from analysis.text import Text, load_text
from surgery.common.progress import silent
from surgery.compensation.compensator import Compensated, Compensator
from surgery.errors import Cancelled
from surgery.quantization import quantizer
from surgery.recipe.recipe import Recipe
from surgery.structure.structure import Structure
from surgery.workbench import completion
from surgery.workbench.completion import Completer
from surgery.workbench.open_model import OpenModel
from tests.tiny_workbench import open_model

TEXT = {
    "source": "embedded",
    "fingerprint": Text("embedded", load_text("embedded", "calibration").content).fingerprint,
    "window": 16,
    "windows": 4,
}
NARROW = {"op": "prune_neurons", "removed": {"1": "0-7"}}
REFIT = {"op": "compensate", "how": "least_squares", "text": TEXT}
INT4 = {"op": "quantize", "format": "compressed-tensors", "type": "int4", "group_size": 8}
REPAIR = {"op": "eora", "rank": 2, "text": TEXT}
STAGES = {"compensate": (Compensator, "compute"), "quantise": (quantizer, "quantise"), "repair": (completion, "repair")}


def structure(model: OpenModel, *edits: dict[str, Any]) -> Structure:
    recipe = {"schema": "model-surgery/recipe/1", "model": {"id": "tiny"}, "edits": list(edits)}
    return model.resolve(Recipe.read(recipe))


@pytest.fixture
def work(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the stages that compute something, in order."""
    done: list[str] = []

    def watch(name: str, owner: Any, function: str) -> None:
        original = getattr(owner, function)

        def compute(*arguments: Any) -> Any:
            done.append(name)
            return original(*arguments)

        monkeypatch.setattr(owner, function, compute)

    for name, (owner, function) in STAGES.items():
        watch(name, owner, function)
    return done


def test_each_stage_is_computed_once_whatever_follows_it(work: list[str]) -> None:
    model = open_model()
    steps = (NARROW, REFIT, INT4, REPAIR)
    for count, expected in ((2, ["compensate"]), (3, ["quantise"]), (4, ["repair"])):
        asked = structure(model, *steps[:count])
        assert model.known_complete(asked) is None
        done = model.complete(asked)
        assert work == expected and not done.structure.pending
        work.clear()
        assert model.known_complete(asked) == done and model.complete(asked) == done and not work
    fresh = open_model()
    assert fresh.complete(structure(fresh, *steps)) == done, "in one go as step by step"
    assert work == list(STAGES)


def test_a_result_is_known_without_the_stages_before_it(work: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(completion, "COMPENSATED_CACHE", 0)  # nothing fits
    model = open_model()
    asked = structure(model, NARROW, REFIT, INT4)
    done = model.complete(asked)
    assert model.known_complete(structure(model, NARROW, REFIT)) is None
    assert model.known_complete(asked) == done and model.complete(asked) == done
    assert work == ["compensate", "quantise"]


def test_nothing_is_remembered_beyond_the_budget(work: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(completion, "CALIBRATED_CACHE", 0)
    model = open_model()
    asked = structure(model, NARROW, INT4)
    first: Compensated = model.complete(asked)
    assert model.known_complete(asked) is None
    assert model.complete(asked).structure.key == first.structure.key and work == ["quantise", "quantise"]


def test_progress_is_shared_between_quantising_and_repairing() -> None:
    model = open_model()
    told: list[tuple[float, str]] = []
    model.complete(structure(model, NARROW, INT4, REPAIR), report=lambda share, words: told.append((share, words)))
    shares = [share for share, _ in told]
    assert shares == sorted(shares) and shares[0] == 0.0 and shares[-1] == 1.0
    assert (0.6, "Quantised") in told and (1.0, "Repaired") in told
    alone: list[float] = []
    model.complete(structure(model, INT4), report=lambda share, words: alone.append(share))
    assert alone[-1] == 1.0


def test_a_cancelled_stage_is_not_remembered_and_the_ones_before_it_are(work: list[str]) -> None:
    model = open_model()
    stop, asked = Event(), structure(model, NARROW, REFIT, INT4)

    def report(share: float, words: str) -> None:
        if words.startswith("Quantising"):
            stop.set()

    with pytest.raises(Cancelled):
        model.complete(asked, (), report, stop)
    assert work == ["compensate", "quantise"] and model.known_complete(asked) is None
    assert model.known_complete(structure(model, NARROW, REFIT)) is not None
    model.complete(asked)
    assert work == ["compensate", "quantise", "quantise"]


def test_what_a_quantised_healing_trains_is_quantised_once(work: list[str]) -> None:
    model = open_model()
    heal = {"op": "heal", "text": TEXT, "steps": 1, "base": INT4}
    asked = structure(model, NARROW, REFIT, heal)
    made = [model.trained_over(asked) for _ in range(2)]
    assert made[0] == made[1] and made[0].quantize is None and made[0].healing is None
    assert all(spec.codecs for spec in made[0].blocks if not spec.empty)
    assert work == ["compensate", "quantise"]
    completer = Completer(model.loaded, model.evaluator)
    assert completer.known(asked) is None
    assert completer.trained_over(asked, lambda text: model.calibration(text), silent, None) == made[0]
