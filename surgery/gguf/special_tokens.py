"""Special tokens of a GGUF file: which ids llama.cpp puts around a text, and at which it ends an answer."""

from __future__ import annotations

from typing import Any

import gguf

from surgery.errors import InputError
from surgery.folders.end_tokens import end_tokens
from surgery.folders.files import CheckpointFiles
from surgery.gguf.sampling import generation_settings

END_KEYS = ("eos", "eot", "eom", "fim_pad", "fim_rep", "fim_sep")
"""llama.cpp ends an answer at each of these. The last three also take part in filling in the middle; they are used
where a checkpoint has that many end tokens."""
KEYS = ("bos", "eos", "unk", "pad", *END_KEYS[1:])


def special_tokens(
    files: CheckpointFiles, settings: dict[str, Any], tokens: list[str], types: list[gguf.TokenType]
) -> tuple[dict[str, int], list[str]]:
    """Ids of the special tokens by the name of their key, and what a person should know of them.

    They are the tokenizer's own; where there is no tokenizer_config.json, the model's configuration says them. Tokens
    that end an answer are all that any file of the checkpoint names.

    Args:
        settings: of the tokenizer.
        tokens: of every row of the embeddings.
        types: of the tokens; UNUSED for a row without one.
    """
    numbers = {tokens[n]: n for n, kind in enumerate(types) if kind != gguf.TokenType.UNUSED}
    found: dict[str, int] = {}
    for name in ("bos", "unk", "pad", "eos"):
        token = settings.get(f"{name}_token")
        token = token.get("content") if isinstance(token, dict) else token
        number = numbers.get(token) if isinstance(token, str) else None
        if number is None and not settings:
            given = files.config.get(f"{name}_token_id")
            number = given if isinstance(given, int) and 0 <= given < len(tokens) else None
        if number is not None:
            found[name] = number
    said = generation_settings(files).get("eos_token_id")
    ends = end_tokens(found.pop("eos", None), said, files.config.get("eos_token_id"), files.family)
    ends = tuple(number for number in ends if number < len(tokens))
    notes = []
    if not ends:
        # Without the key llama.cpp takes an id of its own, whatever token that is.
        idle = (n for n, kind in enumerate(types) if kind in (gguf.TokenType.UNUSED, gguf.TokenType.CONTROL))
        ends = tuple(number for number in [found.get("pad", next(idle, None))] if number is not None)
        notes += (
            [] if ends else ["The model names no end token, and llama.cpp ends an answer at one of its own choice."]
        )
    if len(ends) > len(END_KEYS):
        left = ", ".join(repr(tokens[number])[:40] for number in ends[len(END_KEYS) :][:5])
        notes.append(
            f"llama.cpp does not end an answer at {left}: a GGUF file names {len(END_KEYS)} end tokens at most."
        )
    found |= dict(zip(END_KEYS, ends, strict=False))
    return {name: found[name] for name in KEYS if name in found}, notes


def added_around(document: dict[str, Any], special: dict[str, int]) -> tuple[bool, bool]:
    """Whether the post-processor puts BOS before and EOS after a text. Raises InputError: it adds something else."""
    before: list[int] = []
    after: list[int] = []
    processor = document.get("post_processor") or {}
    for part in processor.get("processors", [processor] if processor else []):
        if part["type"] == "ByteLevel":
            continue
        if part["type"] != "TemplateProcessing":
            raise InputError(
                f"llama.cpp cannot express the tokenizer's post-processor {str(part['type'])[:40]!r}: use the "
                "checkpoint with transformers."
            )
        side = before
        for piece in part["single"]:
            if "Sequence" in piece:
                side = after
            else:
                side += part["special_tokens"][piece["SpecialToken"]["id"]]["ids"]
    bos, eos = special.get("bos"), special.get("eos")
    if before not in ([], [bos]) or after not in ([], [eos]):
        raise InputError(
            "llama.cpp adds nothing but BOS before and EOS after a text, and this tokenizer adds other tokens: use the "
            "checkpoint with transformers."
        )
    return bool(before), bool(after)
