"""The options of the verbs, those of several together as classes, and a verb's signature as Typer reads it."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields, is_dataclass, replace
from inspect import Parameter
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

import typer
from pydantic import BaseModel
from typer.models import ArgumentInfo, ParameterInfo

from analysis.files import check_text_source
from surgery.common.files import check_writable, sweep_cache
from surgery.common.numbers import LARGEST, MOST, real, whole
from surgery.common.scratch import sweep
from surgery.errors import InputError
from surgery.recipe.recipe import Recipe
from surgery.recipe.texts import WINDOW, TextChoice

JsonOption = Annotated[bool, typer.Option("--json", help="One JSON object on standard output and nothing else there.")]
SpreadOption = Annotated[
    bool, typer.Option("--spread", help="Windows evenly spaced over the whole text instead of its first ones.")
]
RevisionOption = Annotated[str | None, typer.Option("--revision", help="Branch, tag or commit of a Hub model.")]
TrustOption = Annotated[bool, typer.Option("--trust-remote-code", help="Run the checkpoint's own Python code.")]
RecipeOption = Annotated[Path | None, typer.Option("--recipe", help="A recipe file.")]
CalibrationOption = Annotated[
    str | None,
    typer.Option("--calibration", help="The text on which the recipe's compensations are computed, if not embedded."),
]
OutOption = Annotated[Path | None, typer.Option("--out", help="A file to write.")]
TEXTS = ("--text", "--calibration", "--evaluation-text")
"""Options that name a text."""


@dataclass(frozen=True)
class ModelOptions:
    """Which model is opened."""

    model: Annotated[str, typer.Argument(metavar="MODEL", help="default, a Hub id, a folder or a .gguf file.")]
    revision: RevisionOption = None
    trust: TrustOption = False

    @classmethod
    def of(cls, recipe: Recipe, model: str | None = None, trust: bool = False) -> ModelOptions:
        """The model that a recipe names, or the one that is given instead."""
        return cls(model, None, trust) if model else cls(recipe.model.id, recipe.model.revision, trust)


@dataclass(frozen=True)
class RecipeOptions:
    """A recipe, and what it is applied to."""

    recipe: Annotated[Path, typer.Argument(metavar="RECIPE", help="A recipe file.")]
    model: Annotated[str | None, typer.Option("--model", help="The source model, if not where the recipe says.")] = None
    calibration: CalibrationOption = None
    trust: TrustOption = False

    def source(self, recipe: Recipe) -> ModelOptions:
        """The model that is opened for the recipe once it has been read."""
        return ModelOptions.of(recipe, self.model, self.trust)


@dataclass(frozen=True)
class TextOptions:
    """Which text is measured or analysed, and how it is cut."""

    text: Annotated[
        str, typer.Option("--text", help="embedded, wikitext-2, hub:owner/name, or a .txt, .jsonl or .parquet file.")
    ] = "embedded"
    window: Annotated[
        int | None,
        typer.Option("--window", min=2, help=f"Tokens in a window; {WINDOW} if absent, or what the model takes."),
    ] = None
    windows: Annotated[int, typer.Option("--windows", min=1, help="Number of windows.")] = 4

    def measured(self, spread: bool = False) -> TextChoice:
        """The text to measure on."""
        return TextChoice(self.text, self.window or WINDOW, self.windows, spread=spread, shorten=self.window is None)

    def analysed(self, spread: bool) -> TextChoice:
        """The text to calibrate on."""
        return replace(self.measured(spread), purpose="calibration")


def calibration_texts(name: str | None) -> list[TextChoice]:
    """The texts that a recipe's compensations may be computed on, besides the embedded one."""
    return [TextChoice(name, purpose="calibration")] if name is not None else []


def one_of(value: str, known: Sequence[str], option: str) -> Any:
    """The value of an option that has names for values; any other is an InputError that lists them."""
    if value not in known:
        raise InputError(f"{value!r} is not a value of {option}: use one of {', '.join(known)}.")
    return value


@dataclass(frozen=True)
class FieldsOf:
    """Marks a parameter of a verb that stands for fields of a recipe's model, one option a field.

    The verb gets a dict of values by field. Name, lower bound, words and default are the field's own; a field that no
    single option can express (a list, a model) is left out.

    Args:
        model: a part of a recipe.
        names: the fields.
        defaults: values in place of the fields' own; None for one that is left to the verb.
    """

    model: type[BaseModel]
    names: Sequence[str]
    defaults: Mapping[str, Any] = field(default_factory=dict)

    def parameters(self) -> Iterator[Parameter]:
        """One parameter a field, as Typer reads it."""
        for name in self.names:
            about = self.model.model_fields[name]
            kind = _plain_type(about.annotation)
            if kind is not None:
                least = next((bound.ge for bound in about.metadata if hasattr(bound, "ge")), None)
                option = typer.Option(help=about.description, min=least if kind is int else None)
                default = self.defaults.get(name, about.default)
                yield _parameter(name, Annotated[kind if default is not None else kind | None, option], default)


def flat(verb: Callable[..., None]) -> Callable[..., None]:
    """A verb as Typer reads it: a parameter that is a class of options, or `FieldsOf`, becomes its single options."""
    hints = get_type_hints(verb, include_extras=True)
    parameters: list[Parameter] = []
    groups: dict[str, tuple[Callable[..., Any], list[str]]] = {}
    for name, given in inspect.signature(verb).parameters.items():
        marks = [mark for mark in getattr(hints[name], "__metadata__", ()) if isinstance(mark, FieldsOf)]
        if marks or is_dataclass(hints[name]):
            members = list(marks[0].parameters() if marks else _members(hints[name], given.default))
            groups[name] = (dict if marks else hints[name], [member.name for member in members])
        else:
            members = [_parameter(name, hints[name], given.default)]
        parameters += members

    @functools.wraps(verb)
    def command(**values: Any) -> None:
        for member in parameters:
            _check(member, values[member.name])
        sweep_cache()
        grouped = {name: make(**{one: values.pop(one) for one in names}) for name, (make, names) in groups.items()}
        verb(**values, **grouped)

    command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    command.__annotations__ = {member.name: member.annotation for member in parameters}
    return command


def _check(option: Parameter, value: Any) -> None:
    """The door for every option of every verb.

    Raises:
        InputError: a number without sense, nothing in place of a value, no such text, or no place to write to.
    """
    marks = getattr(option.annotation, "__metadata__", ())
    about = next((one for one in marks if isinstance(one, ParameterInfo)), None)
    name = _flag(option, about)
    least, most = getattr(about, "min", None), getattr(about, "max", None)
    if isinstance(value, str) and not value.strip() and value != option.default:
        raise InputError(f"{name} is empty: give it a value, or leave it out.")
    if isinstance(value, str) and name.endswith(TEXTS):
        check_text_source(value)
    if isinstance(value, float):
        real(value, name, -LARGEST if least is None else least, LARGEST if most is None else most)
    elif isinstance(value, int) and not isinstance(value, bool):
        whole(value, name, -MOST if least is None else int(least))
    if option.name == "out" and value is not None:
        sweep(value.parent)
        if option.annotation == OutOption:
            check_writable(value)


def _flag(option: Parameter, about: ParameterInfo | None) -> str:
    """An option or argument as it is written on the command line."""
    if isinstance(about, ArgumentInfo):
        return f"The argument {about.metavar or option.name.upper()}"
    written = next(iter(getattr(about, "param_decls", None) or ()), f"--{option.name.replace('_', '-')}")
    return f"The option {written}"


def _members(options: type, default: Any) -> Iterator[Parameter]:
    """One parameter a field of a class of options; `default` is an instance that gives other defaults."""
    hints = get_type_hints(options, include_extras=True)
    for one in fields(options):
        own = Parameter.empty if one.default is MISSING else one.default
        yield _parameter(one.name, hints[one.name], getattr(default, one.name, own))


def _parameter(name: str, annotation: Any, default: Any) -> Parameter:
    return Parameter(name, Parameter.KEYWORD_ONLY, default=default, annotation=annotation)


def _plain_type(annotation: Any) -> type | None:
    """The type that an option reads for a field's; None where there is none."""
    if get_origin(annotation) is Literal:
        return str
    if get_origin(annotation) in (Union, UnionType):
        kinds = [kind for kind in get_args(annotation) if kind is not NoneType]
        return _plain_type(kinds[0]) if len(kinds) == 1 else None
    return annotation if annotation in (bool, int, float, str) else None
