"""What a GGUF file says of its model, as transformers says it.

This is the inverse of what the writer does, by the same table of families. Where a key is absent, llama.cpp's default
counts.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from surgery.errors import CorruptFile, NotACausalLanguageModel, UnsupportedArchitecture
from surgery.gguf.families import ATTENTION_IN, EVERY_BIAS, FAMILIES, SLIDING
from surgery.gguf.header import GgufFile
from surgery.gguf.keys import Keys
from surgery.gguf.layout import FILLER_WIDTH, needs_attention
from surgery.gguf.source_rope import read_rope

FULL = "full_attention"
Sizes = dict[str, int]


def _families() -> dict[str, str]:
    """Model type of transformers by llama.cpp's architecture; the first of several that it computes alike."""
    found: dict[str, str] = {}
    for name, family in FAMILIES.items():
        found.setdefault(family.architecture, name)
        if not family.no_mixed:
            found.setdefault(family.mixed, name)
    return found


@dataclass(frozen=True)
class Source:
    """What a file says of its model."""

    family_name: str
    """Model type of transformers."""
    config: dict[str, Any]
    """Settings of the model type's configuration class."""
    differing: dict[int, dict[str, Any]]
    """`per_layer_config`; empty where all blocks are alike."""
    biases: dict[int, tuple[str, ...]]
    """By block, the roles that have a bias there and none in the model type's own blocks."""
    copied_head: bool
    """Whether output.weight is nothing but a copy of the embeddings."""


def read_source(file: GgufFile, keys: Keys) -> Source:
    """The model type and its settings.

    Raises:
        NotACausalLanguageModel: an adapter, a projector or the like.
        UnsupportedArchitecture: something in the file is not understood; the message names it.
        CorruptFile: a key is absent, or says what cannot be.
    """
    kind = keys.raw("general.type", "model")
    if kind != "model":
        raise NotACausalLanguageModel(
            f"{file.name} holds no model but something of the type {str(kind)[:40]!r}: give the file of the model."
        )
    known = _families()
    if keys.architecture not in known:
        raise UnsupportedArchitecture(
            f"{file.name} is of the architecture {keys.architecture[:40]!r}, whose keys are not all understood here: "
            f"give the original checkpoint, or a file of {', '.join(sorted(known))}."
        )
    keys.use("general.alignment", "split.no", "split.count", "split.tensors.count")
    blocks = keys.whole("block_count")
    if blocks > len(file.tensors):
        raise CorruptFile(f"{file.name} announces blocks that it does not hold: download it again.")
    return _read(file, keys, known[keys.architecture], blocks)


def _read(file: GgufFile, keys: Keys, name: str, blocks: int) -> Source:
    sizes, differing = _blocks(file, keys, blocks)
    biases = _biases(file)
    own = _own_biases(name, keys, blocks, biases)
    if own == ATTENTION_IN and name == "llama":
        name = "qwen2"
    hidden = keys.whole("embedding_length")
    tied, copied = _head(file, name, hidden)
    config = _sizes(keys, name, sizes, hidden, bool(differing)) | {
        "vocab_size": file.tensors["token_embd.weight"].shape[0],
        "tie_word_embeddings": tied,
        **({"attention_bias": True} if "attn_output" in own else {}),
        **({"mlp_bias": True} if "ffn_down" in own else {}),
    }
    if name in DETAILS:
        config |= DETAILS[name](keys, config)
    extra = {number: tuple(sorted(roles - own)) for number, roles in biases.items() if roles - own}
    return Source(name, config, differing, {} if name == "gpt2" else extra, copied)


def _head(file: GgufFile, name: str, hidden: int) -> tuple[bool, bool]:
    """Whether the head is the embeddings, and whether the file holds a copy of them in its place."""
    embeddings, head = file.tensors.get("token_embd.weight"), file.tensors.get("output.weight")
    if embeddings is None or embeddings.shape[1:] != (hidden,):
        raise CorruptFile(f"{file.name} lacks embeddings of {hidden} columns: download it again.")
    if head is None:
        return True, False
    same = (head.kind, head.shape) == (embeddings.kind, embeddings.shape) and (head.data == embeddings.data).all()
    copied = bool(same and (FAMILIES[name].own_head or FAMILIES[name].tied))
    return copied, copied


def _sizes(keys: Keys, name: str, sizes: list[Sizes], hidden: int, differing: bool) -> dict[str, Any]:
    """Sizes, epsilon and rotary embeddings; of blocks that differ, the largest."""
    family = FAMILIES[name]
    names = family.names
    heads, kv_heads, width = (max(block[key] for block in sizes) for key in ("heads", "kv_heads", "width"))
    context = keys.whole("context_length")
    head_size = keys.whole("attention.key_length", hidden // heads or 1)
    for same in ("attention.value_length", "attention.key_length_swa", "attention.value_length_swa"):
        keys.only(same, head_size)
    epsilon = "attention.layer_norm_epsilon" if "layer_norm" in names["epsilon"] else "attention.layer_norm_rms_epsilon"
    config: dict[str, Any] = {
        names["hidden_size"]: hidden,
        names["blocks"]: len(sizes),
        names["heads"]: heads,
        names["width"]: width,
        names["context"]: context,
        names["epsilon"]: keys.number(epsilon),
    }
    if family.rotary:
        config["num_key_value_heads"] = kv_heads
        config["rope_parameters"] = read_rope(keys, family, context, head_size)
        if not family.square or differing or head_size * heads != hidden:
            config["head_dim"] = head_size
    return config


def _blocks(file: GgufFile, keys: Keys, blocks: int) -> tuple[list[Sizes], dict[int, dict[str, Any]]]:
    """Sizes of every block, and `per_layer_config` where they differ."""
    heads = keys.per_block("attention.head_count", blocks)
    kv_heads = keys.per_block("attention.head_count_kv", blocks, heads)
    widths = keys.per_block("feed_forward_length", blocks)
    sizes = [
        {"heads": query, "kv_heads": kv, "width": width}
        for query, kv, width in zip(heads, kv_heads, widths, strict=True)
    ]
    for number, block in enumerate(sizes):
        if not block["width"] or (block["heads"] and (not block["kv_heads"] or block["heads"] % block["kv_heads"])):
            raise UnsupportedArchitecture(
                f"Block {number} of {file.name} has no MLP, or heads that do not share evenly: such blocks are not "
                "understood here."
            )
    gone = [_gone(keys, number, block) for number, block in enumerate(sizes)]
    if not any(block["heads"] for block in sizes):
        raise UnsupportedArchitecture(f"No block of {file.name} has an attention: such models are not understood here.")
    if len({tuple(block.values()) for block in sizes}) == 1 and not any(gone):
        return sizes, {}
    return sizes, {number: _differing(block, gone[number]) for number, block in enumerate(sizes)}


def _differing(block: Sizes, gone: list[str]) -> dict[str, Any]:
    own: dict[str, Any] = {"skip": gone} if gone else {}
    if "attention" not in gone:
        own |= {"num_attention_heads": block["heads"], "num_key_value_heads": block["kv_heads"]}
    return own if "mlp" in gone else own | {"intermediate_size": block["width"]}


def _gone(keys: Keys, number: int, block: Sizes) -> list[str]:
    """Sublayers that a block lacks, those that are there as zeros alone because llama.cpp wants some included."""

    def zeros(role: str, *biased: str) -> bool:
        tensors = keys.file.tensors
        stored = tensors.get(f"blk.{number}.{role}.weight")
        biases = (f"blk.{number}.{name}.bias" in tensors for name in (role, *biased))
        return stored is not None and not any(biases) and not stored.values().any()

    filler = needs_attention(keys.architecture, number) and (block["heads"], block["kv_heads"]) == (1, 1)
    gone = ["attention"] if not block["heads"] or (filler and zeros("attn_output", *ATTENTION_IN)) else []
    return gone + (["mlp"] if block["width"] == FILLER_WIDTH and zeros("ffn_down", "ffn_up", "ffn_gate") else [])


def _biases(file: GgufFile) -> dict[int, frozenset[str]]:
    """By block, the roles of linears that have a bias."""
    found: dict[int, set[str]] = defaultdict(set)
    for name in file.tensors:
        parts = name.split(".")
        if len(parts) == 4 and parts[0] == "blk" and parts[3] == "bias" and parts[2] in EVERY_BIAS:
            found[int(parts[1])].add(parts[2])
    return {number: frozenset(roles) for number, roles in sorted(found.items())}


def _own_biases(name: str, keys: Keys, blocks: int, biases: dict[int, frozenset[str]]) -> frozenset[str]:
    """The biases that are settings of the model type: those of whole groups that every block has."""
    if name == "qwen2":
        return ATTENTION_IN
    if name not in ("llama", "granite", "smollm3"):
        return frozenset()
    everywhere = frozenset(EVERY_BIAS).intersection(*(biases.get(number, ()) for number in range(blocks)))
    own: frozenset[str] = frozenset()
    for group in (ATTENTION_IN | {"attn_output"}, EVERY_BIAS - ATTENTION_IN - {"attn_output"}):
        own |= group if group <= everywhere else frozenset()
    return ATTENTION_IN if keys.deci and not own and everywhere >= ATTENTION_IN else own


def _sliding_types(keys: Keys, blocks: int, period: int) -> list[str]:
    """The kind of each block's attention: by llama.cpp's period, or one flag a block."""
    given = keys.raw(f"{keys.architecture}.attention.sliding_window_pattern", period)
    if hasattr(given, "__len__"):
        slides = [bool(value) for value in keys.per_block("attention.sliding_window_pattern", blocks)]
    else:
        period = keys.whole("attention.sliding_window_pattern", period, 0)
        slides = [not period or number % period < period - 1 for number in range(blocks)]
    return [SLIDING if slide else FULL for slide in slides]


def _gemma_scale(config: dict[str, Any], large: int) -> int:
    """What llama.cpp divides the scores by, squared."""
    if config["num_hidden_layers"] == large:
        return int(config["hidden_size"] // config["num_attention_heads"])
    return int(config["head_dim"])


def _gemma2(keys: Keys, config: dict[str, Any]) -> dict[str, Any]:
    keys.only("rope.freq_base_swa", config["rope_parameters"]["rope_theta"])
    return {
        "sliding_window": keys.whole("attention.sliding_window", 4096),
        "layer_types": _sliding_types(keys, config["num_hidden_layers"], 2),
        "attn_logit_softcapping": keys.number("attn_logit_softcapping", 50.0),
        "final_logit_softcapping": keys.number("final_logit_softcapping", 30.0) or None,
        "query_pre_attn_scalar": _gemma_scale(config, 46),
    }


def _gemma3(keys: Keys, config: dict[str, Any]) -> dict[str, Any]:
    window = keys.whole("attention.sliding_window", 0, 0)
    types = _sliding_types(keys, config["num_hidden_layers"], 6) if window else [FULL] * config["num_hidden_layers"]
    local = keys.number("rope.freq_base_swa", 10000.0)
    return {
        "sliding_window": window or config["max_position_embeddings"],
        "layer_types": types,
        "rope_parameters": {
            FULL: config["rope_parameters"],
            SLIDING: {"rope_type": "default", "rope_theta": local},
        },
        "final_logit_softcapping": keys.number("final_logit_softcapping", 0.0) or None,
        "query_pre_attn_scalar": _gemma_scale(config, 62),
    }


def _granite(keys: Keys, config: dict[str, Any]) -> dict[str, Any]:
    """llama.cpp leaves out a scale of 0, and with this flag off all rotary embeddings."""
    if not keys.raw("granite.rope.scaling.finetuned", True):
        keys.only("rope.scaling.finetuned", True)
    return {
        "embedding_multiplier": keys.number("embedding_scale", 0.0) or 1.0,
        "residual_multiplier": keys.number("residual_scale", 0.0) or 1.0,
        "attention_multiplier": keys.number("attention.scale", 0.0) or config["head_dim"] ** -0.5,
        "logits_scaling": keys.number("logit_scale"),
    }


def _phi3(keys: Keys, config: dict[str, Any]) -> dict[str, Any]:
    return {"sliding_window": keys.whole("attention.sliding_window", 0, 0) or None}


DETAILS: dict[str, Callable[[Keys, dict[str, Any]], dict[str, Any]]] = {
    "gemma2": _gemma2,
    "gemma3_text": _gemma3,
    "granite": _granite,
    "phi3": _phi3,
}
"""What one model type alone says: from the keys and the settings so far, further settings."""
