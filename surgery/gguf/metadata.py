"""The keys of a GGUF file: sizes per block, rotary embeddings, the family's own, the tokenizer."""

from __future__ import annotations

import gguf

from surgery.folders.files import CheckpointFiles
from surgery.gguf.families import needed
from surgery.gguf.layout import Layout
from surgery.gguf.mixes import file_type
from surgery.gguf.rope import add_rope
from surgery.gguf.sampling import add_sampling, generation_settings
from surgery.gguf.tokenizer import GgufTokenizer


def add_metadata(
    writer: gguf.GGUFWriter, files: CheckpointFiles, layout: Layout, tokenizer: GgufTokenizer, type_name: str, name: str
) -> None:
    """Write every key but the tensors: sizes per block, rotary embeddings, the family's own, the tokenizer.

    Raises:
        InputError: llama.cpp cannot express something; the message says what.
    """
    family, blocks = layout.family, layout.blocks
    writer.add_type("model")
    writer.add_name(tokenizer.model_name(name))
    writer.add_file_type(file_type(type_name))
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    writer.add_block_count(len(blocks))
    writer.add_context_length(layout.context_length)
    writer.add_embedding_length(layout.hidden_size)
    writer.add_vocab_size(layout.vocabulary_size)
    widths, heads, kv = ([getattr(block, key) for block in blocks] for key in ("width", "query_heads", "kv_heads"))
    writer.add_feed_forward_length(widths if layout.mixed else widths[0])
    writer.add_head_count(heads if layout.mixed else heads[0])
    writer.add_head_count_kv(kv if layout.mixed else kv[0])
    writer.add_key_length(layout.head_size)
    writer.add_value_length(layout.head_size)
    epsilon = float(needed(files.config, family.names["epsilon"]))
    (writer.add_layer_norm_eps if "layer_norm" in family.names["epsilon"] else writer.add_layer_norm_rms_eps)(epsilon)
    add_rope(writer, layout, files.config)
    family.details(files.config, writer)
    add_sampling(writer, generation_settings(files))
    tokenizer.write(writer)
