"""One shared copy of each model, whoever asks; the least recently used leave when memory is short."""

from threading import Barrier, Thread
from types import SimpleNamespace

import pytest

from analysis.model.describe import describe
from surgery.errors import DoesNotFit, InputError, RecipeError
from surgery.models.loading import Loaded, fingerprint
from surgery.recipe.recipe import Recipe
from surgery.workbench import workbench
from surgery.workbench.workbench import Workbench
from tests.tiny_models import build


@pytest.fixture
def loads(monkeypatch):
    """Loading is replaced by tiny models; the list of what was loaded."""
    seen = []

    def load(source, revision=None, *rest):
        seen.append(source)
        model = build("llama")
        return Loaded(source, revision, model, None, describe(model), fingerprint(model))

    monkeypatch.setattr(workbench, "load", load)
    return seen


def test_one_copy_for_all_who_ask_at_the_same_time(loads):
    bench, found, barrier = Workbench(), [], Barrier(8)

    def ask():
        barrier.wait()
        found.append(bench.open("a"))

    threads = [Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert loads == ["a"] and len({id(model) for model in found}) == 1


def test_revisions_are_different_models(loads):
    bench = Workbench()
    assert bench.open("a") is not bench.open("a", "v2")


def test_the_least_recently_used_model_leaves(loads):
    bench = Workbench(most_models=2)
    bench.open("a"), bench.open("b"), bench.open("a"), bench.open("c")
    assert bench.opened("a") and bench.opened("c") and bench.opened("b") is None


def test_models_leave_when_memory_is_short(loads, monkeypatch):
    bench = Workbench(most_models=9)
    bench.open("a"), bench.open("b")
    monkeypatch.setattr(workbench.psutil, "virtual_memory", lambda: SimpleNamespace(available=1, total=100))
    bench.open("c")
    assert bench.opened("a") is None and bench.opened("b") is None and bench.opened("c")


def test_a_model_that_does_not_fit_beside_others_is_tried_again_without_them(loads, monkeypatch):
    bench = Workbench()
    bench.open("a"), bench.open("b")
    easy = workbench.load

    def load(source, *rest):
        if bench.opened("a") or bench.opened("b"):
            raise DoesNotFit("needs 2 GB, 1 GB free")
        return easy(source, *rest)

    monkeypatch.setattr(workbench, "load", load)
    assert bench.open("big").loaded.id == "big"

    def never(source, *rest):
        raise DoesNotFit("needs 2 GB, 1 GB free")

    monkeypatch.setattr(workbench, "load", never)
    with pytest.raises(DoesNotFit):
        bench.open("huge")


def test_a_blank_name_is_refused():
    with pytest.raises(InputError):
        Workbench().open("  ")


def test_a_recipe_for_other_weights_is_refused(loads):
    model = Workbench().open("a")
    edits = [{"op": "remove_blocks", "blocks": "0"}]
    document = {"schema": "model-surgery/recipe/1", "model": {"id": "a", "fingerprint": "0" * 16}, "edits": edits}
    with pytest.raises(RecipeError, match="other weights"):
        model.resolve(Recipe.read(document))
