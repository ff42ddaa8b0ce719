"""Classes of options, and options that are built from a recipe's model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import pytest
import typer
from pydantic import BaseModel, ConfigDict, Field
from typer.testing import CliRunner

from surgery.cli.heal import DISTILLATION, OWN_OPTIONS, SETTINGS
from surgery.cli.options import FieldsOf, ModelOptions, RecipeOptions, flat
from surgery.recipe.base import ModelReference
from surgery.recipe.healing import Distillation, Heal
from surgery.recipe.recipe import Recipe


class Part(BaseModel):
    model_config = ConfigDict(use_attribute_docstrings=True)

    how: Literal["one", "two"] = "one"
    """Which of the two."""
    count: int = Field(default=3, ge=2, le=9)
    least: int | None = Field(default=None, ge=1)
    share: float = Field(default=0.5, gt=0)
    quick: bool = False
    places: tuple[int, ...] = ()
    inner: Heal | None = None


@dataclass(frozen=True)
class Size:
    width: Annotated[int, typer.Option("--wide", min=1, help="Its width.")]
    height: Annotated[int, typer.Option("--height")] = 4


PART = FieldsOf(Part, list(Part.model_fields), {"share": None})


def plain(size: Size, part: Annotated[dict[str, Any], PART], name: str = "x") -> None:
    """Do it."""
    CALLS.append((size, part, name))


def defaulted(size: Size = Size(7, 8)) -> None:
    """Do it."""
    CALLS.append(size)


CALLS: list[Any] = []


def run(verb: Callable[..., None], *arguments: str) -> Any:
    """What the verb is called with, or the words of the program where it is not called."""
    CALLS.clear()
    application = typer.Typer(rich_markup_mode=None)
    application.command()(flat(verb))
    result = CliRunner().invoke(application, list(arguments))
    return CALLS[0] if CALLS else result.output


def test_a_group_stands_for_its_options() -> None:
    absent = {"how": "one", "count": 3, "least": None, "share": None, "quick": False}
    assert run(plain, "--wide", "2") == (Size(2, 4), absent, "x")
    given = ("--how", "two", "--count", "4", "--least", "1", "--share", "0.1", "--quick")
    expected = {"how": "two", "count": 4, "least": 1, "share": 0.1, "quick": True}
    assert run(plain, "--wide", "2", "--height", "5", "--name", "y", *given) == (Size(2, 5), expected, "y")
    assert run(defaulted) == Size(7, 8), "an instance gives other defaults"
    assert run(defaulted, "--height", "1") == Size(7, 1)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((), "--wide"),
        (("--wide", "0"), "greater than or equal to 1"),
        (("--wide", "2", "--count", "1"), "greater than or equal to 2"),
        (("--wide", "2", "--least", "0"), "greater than or equal to 1"),
        (("--wide", "2", "--share", "many"), "--share"),
        (("--wide", "2", "--places", "1"), "--places"),
        (("--wide", "2", "--inner", "1"), "--inner"),
    ],
)
def test_a_groups_options_are_checked(arguments: tuple[str, ...], words: str) -> None:
    assert words in run(plain, *arguments)


def test_help_has_the_words_and_defaults_of_the_fields() -> None:
    words = " ".join(run(plain, "--help").split())
    assert "Its width. [x>=1; required]" in words and "Which of the two. [default: one]" in words
    assert "[default: 3; x>=2]" in words and "--quick / --no-quick" in words and "0.5" not in words


def test_heal_asks_for_every_field_of_a_heal_edit() -> None:
    """A field added to the recipe becomes an option, or must be named here."""
    options = {parameter.name for parameter in SETTINGS.parameters()}
    by_other_means = OWN_OPTIONS | {"text", "blocks", "linears", "base", "distillation", "chosen_by", "result"}
    assert options | by_other_means == set(Heal.model_fields) and not options & by_other_means
    assert {"balance", "weight"} | set(DISTILLATION.names) == set(Distillation.model_fields)
    for fields in (SETTINGS, DISTILLATION):
        for parameter in fields.parameters():
            own = fields.model.model_fields[parameter.name]
            assert parameter.default == (None if parameter.name in fields.defaults else own.default)


def test_a_recipe_names_its_model() -> None:
    recipe = Recipe(model=ModelReference(id="owner/name", revision="main"))
    assert ModelOptions.of(recipe) == ModelOptions("owner/name", "main", False)
    assert ModelOptions.of(recipe, "folder", True) == ModelOptions("folder", None, True)
    assert RecipeOptions(None, trust=True).source(recipe) == ModelOptions("owner/name", "main", True)  # type: ignore
