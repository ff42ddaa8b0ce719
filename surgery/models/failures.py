"""Ways in which a library fails, as tables: how each is told, its error class and its sentence."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

from huggingface_hub import errors as hub

from surgery.errors import InputError


class Failure(NamedTuple):
    """One way to fail: a row of a table, of which the first that applies counts."""

    applies: Callable[[Any], bool]
    """Asked of the exception, or of what a file announces."""
    error: type[InputError]
    sentence: str
    """A format string; its fields are the words that `named` is given."""


def named(failures: Iterable[Failure], found: Any, **words: object) -> InputError | None:
    """The error of the first row that applies; None if none does."""
    return next((row.error(row.sentence.format(**words)) for row in failures if row.applies(found)), None)


def is_a(*kinds: type[Exception]) -> Callable[[Exception], bool]:
    """A condition: the exception is of one of these types."""
    return lambda error: isinstance(error, kinds)


def says(*words: str) -> Callable[[Exception], bool]:
    """A condition, for libraries without a type of their own: one of these words is in the exception's text."""
    return lambda error: any(word in str(error) for word in words)


def anything(_: object) -> bool:
    """The condition of a last row."""
    return True


def offline(error: Exception) -> bool:
    """Whether the Hub did not answer: told by the type of the exception, or of one that it was raised from."""
    unanswered = (hub.HTTPError, hub.LocalEntryNotFoundError, ConnectionError, TimeoutError)
    answered = (hub.RepositoryNotFoundError, hub.RevisionNotFoundError, hub.RemoteEntryNotFoundError)
    return any(isinstance(one, unanswered) and not isinstance(one, answered) for one in _chain(error))


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
