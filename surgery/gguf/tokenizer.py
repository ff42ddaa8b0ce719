"""The tokenizer of a checkpoint in GGUF, from its files alone: vocabulary, merges, special tokens, chat template.

llama.cpp runs its own tokenizers. Byte-level BPE goes by the name of a pre-tokenizer that llama.cpp has in code, and
SentencePiece-like BPE by scores. A tokenizer that does something else is refused; none is guessed.
"""

from __future__ import annotations

import json
import re
from collections.abc import Container
from dataclasses import dataclass, field
from typing import Any

import gguf

from surgery.errors import CorruptFile, InputError
from surgery.folders.files import CheckpointFiles
from surgery.gguf.layout import Layout
from surgery.gguf.special_tokens import added_around, special_tokens

CL100K = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|"
    r"\s+(?!\S)|\s+"
)
"""The splitting expression of Llama 3, also used by OLMo 2, Phi-4 and SmolLM3."""
TEKKEN = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|"
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|"
    r"\s*[\r\n]+|\s+(?!\S)|\s+"
)
BYTE_LEVEL: dict[tuple[tuple[str, ...], bool], str] = {
    (("bytes with words",), False): "trillion",
    (("digits", "bytes with words"), False): "smollm",
    ((f"split {CL100K}", "bytes"), True): "llama-bpe",
    ((f"split {CL100K}", "bytes"), False): "dbrx",
    ((f"split {CL100K.replace('{1,3}', '')}", "bytes"), False): "qwen2",
    ((f"split {TEKKEN}", "bytes"), True): "tekken",
}
"""llama.cpp's name of a pre-tokenizer by its steps and `ignore_merges`; each is compared by running llama.cpp.

The name also decides whether llama.cpp leaves out spaces when it turns ids into text: of those that split alike, one
that keeps them is taken. `trillion` splits as `gpt-2` does.
"""
CLEANED = frozenset({"llama-bpe", "dbrx"})
"""Names under which llama.cpp leaves out spaces, and beside which none splits alike and keeps them."""
SPACE = "\u2581"
PHI3_TOKENS = ("<unk>", "<s>", "</s>", "<|endoftext|>")


@dataclass
class GgufTokenizer:
    """What is written under `tokenizer.ggml.*`."""

    model: str
    """`gpt2` for byte-level BPE, `llama` for SentencePiece's."""
    pre: str
    tokens: list[str]
    types: list[gguf.TokenType]
    merges: list[str] = field(default_factory=list)
    scores: list[float] = field(default_factory=list)
    special: dict[str, int] = field(default_factory=dict)
    """By the name of their key, see `special_tokens`."""
    add_bos: bool = False
    add_eos: bool = False
    add_space_prefix: bool = False
    chat_template: str = ""

    strips: bool = False
    """Whether special tokens swallow the spaces after them."""
    notes: list[str] = field(default_factory=list)
    """Texts that llama.cpp tokenizes otherwise, one sentence each."""

    def model_name(self, name: str) -> str:
        """A name for the file, from which llama.cpp takes how special tokens treat spaces.

        It strips the spaces after them in models with "phi-3" in their name, and only there; and it does not load such
        a model without Phi-3's own tokens.
        """
        if self.strips and self._is_phi3:
            return f"Phi-3 {name}"
        return re.sub("phi-?3", "phi 3", name, flags=re.IGNORECASE)

    @property
    def _is_phi3(self) -> bool:
        return all(token in self.tokens for token in PHI3_TOKENS)

    def write(self, writer: gguf.GGUFWriter) -> None:
        """Add the keys."""
        writer.add_tokenizer_model(self.model)
        writer.add_tokenizer_pre(self.pre)
        writer.add_token_list(self.tokens)
        writer.add_token_types(self.types)
        if self.model == "llama":
            writer.add_token_scores(self.scores)
            writer.add_add_space_prefix(self.add_space_prefix)
        else:
            writer.add_token_merges(self.merges)
        for name, number in self.special.items():
            writer.add_uint32(getattr(gguf.Keys.Tokenizer, f"{name.upper()}_ID"), number)
        writer.add_add_bos_token(self.add_bos)
        writer.add_add_eos_token(self.add_eos)
        if self.chat_template:
            writer.add_chat_template(self.chat_template)


def read_tokenizer(files: CheckpointFiles, layout: Layout) -> GgufTokenizer:
    """Translate tokenizer.json, tokenizer_config.json and the chat template.

    Raises:
        CorruptFile: a file is absent or damaged.
        InputError: llama.cpp has no tokenizer that does the same.
    """
    document = files.json("tokenizer.json")
    settings: dict[str, Any] = {}
    for name in ("special_tokens_map.json", "tokenizer_config.json"):  # the first is of older checkpoints
        settings |= files.json(name) if files.has(name) else {}
    try:
        left_out = _without_rows(document, layout.vocabulary_size)
        tokens, types = _vocabulary(document, layout.vocabulary_size)
        made = _byte_level(document, tokens, types) or _sentencepiece(document, tokens, types)
        made.special, notes = special_tokens(files, settings, tokens, types)
        made.notes += notes
        made.add_bos, made.add_eos = added_around(document, made.special)
    except (KeyError, TypeError, IndexError, AttributeError) as error:
        raise CorruptFile(
            f"tokenizer.json of {files.directory.name} is malformed ({type(error).__name__}: {error}): take the "
            "file of the original checkpoint."
        ) from None
    if left_out:
        made.notes.append(
            f"{len(left_out)} tokens have no row in the embeddings and are left out ({left_out[0]!r:.40} first): texts "
            "that hold them are split otherwise."
        )
    if made.pre in CLEANED:
        made.notes.append("llama.cpp leaves out spaces before punctuation where it writes a whole answer at once.")
    made.strips = any(token.get("rstrip") and token["special"] for token in document.get("added_tokens") or [])
    if made.strips and not made._is_phi3:
        made.notes.append("llama.cpp keeps the spaces after special tokens, which this tokenizer strips.")
    made.chat_template = _chat_template(files, settings)
    return made


def _without_rows(document: dict[str, Any], rows: int) -> list[str]:
    """Take tokens that have no row out of a tokenizer, with every merge that needs one; gives their texts.

    Raises InputError: it is not BPE.
    """
    model, added = document["model"], document.get("added_tokens") or []
    if model["type"] != "BPE":
        raise InputError(
            f"llama.cpp has no tokenizer like this one (model {str(model['type'])[:40]!r}): GGUF export needs "
            "byte-level BPE or SentencePiece BPE."
        )
    every = [*model["vocab"].items(), *((token["content"], token["id"]) for token in added)]
    gone = sorted({token for token, number in every if number >= rows})
    if gone:
        lost = set(gone)
        model["vocab"] = {token: number for token, number in model["vocab"].items() if number < rows}
        model["merges"] = [pair for pair in _pairs(model) if lost.isdisjoint((*pair, "".join(pair)))]
        document["added_tokens"] = [token for token in added if token["id"] < rows]
    return gone


def _vocabulary(document: dict[str, Any], rows: int) -> tuple[list[str], list[gguf.TokenType]]:
    """Tokens and their types for every row of the embeddings; rows without a token get a name of their own."""
    model, added = document["model"], document.get("added_tokens") or []
    ids = {**model["vocab"], **{token["content"]: token["id"] for token in added}}
    tokens = [_unlike(f"[PAD{number}]", ids) for number in range(rows)]
    types = [gguf.TokenType.UNUSED] * rows
    for token, number in ids.items():
        tokens[number], types[number] = token, gguf.TokenType.NORMAL
    if model.get("byte_fallback"):
        for value in range(256):
            if (number := ids.get(f"<0x{value:02X}>")) is not None:
                types[number] = gguf.TokenType.BYTE
    for token in added:
        types[token["id"]] = gguf.TokenType.CONTROL if token["special"] else gguf.TokenType.USER_DEFINED
    if model.get("unk_token") in ids and model.get("byte_fallback"):
        types[ids[model["unk_token"]]] = gguf.TokenType.UNKNOWN
    return tokens, types


def _unlike(name: str, known: Container[str]) -> str:
    """The name, with a sign more before its bracket until no token is called so."""
    while name in known:
        name = f"{name[:-1]}_]"
    return name


def _byte_level(document: dict[str, Any], tokens: list[str], types: list[gguf.TokenType]) -> GgufTokenizer | None:
    """Byte-level BPE; None if the tokenizer is not of that kind."""
    steps = _steps(document.get("pre_tokenizer"))
    if not any(step.startswith("bytes") for step in steps):
        return None
    model = document["model"]
    normaliser = (document.get("normalizer") or {}).get("type")
    pre = BYTE_LEVEL.get((steps, bool(model.get("ignore_merges"))))
    if pre is None or normaliser not in (None, "NFC") or model.get("continuing_subword_prefix"):
        what = ", ".join([*steps, *([f"normalizer {normaliser}"] if normaliser else [])])
        raise InputError(
            f"llama.cpp has no pre-tokenizer known to be the same as this tokenizer's ({what[:160]}): use the "
            "checkpoint with transformers."
        )
    made = GgufTokenizer("gpt2", pre, tokens, types, merges=[" ".join(pair) for pair in _pairs(model)])
    if normaliser == "NFC":
        made.notes.append("llama.cpp does not compose characters (NFC) before it tokenizes, this tokenizer does.")
    return made


def _steps(pre_tokenizer: dict[str, Any] | None) -> tuple[str, ...]:
    """The pre-tokenizer's steps as plain words, every setting that matters included."""
    if pre_tokenizer is None:
        return ()
    kind = pre_tokenizer["type"]
    if kind == "Sequence":
        return tuple(step for part in pre_tokenizer["pretokenizers"] for step in _steps(part))
    settings = {key: value for key, value in pre_tokenizer.items() if key not in ("type", "trim_offsets")}
    if kind == "ByteLevel" and not settings.get("add_prefix_space"):
        return ("bytes with words" if settings.get("use_regex", True) else "bytes",)
    if kind == "Digits" and settings.get("individual_digits"):
        return ("digits",)
    if kind == "Split" and settings["behavior"] == "Isolated" and not settings.get("invert"):
        return (f"split {settings['pattern'].get('Regex')}",)
    return (f"{'bytes' if kind == 'ByteLevel' else kind} {json.dumps(settings, sort_keys=True, ensure_ascii=False)}",)


def _pairs(model: dict[str, Any]) -> list[list[str]]:
    """Merges as pairs; older files write one string with a space between."""
    return [merge.split(" ", 1) if isinstance(merge, str) else list(merge) for merge in model["merges"]]


def _sentencepiece(document: dict[str, Any], tokens: list[str], types: list[gguf.TokenType]) -> GgufTokenizer:
    """SentencePiece's BPE (Llama 2, Mistral, Gemma, Phi-3): spaces as U+2581, bytes as fallback.

    llama.cpp merges the pair whose result has the highest score, whatever the pair. That is the same as a list of
    merges if the merges into one token stand together and none is missing.
    """
    model = document["model"]
    prefix = _space_prefix(document)
    if prefix is None or not model.get("byte_fallback") or model.get("ignore_merges"):
        raise InputError(
            "llama.cpp has no tokenizer known to be the same as this one: GGUF export needs byte-level BPE, or BPE "
            "with byte fallback that writes spaces as U+2581."
        )
    order: dict[str, int] = {}
    last = ""
    known = set()
    for left, right in _pairs(model):
        known.add((left, right))
        if (whole := left + right) != last and whole in order:
            raise InputError(
                f"llama.cpp cannot express the order of this tokenizer's merges (into {whole[:40]!r}): use the "
                "checkpoint with transformers."
            )
        last = whole
        order.setdefault(whole, len(order))
    vocabulary = model["vocab"]
    for whole in order:
        for cut in range(1, len(whole)):
            pair = (whole[:cut], whole[cut:])
            if pair[0] in vocabulary and pair[1] in vocabulary and pair not in known:
                raise InputError(
                    f"llama.cpp would join {pair[0][:20]!r} and {pair[1][:20]!r}, which this tokenizer does not: use "
                    "the checkpoint with transformers."
                )
    scores = [-float(order.get(token, len(order))) for token in tokens]
    made = GgufTokenizer("llama", "default", tokens, types, scores=scores, add_space_prefix=prefix)
    if prefix and document.get("pre_tokenizer"):
        made.notes.append("llama.cpp puts a space before every text, this tokenizer only where there is none.")
    return made


def _space_prefix(document: dict[str, Any]) -> bool | None:
    """Whether a space is put before the text; None if spaces are not written as U+2581."""
    normaliser, pre = document.get("normalizer") or {}, document.get("pre_tokenizer") or {}
    parts = normaliser.get("normalizers", [normaliser] if normaliser else [])
    kinds = [(part["type"], part.get("prepend") or part.get("content")) for part in parts]
    if kinds in ([("Prepend", SPACE), ("Replace", SPACE)], [("Replace", SPACE)]):
        return len(kinds) == 2
    if not kinds and pre.get("type") == "Metaspace" and pre.get("replacement") == SPACE and pre.get("split") is False:
        return bool(pre.get("prepend_scheme") != "never")
    return None


def _chat_template(files: CheckpointFiles, settings: dict[str, Any]) -> str:
    """The default chat template, empty if there is none."""
    if files.has("chat_template.jinja"):
        return (files.directory / "chat_template.jinja").read_text("utf-8")
    given = settings.get("chat_template") or ""
    if isinstance(given, list):
        given = next((entry["template"] for entry in given if entry.get("name") == "default"), "")
    return str(given)
