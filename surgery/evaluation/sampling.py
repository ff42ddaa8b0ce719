"""How text is drawn from a model's predictions: settings alone, no torch."""

from __future__ import annotations

from dataclasses import dataclass

from surgery.errors import InputError

MOST_TOKENS = 512
"""That are written in one go."""


@dataclass(frozen=True)
class Sampling:
    """How the next token is drawn. At temperature 0 it is the likeliest one.

    Raises:
        InputError: a setting is out of range.
    """

    tokens: int = 96
    """That are written at most."""
    temperature: float = 0.0
    top_p: float = 0.95
    """The likeliest tokens that make up this probability are drawn from (nucleus sampling, 1904.09751)."""
    seed: int = 0

    def __post_init__(self) -> None:
        if not 1 <= self.tokens <= MOST_TOKENS:
            raise InputError(f"Write between 1 and {MOST_TOKENS} tokens.")
        if not 0 <= self.temperature <= 10:
            raise InputError("The temperature must be between 0 (the likeliest token) and 10.")
        if not 0 < self.top_p <= 1:
            raise InputError("Top-p must be above 0 and at most 1.")
        if not 0 <= self.seed < 2**31:
            raise InputError("The seed must be a whole number from 0 on.")
