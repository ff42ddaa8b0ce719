"""A tokenizer from a GGUF file's keys, which gives the ids that llama.cpp gives.

Byte-level BPE splits as the pre-tokenizer of that name does in llama.cpp; SentencePiece's BPE merges by scores.
Anything else is refused; none is guessed.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import gguf
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from surgery.errors import CorruptFile, UnsupportedArchitecture
from surgery.gguf.keys import Keys
from surgery.gguf.tokenizer import CL100K, SPACE, TEKKEN

GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)"
QWEN2 = CL100K.replace("{1,3}", "")
_ENDINGS = "(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
GPT4O = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+" + _ENDINGS + r"|"
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*" + _ENDINGS + r"|"
    r"\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
SPLITS: dict[tuple[str, ...], str] = {
    (r"[\p{P}\$\+<=>\^~\|]+", GPT2, r"\p{N}+", r"[0-9][0-9][0-9]"): "default",
    (GPT2,): "gpt-2 phi-2 jina-es jina-de jina-v2-es jina-v2-de gigachat a.x-4.0 mellum modern-bert exaone4 mpt olmo "
             "jais trillion granite-docling",
    (r"\p{N}", GPT2): "smollm starcoder refact command-r codeshell exaone minerva-7b mellum2",
    (CL100K,): "llama-bpe llama3 llama-v3 falcon3 falcon-h1 pixtral midm-2.0 lfm2 jina-v5-nano dbrx smaug-bpe glm4 "
               "chatglm-bpe",
    (QWEN2,): "qwen2 deepseek-r1-qwen kormo f2llmv2 megrez stablelm2 hunyuan solar-open grok-2",
    (TEKKEN,): "tekken",
    (GPT4O,): "gpt-4o llama4 kanana2 talkie minimax-m2",
}  # fmt: skip
"""Expressions by which a text is split, one after the other, and llama.cpp's names of pre-tokenizers that do so."""
WHOLE_WORDS = frozenset(
    ("llama-bpe", "llama3", "llama-v3", "falcon3", "falcon-h1", "pixtral", "midm-2.0", "lfm2", "jina-v5-nano", "tekken")
)
"""Pre-tokenizers that take a word which is a token as it is, and put BOS before a text unless the file says no."""
ENDS = frozenset((
    "<|eot_id|>", "<|im_end|>", "<|end|>", "<|return|>", "<|call|>", "<|flush|>", "<|calls|>", "<end_of_turn>",
    "<|endoftext|>", "</s>", "<|eom_id|>", "<EOT>", "_<EOT>", "[EOT]", "[EOS]", "<|end_of_text|>",
    "<end_of_utterance>", "<eos>", "<turn|>", "<|tool_response>", "<\uff5cend\u2581of\u2581sentence\uff5c>", "[e~[",
))  # fmt: skip
"""Control tokens at which llama.cpp ends an answer whatever else the file says. It also does so where they are ordinary
text in the file, such as Gemma's HTML tags: that is not followed."""
END_KEYS = ("eot", "eom", "fim_pad", "fim_rep", "fim_sep")
"""Keys of tokens at which llama.cpp ends an answer, beside the end token's."""
BY_NAME = {"bos": "bos", "eos": "eos", "unknown": "unk", "padding": "pad"}
"""GGUF's names of special tokens, and transformers'."""
PHI3 = re.compile("phi-?3", re.IGNORECASE)
PHI3_KEEP_SPACES = ("<unk>", "<s>", "<|endoftext|>")


@dataclass(frozen=True)
class SourceTokenizer:
    """A file's tokenizer."""

    backend: Tokenizer
    special: dict[str, str]
    """`bos`, `eos`, `unk` and `pad`, those that there are, by text."""
    ids: dict[str, int]
    """The same by number."""
    ends: tuple[int, ...]
    """Every token that ends an answer, the end token first."""
    chat_template: str | None


@dataclass(frozen=True)
class _Vocabulary:
    tokens: list[str]
    types: list[int]
    numbers: dict[str, int]

    def of(self, *kinds: gguf.TokenType) -> Iterator[str]:
        """Tokens of these types, in order."""
        wanted = {int(kind) for kind in kinds}
        return (token for token, kind in zip(self.tokens, self.types, strict=True) if kind in wanted)


def source_tokenizer(keys: Keys) -> SourceTokenizer:
    """The tokenizer of a file.

    Raises:
        UnsupportedArchitecture: of a kind that is not understood; the message names it.
        CorruptFile: a key is absent or contradicts another.
    """
    kind = keys.raw("tokenizer.ggml.model")
    vocabulary = _vocabulary(keys)
    if kind == "gpt2":
        backend, adds_bos = _byte_level(keys, vocabulary)
    elif kind == "llama":
        backend, adds_bos = _sentencepiece(keys, vocabulary), True
    else:
        raise UnsupportedArchitecture(
            f"{keys.file.name} has a tokenizer of the kind {str(kind)[:40]!r}, which is not understood here: give the "
            "original checkpoint."
        )
    ids = _special(keys, vocabulary, kind)
    _add_special(keys, backend, vocabulary)
    before = ["bos"] if keys.raw("tokenizer.ggml.add_bos_token", adds_bos) and "bos" in ids else []
    after = ["eos"] if keys.raw("tokenizer.ggml.add_eos_token", False) and "eos" in ids else []
    if before or after:
        backend.post_processor = _around(before, after, ids, vocabulary.tokens)
    template = keys.raw("tokenizer.chat_template")
    return SourceTokenizer(
        backend,
        {name: vocabulary.tokens[number] for name, number in ids.items()},
        ids,
        _ends(keys, vocabulary, ids),
        template if isinstance(template, str) and template else None,
    )


def _vocabulary(keys: Keys) -> _Vocabulary:
    """Tokens with distinct names: one that repeats another, or is empty, gets a name of its own.

    Names at the end that stand for rows without a token are left out, as they are in a checkpoint's tokenizer.
    """
    tokens, types = keys.raw("tokenizer.ggml.tokens"), keys.raw("tokenizer.ggml.token_type")
    if not isinstance(tokens, list) or not tokens or (types is not None and len(types) != len(tokens)):
        raise CorruptFile(f"{keys.file.name} holds no vocabulary, or types for another one: download it again.")
    kinds = [int(kind) for kind in types] if types is not None else [int(gguf.TokenType.NORMAL)] * len(tokens)
    while kinds and kinds[-1] == int(gguf.TokenType.UNUSED):
        kinds.pop()
    tokens = tokens[: len(kinds)]
    numbers: dict[str, int] = {}
    taken = set(tokens)
    for number, token in enumerate(tokens):
        name = token or f"[EMPTY_{number}]"
        while name in numbers or (name != token and name in taken):
            name = f"[{name}_{number}]"
        numbers[name] = number
    named = list(numbers)
    return _Vocabulary(named, kinds, numbers)


def _byte_level(keys: Keys, vocabulary: _Vocabulary) -> tuple[Tokenizer, bool]:
    """Byte-level BPE, and whether it puts BOS before a text where the file does not say."""
    pre = keys.raw("tokenizer.ggml.pre", "default")
    keys.use("tokenizer.ggml.scores")  # some converters write zeros
    keys.only_whole("tokenizer.ggml.add_space_prefix", False)
    splits = next((splits for splits, names in SPLITS.items() if pre in names.split()), None)
    if splits is None:
        raise UnsupportedArchitecture(
            f"{keys.file.name} splits texts by the pre-tokenizer {str(pre)[:40]!r}, which is not understood here: give "
            "the original checkpoint."
        )
    merges = _merges(keys, vocabulary)
    whole = pre in WHOLE_WORDS
    made = Tokenizer(models.BPE(vocabulary.numbers, merges, ignore_merges=whole))
    if splits == (GPT2,) or splits == (r"\p{N}", GPT2):
        words = pre_tokenizers.ByteLevel(add_prefix_space=False)
        digits = [pre_tokenizers.Digits(individual_digits=True)] if len(splits) > 1 else []
        made.pre_tokenizer = pre_tokenizers.Sequence([*digits, words]) if digits else words
    else:
        parts = [pre_tokenizers.Split(Regex(split), "isolated") for split in splits]
        made.pre_tokenizer = pre_tokenizers.Sequence(
            [*parts, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
        )
    if splits == (QWEN2,):
        made.normalizer = normalizers.NFC()
    made.decoder = decoders.ByteLevel()
    return made, whole


def _merges(keys: Keys, vocabulary: _Vocabulary) -> list[tuple[str, str]]:
    given = keys.raw("tokenizer.ggml.merges")
    if not isinstance(given, list):
        raise CorruptFile(f"{keys.file.name} holds no merges: download it again.")
    merges = []
    for merge in given:
        cut = merge.find(" ", 1)
        left, right = merge[:cut], merge[cut + 1 :]
        if cut < 0 or not {left, right, left + right} <= vocabulary.numbers.keys():
            raise CorruptFile(f"{keys.file.name} merges tokens that it does not have ({merge[:40]!r}): get it anew.")
        merges.append((left, right))
    return merges


def _sentencepiece(keys: Keys, vocabulary: _Vocabulary) -> Tokenizer:
    """SentencePiece's BPE: the pair whose result has the highest score is merged first."""
    keys.use("tokenizer.ggml.pre", "tokenizer.ggml.merges")  # llama.cpp reads neither here
    keys.only_whole("tokenizer.ggml.remove_extra_whitespaces", False)
    scores = keys.raw("tokenizer.ggml.scores")
    if scores is None or len(scores) < len(vocabulary.tokens):
        raise CorruptFile(f"{keys.file.name} holds no score for each token: download it again.")
    numbers = vocabulary.numbers
    joined = (
        (-float(scores[numbers[token]]), numbers[token], cut, token)
        for token in vocabulary.of(gguf.TokenType.NORMAL)
        for cut in range(1, len(token))
        if token[:cut] in numbers and token[cut:] in numbers
    )
    merges = [(token[:cut], token[cut:]) for _, _, cut, token in sorted(joined)]
    unknown = next(vocabulary.of(gguf.TokenType.UNKNOWN), None)
    made = Tokenizer(models.BPE(numbers, merges, unk_token=unknown, fuse_unk=True, byte_fallback=True))
    spaces = normalizers.Replace(" ", SPACE)
    prefix = keys.raw("tokenizer.ggml.add_space_prefix", True)
    made.normalizer = normalizers.Sequence([normalizers.Prepend(SPACE), spaces]) if prefix else spaces
    steps = [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    made.decoder = decoders.Sequence([*steps, decoders.Strip(" ", 1, 0)] if prefix else steps)
    return made


def _special(keys: Keys, vocabulary: _Vocabulary, kind: object) -> dict[str, int]:
    """Numbers of the special tokens by transformers' names; SentencePiece's have defaults in llama.cpp."""
    defaults = {"bos": 1, "eos": 2, "unknown": 0} if kind == "llama" else {}
    found = {}
    for name, called in BY_NAME.items():
        number = keys.raw(f"tokenizer.ggml.{name}_token_id", defaults.get(name))
        if isinstance(number, int) and 0 <= number < len(vocabulary.tokens):
            found[called] = number
    return found


def _add_special(keys: Keys, backend: Tokenizer, vocabulary: _Vocabulary) -> None:
    """Control tokens and those that the user defined are found whole in a text; Phi-3's swallow the spaces after."""
    strips = bool(PHI3.search(str(keys.raw("general.name", ""))))
    control = list(vocabulary.of(gguf.TokenType.CONTROL))
    user = list(vocabulary.of(gguf.TokenType.USER_DEFINED))
    backend.add_special_tokens(
        [AddedToken(token, normalized=False, rstrip=strips and token not in PHI3_KEEP_SPACES) for token in control]
    )
    backend.add_tokens([AddedToken(token, normalized=False, rstrip=strips) for token in user])


def _ends(keys: Keys, vocabulary: _Vocabulary, ids: dict[str, int]) -> tuple[int, ...]:
    numbers = [ids.get("eos"), *(keys.raw(f"tokenizer.ggml.{name}_token_id") for name in END_KEYS)]
    numbers += [vocabulary.numbers[token] for token in vocabulary.of(gguf.TokenType.CONTROL) if token in ENDS]
    known = (number for number in numbers if isinstance(number, int) and 0 <= number < len(vocabulary.tokens))
    return tuple(dict.fromkeys(known))


def _around(before: list[str], after: list[str], ids: dict[str, int], tokens: list[str]) -> Any:
    """A post-processor that puts tokens around a text."""
    pieces = {name: {"id": name, "ids": [ids[name]], "tokens": [tokens[ids[name]]]} for name in (*before, *after)}
    return processors.TemplateProcessing(
        single=[*before, "$A", *after],
        pair=[*before, "$A", *after, *(f"{name}:1" for name in before), "$B:1", *(f"{name}:1" for name in after)],
        special_tokens=list(pieces.values()),
    )
