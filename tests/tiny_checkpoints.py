"""Checkpoint directories for the tests of export: plain ones, and non-uniform ones written by hand."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from torch import nn
from transformers import PreTrainedTokenizerFast

from analysis.describe import describe
from analysis.modules import replace, shallow_copy, submodule
from surgery.narrow import build_block
from surgery.structure import BlockSpec
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


def save(model: Any, folder: Path) -> Path:
    """A plain checkpoint with a tiny tokenizer."""
    model.save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return folder


def build(model: nn.Module, specs: Sequence[BlockSpec]) -> nn.Module:
    """The model whose blocks are those of `specs`, over shared weights; its layers renumbered."""
    architecture = describe(model)
    new = shallow_copy(model)
    layers = submodule(new, architecture.block_list)
    blocks = []
    for number, spec in enumerate(specs):
        source = architecture.blocks[spec.source]
        block = shallow_copy(build_block(submodule(model, source.module), source, spec))
        for module in block.modules():
            if "layer_idx" in module.__dict__:
                module.__dict__["layer_idx"] = number
        blocks.append(block)
    replace(new, architecture.block_list, nn.ModuleList(blocks))
    backbone = submodule(new, architecture.backbone)
    backbone.__dict__["config"] = new.__dict__["config"] = _shortened(model.config, len(specs))
    assert isinstance(submodule(new, architecture.block_list), type(layers))
    return new.eval()


def _shortened(config: Any, count: int) -> Any:
    config = type(config)(**(config.to_dict() | {"num_hidden_layers": count, "layer_types": None}))
    config._attn_implementation = "eager"
    return config


def save_nonuniform(model: Any, specs: Sequence[BlockSpec], folder: Path, biases: Sequence[str] = ()) -> nn.Module:
    """Write the non-uniform format of `build` (config.json with per_layer_config) and return the reference model.

    Args:
        model: the whole model.
        specs: the kept blocks.
        folder: where to write.
        biases: linears, like "layers.1.mlp.down_proj", that get a random bias as compensation does.
    """
    folder.mkdir(parents=True, exist_ok=True)
    reference = build(model, specs)
    for path in biases:
        linear: Any = reference.get_submodule(f"model.{path}")
        linear._parameters["bias"] = nn.Parameter(torch.randn(linear.weight.shape[0]) * 0.2, requires_grad=False)
    config = {key: value for key, value in model.config.to_dict().items() if key != "layer_types"}
    config |= {"model_type": "model_surgery", "base_model_type": model.config.model_type}
    config["num_hidden_layers"] = len(specs)
    gone: list[str] = []
    per_layer: dict[str, dict[str, Any]] = {}
    for number, spec in enumerate(specs):
        own: dict[str, Any] = {}
        skip = [name for name, there in (("attention", spec.attention), ("mlp", spec.mlp)) if not there]
        counts = {
            "intermediate_size": len(spec.neurons),
            "num_attention_heads": len(spec.query_heads),
            "num_key_value_heads": len(spec.kv_heads),
        }
        own |= {key: count for key, count in counts.items() if count and count != config[key]}
        if skip:
            own["skip"] = skip
        if own:
            per_layer[f"{number:02d}"] = own
        norms = {"attention": "input_layernorm", "mlp": "post_attention_layernorm"}
        gone += [f"model.layers.{number}.{norms[name]}." for name in skip]
    config["per_layer_config"] = per_layer
    tensors = {
        name: tensor.detach().clone()
        for name, tensor in reference.state_dict().items()
        if not name.startswith(tuple(gone)) and not (name == "lm_head.weight" and config["tie_word_embeddings"])
    }
    save_file(tensors, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(config))
    return reference


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
    pieces = sorted((token for token in vocabulary if token not in special and len(token) > 1), key=vocabulary.get)
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
