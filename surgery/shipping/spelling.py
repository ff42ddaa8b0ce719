"""How a tokenizer spells: enough to tell whether the one in a folder is still the one that was shipped."""

from __future__ import annotations

import hashlib
import json
from typing import Any

from surgery.shipping.record import Spelling

PROBE = (
    "The quick brown fox, it's 1,234.5 km away; we'll see 007 of them by 10:59!\n\n"
    "  def f(x):\n\treturn x == 'y' or [x[0], {\"k\": -1e-3}]  # ok?\n"
    "Stra\u00dfe na\u00efve \u0416\u0443\u043a \u65e5\u672c\u8a9e \u0939\u093f \u0645\u0631 \U0001f600 \u00a0x\r\n"
)
"""Words, numbers, spaces, code and other scripts."""


def spelling_of(tokenizer: Any) -> Spelling:
    """The ids of a probe text, with the special tokens in it, and a digest of everything else that counts.

    The digest is over all tokens and their ids, the text of each token spelt again, the special tokens and the chat
    template, and not over the tokenizer's files: they may be written otherwise by another version of a library.
    """
    probe = PROBE + "".join(tokenizer.all_special_tokens)
    vocabulary = sorted(tokenizer.get_vocab().items(), key=lambda entry: (entry[1], entry[0]))
    ids = [[entry[1]] for entry in vocabulary]
    texts = tokenizer.batch_decode(ids, clean_up_tokenization_spaces=False)
    special = sorted((name, str(token)) for name, token in tokenizer.special_tokens_map.items())
    again = tokenizer(texts, add_special_tokens=False)["input_ids"]
    said = json.dumps([vocabulary, again, special, tokenizer.chat_template])
    return Spelling(ids=tuple(tokenizer(probe)["input_ids"]), digest=hashlib.sha256(said.encode()).hexdigest())
