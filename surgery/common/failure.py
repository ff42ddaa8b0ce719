"""What is told of an error, the same way by the command line, the page and the API: one sentence, never a traceback."""

from __future__ import annotations

import hashlib
import traceback
from contextlib import suppress
from datetime import UTC, datetime

from surgery.common.files import cache_directory
from surgery.errors import Failed, InputError, VerificationFailed, brief

MOST_LOGS = 32
"""Logs that are kept; the oldest leave."""
LARGEST_LOG = 64 * 2**10
"""Characters of one log, from its end."""
NO_MEMORY = "There is not enough memory: use fewer or shorter windows, or a smaller model."


def out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out. torch has a type for accelerators only; on the CPU it raises a plain RuntimeError."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    return isinstance(error, RuntimeError) and "allocate memory" in str(error)


def sentence_of(error: BaseException) -> str:
    """One line for a person. The stack of an error that is not foreseen goes to a log, which the line names."""
    if isinstance(error, InputError | VerificationFailed | Failed):
        return " ".join(str(error).split())
    if out_of_memory(error):
        return NO_MEMORY
    if isinstance(error, OSError):
        return f"A file could not be read or written ({error.strerror or brief(error)}): check the disk."
    code = _code(error)
    return f"Something unforeseen went wrong (code {code}, {type(error).__name__}): {_logged(error, code)}."


def _code(error: BaseException) -> str:
    """Six digits that are the same wherever the same thing goes wrong: of the type, and the places in the code."""
    places = [f"{frame.name}:{frame.line}" for frame in traceback.extract_tb(error.__traceback__)]
    return hashlib.sha256("\n".join([type(error).__name__, *places]).encode()).hexdigest()[:6].upper()


def _logged(error: BaseException, code: str) -> str:
    """Write the stack into `logs` of the cache folder; where it is, in words."""
    folder = cache_directory() / "logs"
    path = folder / f"{code}.log"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        path.write_text(_stack(error, code)[-LARGEST_LOG:], "utf-8")
    except OSError as failed:
        return f"its log {str(path)!r} could not be written ({failed.strerror})"
    logs = sorted(folder.glob("*.log"), key=lambda log: log.stat().st_mtime)
    for log in logs[:-MOST_LOGS]:
        with suppress(OSError):
            log.unlink()
    return f"the details are in {str(path)!r}"


def _stack(error: BaseException, code: str) -> str:
    """The calls that led to an error and its causes. No message and no value: they may quote a prompt or a token."""
    parts = [f"{code} at {datetime.now(UTC):%Y-%m-%d %H:%M:%S} UTC\n"]
    one: BaseException | None = error
    while one is not None:
        parts += [f"\n{type(one).__module__}.{type(one).__qualname__}, raised in\n"]
        parts += traceback.format_tb(one.__traceback__)
        one = one.__cause__ or (None if one.__suppress_context__ else one.__context__)
    return "".join(parts)
