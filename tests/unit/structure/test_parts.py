"""Single properties of structures and choices, each against a value that was worked out by hand."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest
import torch

from surgery.errors import RecipeError
from surgery.recipe.base import ChosenBy
from surgery.recipe.edits import Compensate, PruneKvGroups, PruneNeurons
from surgery.recipe.recipe import Recipe
from surgery.recipe.texts import TextChoice, text_reference
from surgery.structure.choices import Choices
from surgery.structure.structure import BlockSpec, Refit, dense, output_of
from tests.tiny_workbench import open_model

ORIGIN = ChosenBy(method="maw", budget={"percent": 10})


@dataclass(frozen=True)
class NamedCodec:
    """As much of a codec as an identity needs."""

    key: str


@pytest.mark.parametrize(("family", "rises"), [("llama", True), ("gpt2", False)])
@pytest.mark.parametrize("part", ["attention", "mlp"])
def test_a_bias_counts_where_the_output_projection_has_none(family: str, rises: bool, part: str) -> None:
    block = open_model(family).architecture.blocks[0]
    whole = dense(open_model(family).architecture).blocks[0]
    assert output_of(block, part).bias is not rises  # type: ignore[arg-type]
    more = replace(whole, biases=(part,)).parameters(block) - whole.parameters(block)  # type: ignore[arg-type]
    assert more == (getattr(block, part).hidden_size if rises else 0)


def test_a_block_is_whole_only_with_all_that_its_source_has() -> None:
    model = open_model()
    block, spec = model.architecture.blocks[0], dense(model.architecture).blocks[0]
    without = replace(block, attention=None)
    assert spec.is_whole(block) and not spec.is_whole(without)
    bare = replace(spec, query_heads=(), kv_heads=())
    assert bare.is_whole(without) and not bare.is_whole(block)
    for change in ({"neurons": spec.neurons[1:]}, {"biases": ("mlp",)}, {"refit": Refit("k", {}, {})}):
        assert not replace(spec, **change).is_whole(block)  # type: ignore[arg-type]


def test_stored_embeddings_are_part_of_what_stands_around_the_blocks() -> None:
    plain = dense(open_model().architecture)
    stored = replace(plain, outer=(("model.embed_tokens", NamedCodec("a")),))  # type: ignore[arg-type]
    other = replace(plain, outer=(("model.embed_tokens", NamedCodec("b")),))  # type: ignore[arg-type]
    assert plain.base_key == plain.hidden_key == ""
    assert len({plain.base_key, stored.base_key, other.base_key}) == 3


def test_refits_are_compared_by_their_key_alone() -> None:
    one, same = Refit("k", {"down": torch.zeros(2)}, {}), Refit("k", {"down": torch.ones(3)}, {"down": torch.ones(1)})
    assert one == same and hash(one) == hash(same) and one != Refit("l", one.weights, one.biases)
    assert repr(one) == "Refit(key='k')"


def test_choices_remember_where_an_edit_came_from_and_only_then() -> None:
    edits = (PruneNeurons(removed={1: (3,)}, chosen_by=ORIGIN), PruneKvGroups(removed={2: (0,)}))
    found = Choices.of(Recipe.read({"schema": "model-surgery/recipe/1", "model": {"id": "tiny"}, "edits": edits}))
    assert found.origins == {"prune_neurons": ORIGIN}
    assert {edit.op: edit.chosen_by for edit in found.edits()} == {"prune_neurons": ORIGIN, "prune_kv_groups": None}


def test_heads_of_one_block_change_and_those_of_others_stay() -> None:
    before = Choices.of_edits((PruneKvGroups(removed={0: (1,), 2: (0,)}),))
    more = before.without_heads(1, (1, 0, 1), (5,))
    assert more.kv_groups == {0: (1,), 1: (0, 1), 2: (0,)} and more.heads == {1: (5,)}
    assert before.without_heads(2, (), ()).kv_groups == {0: (1,)}
    assert before.without_heads(2, (), ()).heads == {}


def test_one_compensation_of_a_kind_and_only_for_its_blocks() -> None:
    model = open_model()
    text = text_reference(model.windows(TextChoice(window=16, windows=2, purpose="calibration")))
    cut = PruneNeurons(removed={0: (1,), 2: (1,)})
    bias = Compensate(how="bias", text=text, blocks=(2,))
    structure = model.resolve(model.recipe(cut, bias))
    assert [spec.biases for spec in structure.blocks] == [(), (), ("mlp",), ()]
    with pytest.raises(RecipeError, match="two compensations by bias"):
        model.resolve(model.recipe(cut, bias, bias))


def test_a_specification_is_hashed_by_what_it_keeps() -> None:
    spec = dense(open_model().architecture).blocks[0]
    assert isinstance(spec, BlockSpec) and hash(spec) == hash(replace(spec)) != hash(replace(spec, neurons=(0,)))
