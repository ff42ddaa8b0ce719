"""The tokens that end an answer, from everything in a checkpoint that names some."""

from __future__ import annotations

from typing import Any


def end_tokens(own: object, generation: object, config: object, family: str = "") -> tuple[int, ...]:
    """Ids of the tokens that end an answer, each once, the tokenizer's own first.

    Args:
        own: id of the tokenizer's end token.
        generation: `eos_token_id` of the generation settings. Each is a number, several, or None.
        config: `eos_token_id` of the configuration. A number that is only the family's default, because saving writes
            defaults out, does not count where the generation settings name a token.
        family: the model type, by whose default that is told.
    """
    if generation is not None and config is not None and config == _default(family):
        config = None
    found: dict[int, None] = {}
    for said in (own, generation, config):
        for number in said if isinstance(said, list | tuple) else (said,):
            if isinstance(number, int) and not isinstance(number, bool) and number >= 0:
                found[number] = None
    return tuple(found)


def end_tokens_of(model: Any, tokenizer: Any) -> tuple[int, ...]:
    """The same of a model in memory and its tokenizer."""
    config = model.config.get_text_config()
    family = str(getattr(config, "base_model_type", None) or config.model_type)
    said = getattr(model.generation_config, "eos_token_id", None)
    return end_tokens(tokenizer.eos_token_id, said, config.eos_token_id, family)


def _default(family: str) -> object:
    """What the family's configuration has where config.json says nothing."""
    from transformers import CONFIG_MAPPING

    return getattr(CONFIG_MAPPING[family], "eos_token_id", None) if family in CONFIG_MAPPING else None
