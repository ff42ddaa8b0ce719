"""Errors of the headless core, one class for each thing a person can put right."""

from pathlib import Path
from typing import Any

from analysis.errors import Cancelled, InputError, TextError, UnsupportedArchitecture, brief

__all__ = [
    "Cancelled",
    "CorruptFile",
    "DeviceError",
    "DoesNotFit",
    "Failed",
    "GatedModel",
    "InputError",
    "NoNetwork",
    "NotACausalLanguageModel",
    "QuantisedCheckpoint",
    "RecipeError",
    "RemoteCodeNeeded",
    "TextError",
    "UnknownModel",
    "UnsupportedArchitecture",
    "VerificationFailed",
    "brief",
]


class UnknownModel(InputError):
    """No model of that id, revision or path."""


class GatedModel(InputError):
    """The Hub asks for an accepted licence or a token."""


class NoNetwork(InputError):
    """Something must be downloaded and the network did not answer."""


class NotACausalLanguageModel(InputError):
    """The checkpoint holds another kind of model."""


class CorruptFile(InputError):
    """A file that is damaged or incomplete."""


class RemoteCodeNeeded(InputError):
    """The checkpoint needs its own Python code, which is off unless asked for."""


class QuantisedCheckpoint(InputError):
    """A quantised checkpoint that transformers cannot turn back into floating point."""


class DoesNotFit(InputError):
    """Not enough memory; the message says what is needed and what is free."""


class RecipeError(InputError):
    """A recipe that is malformed, out of range or contradictory."""


class DeviceError(InputError):
    """A device file that is malformed or unknown."""


class Failed(Exception):
    """A job ended by an error that no other input puts right; the message is the sentence that tells of it."""


class VerificationFailed(Exception):
    """A shipped file is not what was recorded when it was shipped. Not an input error: nobody has asked for it wrongly.

    Args:
        message: one sentence that names the files, and what to do.
        verification: what was found (`surgery.shipping.verify.Verification`), as far as it went.
        kept: where a folder that was not put in place is kept, for a look.
    """

    def __init__(self, message: str, verification: Any = None, kept: Path | None = None) -> None:
        self.message, self.verification, self.kept = message, verification, kept
        aside = f" The folder was not put in place; it is kept as {str(kept)!r}." if kept is not None else ""
        super().__init__(message + aside)
