"""The history of recipes: undo, redo, bounded, a value."""

from __future__ import annotations

from surgery.recipe.base import ChosenBy, ModelReference
from surgery.recipe.edits import RemoveBlocks
from surgery.recipe.recipe import Recipe
from surgery.session.history import LONGEST, History

MODEL = ModelReference(id="default")


def _recipe(*blocks: int) -> Recipe:
    return Recipe(model=MODEL, edits=(RemoveBlocks(blocks=blocks),) if blocks else ())


def test_a_new_history_has_nowhere_to_go() -> None:
    history = History.start(_recipe())
    assert history.current == _recipe() and not history.can_undo and not history.can_redo
    assert history.undo() is history and history.redo() is history


def test_undo_and_redo_walk_along_what_was_made() -> None:
    history = History.start(_recipe()).add(_recipe(1)).add(_recipe(1, 2))
    back = history.undo()
    assert back.current == _recipe(1) and back.can_undo and back.can_redo
    assert back.undo().current == _recipe() and not back.undo().can_undo
    assert back.redo().current == _recipe(1, 2) and back.redo() == history


def test_adding_after_an_undo_drops_what_was_undone() -> None:
    history = History.start(_recipe()).add(_recipe(1)).add(_recipe(2)).undo().add(_recipe(3))
    assert [recipe.edits[0].blocks if recipe.edits else () for recipe in history.recipes] == [(), (1,), (3,)]
    assert not history.can_redo


def test_the_same_recipe_again_is_no_step() -> None:
    history = History.start(_recipe()).add(_recipe(1))
    noted = Recipe(model=MODEL, edits=(RemoveBlocks(blocks=(1,), chosen_by=ChosenBy(method="by hand")),))
    assert history.add(_recipe(1)) is history and history.add(noted) is history


def test_a_history_is_a_value() -> None:
    history = History.start(_recipe()).add(_recipe(1))
    before = history.recipes
    history.undo().add(_recipe(5))
    assert history.recipes == before and history.current == _recipe(1)


def test_the_oldest_recipes_are_forgotten() -> None:
    history = History.start(_recipe())
    for block in range(LONGEST + 50):
        history = history.add(_recipe(block))
    assert len(history.recipes) == LONGEST and history.current == _recipe(LONGEST + 49)
    while history.can_undo:
        history = history.undo()
    assert history.current == _recipe(50)
