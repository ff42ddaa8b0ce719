"""Choices stand for the same model as the recipe they come from, in one canonical order; parked parts return."""

from __future__ import annotations

import random

import pytest

from surgery.errors import RecipeError
from surgery.recipe.base import ChosenBy
from surgery.recipe.edits import PruneHeads, PruneKvGroups, PruneNeurons, RemoveBlocks, RemoveMlp
from surgery.recipe.recipe import Recipe
from surgery.session.editor import Editor
from surgery.structure.choices import Choices
from surgery.structure.resolve import resolve
from tests.reference import Plan, recipe_of, runner_of
from tests.tiny_workbench import open_model

FAMILY = "smollm"
BLOCKS, QUERY, KV = 4, 9, 3


def _random_plan(seed: int) -> Plan:
    """A valid plan: every part is either there, gone, or pruned."""
    dice = random.Random(seed)
    width = runner_of(FAMILY).architecture.blocks[0].mlp.width  # type: ignore[union-attr]
    plan: Plan = {}

    def add(op: str, block: int, indices: list[int] | None = None) -> None:
        if indices is None:
            plan.setdefault(op, []).append(block)
        else:
            plan.setdefault(op, {})[block] = indices

    for block in range(BLOCKS):
        if block and dice.random() < 0.2:
            add("remove_blocks", block)
            continue
        attention = dice.choice(["whole", "whole", "gone", "groups", "heads", "both"])
        size = QUERY // KV
        if attention == "gone":
            add("remove_attention", block)
        if attention in ("groups", "both"):
            add("prune_kv_groups", block, [dice.randrange(KV - 1)])
        if attention in ("heads", "both"):
            gone = plan.get("prune_kv_groups", {}).get(block, []) if attention == "both" else []
            add("prune_heads", block, [g * size + dice.randrange(size) for g in range(KV) if g not in gone])
        mlp = dice.choice(["whole", "gone", "neurons"])
        if mlp == "gone":
            add("remove_mlp", block)
        if mlp == "neurons":
            add("prune_neurons", block, dice.sample(range(width), dice.randrange(1, width)))
    items = list(plan.items())
    dice.shuffle(items)
    return dict(items)


@pytest.mark.parametrize("seed", range(60))
def test_choices_resolve_to_what_the_recipe_resolves_to(seed: int) -> None:
    architecture, recipe = runner_of(FAMILY).architecture, recipe_of(_random_plan(seed))
    again = recipe.with_edits(*Choices.of(recipe).edits())
    assert resolve(architecture, again) == resolve(architecture, recipe)
    assert Choices.of(again) == Choices.of(recipe), "the canonical form is its own canonical form"
    assert again.with_edits(*Choices.of(again).edits()).key == again.key


def test_edits_of_one_kind_are_joined() -> None:
    recipe = Recipe.read(
        {
            "schema": "model-surgery/recipe/1",
            "model": {"id": "tiny"},
            "edits": [
                {"op": "prune_neurons", "removed": {"1": "5-6"}},
                {"op": "remove_blocks", "blocks": "3"},
                {"op": "prune_neurons", "removed": {"1": "2", "0": "9"}},
                {"op": "remove_blocks", "blocks": "2"},
            ],
        }
    )
    edits = Choices.of(recipe).edits()
    assert [edit.op for edit in edits] == ["remove_blocks", "prune_neurons"]
    assert edits[0] == RemoveBlocks(blocks=(2, 3))
    assert edits[1] == PruneNeurons(removed={0: (9,), 1: (2, 5, 6)})


def test_an_origin_is_kept_until_a_hand_changes_the_set() -> None:
    origin = ChosenBy(method="block_influence")
    choices = Choices(blocks=frozenset({2}), origins={"remove_blocks": origin})
    assert choices.switched([2], [1], []).edits()[0].chosen_by == origin
    assert choices.switched([2, 3], [1], []).edits()[0].chosen_by is None


def test_narrowing_replaces_the_neurons_and_their_origin() -> None:
    edit = PruneNeurons(removed={0: (1, 2)}, chosen_by=ChosenBy(method="maw"))
    choices = Choices().narrowed(edit)
    assert choices.edits() == (edit,)
    assert choices.narrowed(None) == Choices()


def test_what_is_pruned_in_a_part_that_is_off_is_parked_and_returns() -> None:
    choices = Choices(neurons={0: (1,), 1: (2,), 2: (3,)}, kv_groups={1: (0,)}, heads={2: (0, 3, 6)})
    off = choices.switched([1], [2], [0])
    assert {type(edit) for edit in off.edits()} & {PruneKvGroups, PruneHeads} == set()
    assert next(edit for edit in off.edits() if isinstance(edit, PruneNeurons)).removed == {2: (3,)}
    assert off.switched([], [], []) == choices


def test_an_editor_gives_a_part_back_as_narrow_as_it_was() -> None:
    editor = Editor(open_model())
    edit = PruneNeurons(removed={block: (0, 1) for block in range(BLOCKS)})
    editor.change(lambda choices: choices.narrowed(edit))
    narrow = editor.structure
    editor.change(lambda choices: choices.switched([1], [], [2]))
    assert len(editor.structure.blocks) == 3
    editor.change(lambda choices: choices.switched([], [], []))
    assert editor.structure == narrow


def test_a_part_comes_back_at_the_width_chosen_while_it_was_off() -> None:
    editor = Editor(open_model())
    editor.change(lambda c: c.narrowed(PruneNeurons(removed={block: (0, 1) for block in range(BLOCKS)})))
    editor.change(lambda c: c.switched([1], [], []))
    editor.change(lambda c: c.narrowed(PruneNeurons(removed={block: (5,) for block in range(BLOCKS)})))
    editor.change(lambda c: c.switched([], [], []))
    assert {len(spec.neurons) for spec in editor.structure.blocks} == {len(editor.structure.blocks[0].neurons)}
    editor.change(lambda c: c.switched([1], [], []))
    editor.change(lambda c: c.narrowed(None))
    editor.change(lambda c: c.switched([], [], []))
    assert editor.history.current.edits == ()


def test_parked_neurons_survive_undo_and_redo() -> None:
    editor = Editor(open_model())
    editor.change(lambda c: c.narrowed(PruneNeurons(removed={1: (0, 1), 2: (4,)})))
    narrow = editor.structure
    editor.change(lambda c: c.switched([1], [], []))
    editor.undo()
    editor.redo()
    editor.change(lambda c: c.switched([], [], []))
    assert editor.structure == narrow


def test_a_change_that_does_not_fit_leaves_the_editor_as_it_was() -> None:
    editor = Editor(open_model())
    editor.change(lambda c: c.switched([1], [], []))
    before = editor.history, editor.structure
    with pytest.raises(RecipeError):
        editor.change(lambda c: c.switched([0, 1, 2, 3], [], []))
    with pytest.raises(RecipeError):
        editor.take(Recipe(model=editor.model.reference, edits=(RemoveMlp(blocks=(99,)),)))
    assert (editor.history, editor.structure) == before


def test_a_dragged_slider_is_one_step_and_other_changes_are_their_own() -> None:
    editor = Editor(open_model())
    editor.change(lambda c: c.switched([3], [], []))
    for last in (3, 6, 9):
        edit = PruneNeurons(removed={0: tuple(range(last))})
        editor.change(lambda c, edit=edit: c.narrowed(edit), "narrow")
    assert len(editor.history.recipes) == 3
    editor.undo()
    assert [edit.op for edit in editor.history.current.edits] == ["remove_blocks"]
    editor.change(lambda c: c.narrowed(PruneNeurons(removed={0: (1,)})), "narrow")
    editor.change(lambda c: c.switched([], [], []))
    editor.change(lambda c: c.narrowed(PruneNeurons(removed={0: (2,)})), "narrow")
    assert len(editor.history.recipes) == 5
