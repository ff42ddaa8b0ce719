"""Checkpoint folders with tiny tokenizers for the tests of export, plain ones and ones whose blocks differ."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from analysis.model.describe import describe
from surgery.checkpoints.build import build_model
from surgery.checkpoints.save import save_checkpoint
from surgery.recipe.base import ModelReference
from surgery.recipe.recipe import Recipe
from surgery.structure.structure import BlockSpec, Part, Refit, Structure, output_of
from tests.tiny_models import VOCAB

TEXT = "The cat's mat, it's 42 o'clock; we'll see 1234 things in 99 days.\n\n  And more: the end, the cat and the mat."


def tokenizer(
    pre: Any = None, size: int = VOCAB, ignore_merges: bool = False, text: str = TEXT
) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer trained on `text`; GPT-2's pre-tokenizer unless one is given.

    It is trained without splitting, so that merges reach across everything: wherever another pre-tokenizer would split
    otherwise, the ids differ.
    """
    made = Tokenizer(models.BPE(ignore_merges=ignore_merges))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    made.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet() if size > 300 else []
    trainer = trainers.BpeTrainer(
        vocab_size=size, special_tokens=["<s>", "</s>"], initial_alphabet=alphabet, show_progress=False
    )
    made.train_from_iterator([text] * 4, trainer)
    made.pre_tokenizer = pre or pre_tokenizers.ByteLevel(add_prefix_space=False)
    return PreTrainedTokenizerFast(tokenizer_object=made, bos_token="<s>", eos_token="</s>")


def save(model: Any, folder: Path, words: Any = None) -> Path:
    """A plain checkpoint with a tiny tokenizer."""
    model.save_pretrained(folder)
    (words or tokenizer()).save_pretrained(folder)
    return folder


def save_edited(model: Any, specs: Sequence[BlockSpec], folder: Path, words: Any = None) -> Any:
    """Build what `specs` describe, save it as `build` does, and return the built model."""
    architecture = describe(model)
    built = build_model(model, architecture, Structure(architecture, tuple(specs)))
    save_checkpoint(built, words or tokenizer(), Recipe(model=ModelReference(id="tiny")), folder)
    return built.model


def with_bias(model: Any, spec: BlockSpec, part: Part) -> BlockSpec:
    """The spec with a random bias on a sublayer's output, as a compensation gives it."""
    path = output_of(describe(model).blocks[spec.source], part).module
    bias = torch.randn(model.config.hidden_size, generator=torch.Generator().manual_seed(spec.source)) * 0.2
    return replace(spec, biases=(part,), refit=Refit(f"{path} {spec.source}", {}, {path: bias}))


def sentencepiece(prepend: str, size: int = 400) -> PreTrainedTokenizerFast:
    """A SentencePiece-like tokenizer: bytes as fallback, and every merge into a token beside the others, by score.

    Args:
        prepend: `normalizer` (Llama 2), `metaspace` (Llama 2 in transformers 5) or `never` (Gemma).
        size: largest number of tokens.
    """
    special = ["<unk>", "<s>", "</s>", *(f"<0x{value:02X}>" for value in range(256))]
    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never")
    trained.train_from_iterator(
        [TEXT] * 4, trainers.BpeTrainer(vocab_size=size, special_tokens=special, show_progress=False)
    )
    vocabulary = trained.get_vocab()
    learnt = (token for token in vocabulary if token not in special and len(token) > 1)
    pieces = sorted(learnt, key=lambda token: vocabulary[token])
    merges = [
        (piece[:cut], piece[cut:])
        for piece in pieces
        for cut in range(1, len(piece))
        if piece[:cut] in vocabulary and piece[cut:] in vocabulary
    ]
    made = Tokenizer(models.BPE(vocabulary, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    if prepend == "metaspace":
        made.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always", split=False)
    else:
        replacing = normalizers.Replace(" ", "\u2581")
        both = normalizers.Sequence([normalizers.Prepend("\u2581"), replacing])
        made.normalizer = both if prepend == "normalizer" else replacing
    made.decoder = decoders.Sequence([decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()])
    made.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(tokenizer_object=made, unk_token="<unk>", bos_token="<s>", eos_token="</s>")
