"""Opening a folder's tokenizer as its tokenizer.json has it, and writing it again."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from surgery.errors import CorruptFile, NoNetwork, RemoteCodeNeeded, brief
from surgery.models.failures import Failure, anything, named, offline, says

FILE = "tokenizer.json"
ORIGIN = "tokenizer_json"
"""Attribute of a tokenizer that was opened here: the path of the tokenizer.json that it was read from."""
TOKENIZER = (
    Failure(
        says("trust_remote_code"),
        RemoteCodeNeeded,
        "The tokenizer of {source} needs Python code of its own: read that code, and allow it with "
        "trust_remote_code if you trust it.",
    ),
    Failure(offline, NoNetwork, "The tokenizer of {source} could not be downloaded ({reason}): check the network."),
    Failure(
        anything,
        CorruptFile,
        "The tokenizer of {source} is absent or damaged ({reason}): put the original tokenizer.json beside it.",
    ),
)
"""What keeps a tokenizer from being loaded: its code is not run, the network is gone, or files absent or damaged."""


def open_tokenizer(folder: Path, source: str, config: Any, settings: dict[str, Any], trusted: bool = False) -> Any:
    """The tokenizer of a folder, with the splitting, ids and templates of its own tokenizer.json where it has one.

    transformers 5 builds the tokenizer of some classes anew, with that class's splitting, and passes over what the file
    says; so the file is opened by the class that takes it as it is. Code beside it runs only if `trusted`.

    Args:
        folder: holds the tokenizer's files.
        source: how errors name it.
        config: the model's configuration: its special tokens count where the tokenizer's files name none.
        settings: what tokenizer_config.json says; empty where there is none.

    Raises:
        RemoteCodeNeeded: it has a class of its own.
        CorruptFile: a file is absent or damaged.
    """
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    own_class = isinstance(settings.get("auto_map"), dict | list)
    try:
        if not (folder / FILE).is_file() or own_class:
            made: Any = AutoTokenizer.from_pretrained(str(folder), config=config, trust_remote_code=trusted)
        else:
            made = PreTrainedTokenizerFast.from_pretrained(str(folder), trust_remote_code=False)
            setattr(made, ORIGIN, folder / FILE)
            _name_ends(made, config, settings)
    except Exception as error:  # the tokenizers library raises plain Exception
        raise named(TOKENIZER, error, source=source, reason=brief(error)) or error from None
    return made


def write_tokenizer(tokenizer: Any, folder: Path) -> None:
    """Write a tokenizer's files into a folder: the tokenizer.json that it was read from as it is, if that is there."""
    tokenizer.save_pretrained(folder)
    origin = getattr(tokenizer, ORIGIN, None)
    if origin is not None and origin.is_file():
        shutil.copyfile(origin, folder / FILE)


def _name_ends(tokenizer: Any, config: Any, settings: dict[str, Any]) -> None:
    """Name the first and the last token of a text as the model's configuration does, where no file names them."""
    for name in ("bos_token", "eos_token"):
        number = getattr(config, f"{name}_id", None)
        number = number[0] if isinstance(number, list) and number else number
        unnamed = name not in settings and getattr(tokenizer, name) is None
        if unnamed and isinstance(number, int) and 0 <= number < len(tokenizer):
            setattr(tokenizer, name, tokenizer.convert_ids_to_tokens(number))
