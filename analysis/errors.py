"""Errors that a person can act on; each message is one sentence that says what to do."""


def brief(error: object) -> str:
    """What an error says, in one short line."""
    return " ".join(str(error).split())[:160].rstrip(" .:") or type(error).__name__


class InputError(ValueError):
    """Bad input of any kind: the message is shown to the person as it is."""


class UnsupportedArchitecture(InputError):
    """A model, or a module of it, that cannot be mapped; the message names the module."""


class TextError(InputError):
    """A text that cannot be read or is too short."""


class Cancelled(Exception):
    """Raised inside long work when its stop flag is set."""
