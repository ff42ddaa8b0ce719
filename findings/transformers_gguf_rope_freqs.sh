#!/usr/bin/env bash
# transformers 5.23.0 opens a GGUF file of a Llama 3.1 or 3.2 without its rotary scaling, and says nothing.
#
# llama.cpp's converter writes the scaling `rope_type: llama3` as a tensor, rope_freqs.weight, and as no key. The
# reader of transformers has no parameter for that tensor, so the configuration it makes says rope_type `default`.
# Perplexities of such files are too high or too low at every length, and what is saved from them has lost the scaling.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 transformers==5.23.0 accelerate==1.15.0 gguf==0.19.0
"$work/venv/bin/python" - "$work" <<'PY'
import sys
import warnings
from pathlib import Path

import gguf
import numpy as np
import transformers

warnings.simplefilter("error")  # a warning would be an answer too
path, hidden, heads, blocks, words = Path(sys.argv[1]) / "tiny.gguf", 64, 4, 2, 32
rng = np.random.default_rng(0)
writer = gguf.GGUFWriter(path, "llama")
writer.add_context_length(512)
writer.add_embedding_length(hidden)
writer.add_block_count(blocks)
writer.add_feed_forward_length(96)
writer.add_head_count(heads)
writer.add_head_count_kv(heads)
writer.add_layer_norm_rms_eps(1e-5)
writer.add_rope_freq_base(10000.0)
writer.add_rope_dimension_count(hidden // heads)
writer.add_vocab_size(words)


def add(name: str, *shape: int) -> None:
    writer.add_tensor(name, rng.normal(0, 0.02, shape).astype(np.float32))


add("token_embd.weight", words, hidden)
add("output_norm.weight", hidden)
for block in range(blocks):
    for name in ("attn_norm", "ffn_norm"):
        add(f"blk.{block}.{name}.weight", hidden)
    for name in ("attn_q", "attn_k", "attn_v", "attn_output"):
        add(f"blk.{block}.{name}.weight", hidden, hidden)
    add(f"blk.{block}.ffn_gate.weight", 96, hidden)
    add(f"blk.{block}.ffn_up.weight", 96, hidden)
    add(f"blk.{block}.ffn_down.weight", hidden, 96)
writer.add_tensor("rope_freqs.weight", np.linspace(1, 8, hidden // heads // 2).astype(np.float32))
writer.write_header_to_file()
writer.write_kv_data_to_file()
writer.write_tensors_to_file()
writer.close()

model, info = transformers.AutoModelForCausalLM.from_pretrained(
    str(path.parent), gguf_file=path.name, output_loading_info=True
)
found = model.config.rope_parameters
print("transformers", transformers.__version__, "gguf", "0.19.0")
print("rope_parameters:", found)
print("unexpected tensors that it names:", sorted(info["unexpected_keys"]))
assert found["rope_type"] == "default", "the scaling is taken now"
assert not info["unexpected_keys"], "the tensor is named now"
PY
echo "as described"
