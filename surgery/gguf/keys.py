"""The ledger of a GGUF file: every key and tensor is used, known not to matter for a stated reason, or refused."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from typing import Any

import numpy as np

from surgery.errors import CorruptFile, UnsupportedArchitecture
from surgery.gguf.header import GgufFile

LARGEST = 2**31 - 1
IGNORED = (
    (r"general\.(?!architecture$|type$|alignment$|sampling\.).*", "texts about the model, and numbers about the file"),
    (r"general\.sampling\.(?!temp$|top_k$|top_p$|min_p$|penalty_repeat$).*",
     "advice to a sampler that transformers does not have"),
    (r"quantize\..*", "how the weights were rounded, which their own types say"),
    (r"[^.]+\.vocab_size", "the rows of the embeddings count"),
    (r"[^.]+\.rope\.scaling\.finetuned", "a note that no computation reads"),
    (r"[^.]+\.tensor_data_layout", "a note that no computation reads"),
    (r"tokenizer\.ggml\.(fim_(pre|suf|mid)|prefix|suffix|middle|mask|seperator)_token_id", "a name of a token"),
    (r"tokenizer\.ggml\.add_sep_token", "a separator, which stands between two texts only"),
    (r"tokenizer\.ggml\.token_type_count", "kinds of segments, which no model that generates text has"),
    (r"tokenizer\.(huggingface\.json|rwkv\.world)", "a copy of the tokenizer that the other keys hold"),
    (r"tokenizer\.chat_templates|tokenizer\.chat_template\..*", "further templates beside the one that is used"),
)  # fmt: skip
"""Keys of no effect on what the model computes, as patterns, each with its reason."""
NEUTRAL = {
    "attention.causal": True,
    "expert_count": 0,
    "expert_used_count": 0,
    "pooling_type": 0,
    "attention.max_alibi_bias": 0.0,
    "attention.clamp_kqv": 0.0,
    "nextn_predict_layers": 0,
    "use_parallel_residual": False,
}
"""Keys by name, with the value at which they say nothing."""
IGNORED_TENSORS = ((r"blk\.\d+\.attn_rot_embd\.weight", "rotary constants that llama.cpp computes itself"),)


class Keys:
    """The keys of one file, each marked as used when it is asked for.

    Raises:
        CorruptFile: from every method: a key is absent and has no default, or is of another kind.
    """

    def __init__(self, file: GgufFile) -> None:
        self.file = file
        self._used: set[str] = set()
        self._prefix = ""
        self.architecture: str = self.text("general.architecture")
        self._prefix = f"{self.architecture}."

    @property
    def deci(self) -> bool:
        """Whether the file says sizes block by block."""
        return self.architecture == "deci"

    def raw(self, key: str, default: Any = None) -> Any:
        """A key by its whole name, whatever it holds."""
        self._used.add(key)
        return self.file.keys.get(key, default)

    def text(self, name: str, default: str | None = None) -> str:
        """A text of the architecture."""
        return str(self._checked(name, default, str))

    def number(self, name: str, default: float | None = None) -> float:
        """A finite number of the architecture."""
        value = float(self._checked(name, default, int | float))
        if not math.isfinite(value):
            raise CorruptFile(f"{self._prefix}{name} of {self.file.name} is not finite: download it again.")
        return value

    def whole(self, name: str, default: int | None = None, least: int = 1) -> int:
        """A whole number of the architecture, from `least` to 2^31 - 1."""
        value = int(self._checked(name, default, int))
        if not least <= value <= LARGEST:
            raise CorruptFile(f"{self._prefix}{name} of {self.file.name} is {value}: download it again.")
        return value

    def per_block(self, name: str, blocks: int, default: list[int] | None = None) -> list[int]:
        """A number for each block; one number stands for all."""
        value = self.raw(self._prefix + name, default)
        if isinstance(value, np.ndarray | list):
            if len(value) != blocks or not all(0 <= int(number) <= LARGEST for number in value):
                raise CorruptFile(f"{self._prefix}{name} of {self.file.name} is not a number a block: get it anew.")
            return [int(number) for number in value]
        return [self.whole(name)] * blocks

    def only(self, name: str, neutral: object) -> None:
        """Refuse any other value of a key than the one at which it says nothing."""
        self.only_whole(self._prefix + name, neutral)

    def only_whole(self, key: str, neutral: object) -> None:
        """As `only`, for a key by its whole name."""
        value = self.raw(key, neutral)
        if type(value) not in (int, float, bool, str) or value != neutral:
            raise self._not_understood(f"the key {key} = {str(value)[:60]}")

    def use(self, *keys: str) -> None:
        """Mark keys, by their whole names, as used elsewhere."""
        self._used.update(keys)

    def close(self, tensors: Iterable[str]) -> None:
        """End the account.

        Args:
            tensors: names of those that are used.

        Raises:
            UnsupportedArchitecture: a key or a tensor is left over; the message names it.
        """
        for name, neutral in NEUTRAL.items():
            self.only(name, neutral)
        left = [key for key in self.file.keys if key not in self._used and not _matches(key, IGNORED)]
        if left:
            raise self._not_understood(f"the key {left[0]}")
        used = set(tensors)
        odd = [name for name in self.file.tensors if name not in used and not _matches(name, IGNORED_TENSORS)]
        if odd:
            raise self._not_understood(f"the tensor {odd[0]}")

    def _not_understood(self, what: str) -> UnsupportedArchitecture:
        return UnsupportedArchitecture(
            f"{self.file.name} has {what}, which is not understood here for the architecture {self.architecture}: give "
            "the original checkpoint."
        )

    def _checked(self, name: str, default: Any, kind: Any) -> Any:
        key = self._prefix + name
        value = self.raw(key, default)
        if value is None:
            raise CorruptFile(f"{self.file.name} does not say {key}: download it again.")
        if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
            raise CorruptFile(f"{key} of {self.file.name} is of another kind than it should be: download it again.")
        return value


def _matches(name: str, table: tuple[tuple[str, str], ...]) -> bool:
    return any(re.fullmatch(pattern, name) for pattern, _ in table)
