"""GGUF files read back with the official reader: tensors, keys, types, tokenizer; and everything that is refused."""

from __future__ import annotations

import json
import re
import resource
import weakref
from functools import partial
from threading import Event

import gguf
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedTokenizerFast,
)

from surgery.errors import (
    Cancelled,
    CorruptFile,
    InputError,
    QuantisedCheckpoint,
    UnknownModel,
    UnsupportedArchitecture,
)
from surgery.folders.files import CheckpointFiles
from surgery.gguf.families import sliding_period
from surgery.gguf.write import write_gguf
from surgery.models.from_checkpoint import understood_files
from surgery.structure.structure import BlockSpec
from tests import tiny_checkpoints, tiny_models
from tests.tiny_models import FULL, SLIDING, VOCAB, WINDOW

make = tiny_models._make
GQA = tiny_models._GQA
QUERY, KV, NEURONS = tuple(range(6)), (0, 1), tuple(range(80))
WHOLE = [BlockSpec(index, QUERY, KV, NEURONS) for index in range(4)]


@pytest.fixture
def saved(tmp_path):
    """A function that saves a tiny model of a family and gives the folder."""
    return lambda family="llama", words=None: tiny_checkpoints.save(
        tiny_models.build(family), tmp_path / family, words or tiny_checkpoints.tokenizer()
    )


def read(path):
    """Keys and tensors of a GGUF file."""
    reader = gguf.GGUFReader(path)
    keys = {name: field.contents() for name, field in reader.fields.items()}
    return keys, {tensor.name: tensor for tensor in reader.tensors}


def values(tensor):
    return gguf.quants.dequantize(tensor.data, tensor.tensor_type)


def edit_json(path, **changes):
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def halves(rows, head_size):
    """Rows of Q or K as transformers has them, row by row from llama.cpp's neighbouring pairs."""
    out = np.empty_like(rows)
    for row in range(rows.shape[0]):
        head, place = divmod(row, head_size)
        out[head * head_size + place // 2 + (place % 2) * head_size // 2] = rows[row]
    return out


def test_float32_tensors_are_bit_equal(saved, tmp_path):
    folder = saved("llama_bias")
    made = write_gguf(folder, tmp_path / "model.gguf", "F32")
    _, found = read(made.path)
    state = load_file(folder / "model.safetensors")
    assert made.bytes == made.path.stat().st_size and made.tensors == len(found) == len(state)
    assert made.parameters == sum(tensor.numel() for tensor in state.values())
    parts = {
        "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
        "self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up",
        "mlp.down_proj": "ffn_down", "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm",
    }  # fmt: skip
    whole = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
    for name, tensor in state.items():
        module, _, kind = name.rpartition(".")
        block = re.fullmatch(r"model\.layers\.(\d+)\.(.*)", module)
        gguf_name = f"blk.{block[1]}.{parts[block[2]]}" if block else whole[module]
        got = values(found[f"{gguf_name}.{kind}"])
        if gguf_name.endswith(("attn_q", "attn_k")):
            got = halves(got, 8)
        assert np.array_equal(got.reshape(tensor.shape), tensor.numpy()), name


def test_gains_of_gemma_and_transposed_linears_of_gpt2(saved, tmp_path):
    folder = saved("gemma")
    _, found = read(write_gguf(folder, tmp_path / "gemma.gguf", "F32").path)
    stored = load_file(folder / "model.safetensors")["model.layers.2.input_layernorm.weight"].numpy()
    assert np.array_equal(values(found["blk.2.attn_norm.weight"]), stored + np.float32(1))
    folder = saved("gpt2")
    _, found = read(write_gguf(folder, tmp_path / "gpt2.gguf", "F32").path)
    stored = load_file(folder / "model.safetensors")["transformer.h.1.mlp.c_fc.weight"].numpy()
    assert np.array_equal(values(found["blk.1.ffn_up.weight"]), stored.T)


def test_keys_of_a_uniform_model(tmp_path):
    model = make(LlamaForCausalLM, LlamaConfig, GQA, head_dim=16, rms_norm_eps=3e-5, rope_theta=5000.0)
    folder = tiny_checkpoints.save(model, tmp_path / "wide")
    keys, _ = read(write_gguf(folder, tmp_path / "model.gguf", "F16").path)
    expected = {
        "general.architecture": "llama", "general.file_type": 1, "llama.block_count": 4, "llama.context_length": 128,
        "llama.embedding_length": 48, "llama.feed_forward_length": 80, "llama.attention.head_count": 6,
        "llama.attention.head_count_kv": 2, "llama.attention.key_length": 16, "llama.attention.value_length": 16,
        "llama.rope.dimension_count": 16, "llama.vocab_size": VOCAB,
        "llama.rope.freq_base": pytest.approx(model.config.rope_parameters["rope_theta"]),
        "llama.attention.layer_norm_rms_epsilon": pytest.approx(3e-5),
    }  # fmt: skip
    assert {name: keys.get(name) for name in expected} == expected
    assert "llama.rope.scaling.type" not in keys


def test_keys_and_tensors_of_blocks_that_differ(tmp_path):
    specs = [BlockSpec(0, (), (), NEURONS), BlockSpec(1, QUERY, KV, ()), BlockSpec(2, (0, 1, 2), (0,), NEURONS[:56]),
             BlockSpec(3, (), (), NEURONS)]  # fmt: skip
    reference = tiny_checkpoints.save_edited(tiny_models.build("llama_tied"), specs, tmp_path / "mixed")
    made = write_gguf(tmp_path / "mixed", tmp_path / "model.gguf", "F32")
    keys, found = read(made.path)
    assert keys["general.architecture"] == "deci" == made.architecture
    assert keys["deci.attention.head_count"] == [1, 6, 3, 0]
    assert keys["deci.attention.head_count_kv"] == [1, 2, 1, 0]
    assert keys["deci.feed_forward_length"] == [80, 32, 56, 80]
    assert "output.weight" not in found and not any(name.startswith("blk.3.attn") for name in found)
    # What llama.cpp's graph needs and the model lacks is there as zeros, and said.
    assert not values(found["blk.0.attn_output.weight"]).any() and not values(found["blk.1.ffn_down.weight"]).any()
    assert len(made.notes) == 2
    zeros = 2 * 8 * 48 + 2 * 8 * 48 + 48 + 3 * 32 * 48 + 48
    assert made.parameters == sum(p.numel() for p in reference.parameters()) + zeros


def test_q8_0_by_its_definition_and_f16_where_rows_are_no_whole_blocks(tmp_path):
    model = make(LlamaForCausalLM, LlamaConfig, {**GQA, "hidden_size": 96, "intermediate_size": 80})
    folder = tiny_checkpoints.save(model, tmp_path / "model")
    keys, found = read(write_gguf(folder, tmp_path / "model.gguf", "Q8_0").path)
    assert keys["general.file_type"] == 7
    kinds = {name: tensor.tensor_type.name for name, tensor in found.items()}
    assert kinds["blk.0.ffn_up.weight"] == kinds["token_embd.weight"] == "Q8_0"
    assert kinds["blk.3.ffn_down.weight"] == "F16"
    assert kinds["blk.2.attn_norm.weight"] == kinds["output_norm.weight"] == "F32"
    weight = model.model.layers[1].mlp.up_proj.weight.detach().numpy()
    got = values(found["blk.1.ffn_up.weight"])
    for row in range(0, 80, 13):
        for start in range(0, 96, 32):
            block = weight[row, start : start + 32]
            scale = np.abs(block).max() / 127
            expected = np.round(block / scale) * np.float32(np.float16(scale))
            np.testing.assert_allclose(got[row, start : start + 32], expected, rtol=1e-6)
    assert np.array_equal(values(found["blk.1.ffn_down.weight"]),
                          model.model.layers[1].mlp.down_proj.weight.detach().numpy().astype(np.float16))  # fmt: skip


def test_a_sliding_window_shortens_the_context(tmp_path):
    model = make(MistralForCausalLM, MistralConfig, GQA, sliding_window=WINDOW)
    made = write_gguf(tiny_checkpoints.save(model, tmp_path / "m"), tmp_path / "model.gguf", "F32")
    assert read(made.path)[0]["llama.context_length"] == WINDOW
    assert "sliding window" in made.notes[0]


@pytest.mark.parametrize(
    ("kinds", "period"),
    [("ssfss", 3), ("ffff", 1), ("sfsf", 2), ("ssss", 5), ("fsfs", None), ("sssssfsss", 6), ("sfss", None)],
)
def test_the_order_of_sliding_blocks(kinds, period):
    assert sliding_period([SLIDING if kind == "s" else FULL for kind in kinds]) == period


def test_shards_bfloat16_and_one_tensor_at_a_time(tmp_path, monkeypatch):
    model = tiny_models.build("llama").to(torch.bfloat16)
    model.save_pretrained(tmp_path / "m", max_shard_size="60KB")
    tiny_checkpoints.tokenizer().save_pretrained(tmp_path / "m")
    assert len(list((tmp_path / "m").glob("*.safetensors"))) > 1
    alive, most = weakref.WeakSet(), 0

    class Noted(np.ndarray):
        """Arrays that can be counted while they live."""

        __hash__ = object.__hash__
        __eq__ = object.__eq__

    plain = CheckpointFiles.read

    def noting(self, name):
        nonlocal most
        array = plain(self, name).view(Noted)
        alive.add(array)
        most = max(most, len(alive))
        return array

    monkeypatch.setattr(CheckpointFiles, "read", noting)
    _, found = read(write_gguf(tmp_path / "m", tmp_path / "model.gguf", "F32").path)
    expected = model.model.layers[3].mlp.down_proj.weight.float().detach().numpy()
    assert np.array_equal(values(found["blk.3.ffn_down.weight"]), expected)
    assert most == 1


def nonuniform(family, folder):
    specs = [*WHOLE[:3], BlockSpec(3, QUERY, KV, NEURONS[:40])]
    tiny_checkpoints.save_edited(tiny_models.build(family), specs, folder)
    return folder


@pytest.mark.parametrize(
    ("family", "word"),
    [("qwen3", "embeddings as the head"), ("gemma", "GeGLU"), ("olmo2", "post norms"), ("phi3", "fused"),
     ("granite", "multipliers")],
)  # fmt: skip
def test_families_whose_blocks_may_not_differ(family, word, tmp_path):
    with pytest.raises(UnsupportedArchitecture, match=f"its blocks differ and .*{word}.*same widths"):
        write_gguf(nonuniform(family, tmp_path / "m"), tmp_path / "model.gguf")


@pytest.mark.parametrize(
    ("family", "word"),
    [("opt", "no architecture"), ("gpt_neox", "parallel blocks"), ("phi", "parallel blocks"),
     ("smollm3", "every fourth block"), ("gemma2", "query_pre_attn_scalar"), ("gemma3", "query_pre_attn_scalar")],
)  # fmt: skip
def test_families_that_are_refused(family, word, saved, tmp_path):
    with pytest.raises(UnsupportedArchitecture, match=word):
        write_gguf(saved(family), tmp_path / "model.gguf")
    assert not list(tmp_path.glob("*.gguf")) and not list(tmp_path.glob(".*"))


@pytest.mark.parametrize(
    ("types", "pattern", "window"),
    [([SLIDING, FULL] * 2, 2, WINDOW), ([SLIDING, FULL, FULL, SLIDING], [True, False, False, True], WINDOW),
     ([FULL] * 4, 5, 128)],
)  # fmt: skip
def test_every_order_of_sliding_blocks(types, pattern, window, tmp_path):
    """By a period, block by block, and with windows as wide as the context where llama.cpp wants one that slides."""
    config = {**GQA, "head_dim": 16, "query_pre_attn_scalar": 16, "sliding_window": WINDOW}
    model = make(Gemma2ForCausalLM, Gemma2Config, config, layer_types=types)
    keys, _ = read(write_gguf(tiny_checkpoints.save(model, tmp_path / "m"), tmp_path / "model.gguf").path)
    assert keys["gemma2.attention.sliding_window_pattern"] == pattern
    assert keys["gemma2.attention.sliding_window"] == window


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"hidden_act": "gelu"}, "activation"),
        ({"rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}}, "dynamic"),
        ({"rope_parameters": {"rope_type": "yarn", "factor": 2.0, "mscale": 0.7, "rope_theta": 1e4,
                              "original_max_position_embeddings": 64}}, "YaRN"),
        ({"rope_parameters": {"rope_type": "yarn", "factor": 2.0, "beta_fast": 8.0, "rope_theta": 1e4,
                              "original_max_position_embeddings": 64}}, "bounds"),
        ({"rms_norm_eps": None}, "rms_norm_eps"),
        ({"vocab_size": 64}, r"\[64, 48\].*\[128, 48\]"),
        ({"intermediate_size": 64}, r"mlp.*\[48, 64\]"),
        ({"num_hidden_layers": 5}, "layers.4 is absent"),
        ({"num_hidden_layers": 3}, "layers.3"),
        ({"per_layer_config": {"00": {"hidden_act": "relu"}}}, "per_layer_config"),
        ({"per_layer_config": {"9": {"skip": ["mlp"]}}}, "per_layer_config"),
        ({"per_layer_config": {"x": {}}}, "per_layer_config"),
        ({"quantization_config": {"quant_method": "gptq"}}, "quantised"),
    ],
)  # fmt: skip
def test_configurations_that_are_refused(changes, word, saved, tmp_path):
    folder = saved()
    edit_json(folder / "config.json", **changes)
    with pytest.raises(InputError, match=word):
        write_gguf(understood_files(folder), tmp_path / "model.gguf")


def test_a_tensor_without_a_place_is_named(saved, tmp_path):
    folder = saved("qwen3")
    state = load_file(folder / "model.safetensors")
    save_file(state | {"model.layers.1.mlp.down_proj.bias": torch.zeros(48)}, folder / "model.safetensors")
    with pytest.raises(CorruptFile, match=r"model\.layers\.1\.mlp\.down_proj\.bias"):
        write_gguf(understood_files(folder), tmp_path / "model.gguf")
    save_file(state | {"model.layers.1.mlp.extra.weight": torch.zeros(48)}, folder / "model.safetensors")
    with pytest.raises(CorruptFile, match=r"model\.layers\.1\.mlp\.extra\.weight"):
        write_gguf(understood_files(folder), tmp_path / "model.gguf")


def test_files_that_are_damaged_or_absent(saved, tmp_path):
    with pytest.raises(UnknownModel, match=r"config\.json"):
        write_gguf(tmp_path / "nowhere", tmp_path / "model.gguf")
    folder = saved()
    weights = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(weights[:5000])
    with pytest.raises(CorruptFile, match=r"model\.safetensors"):
        write_gguf(folder, tmp_path / "model.gguf")
    (folder / "model.safetensors").write_bytes(weights)
    (folder / "tokenizer.json").write_text("{")
    with pytest.raises(CorruptFile, match=r"tokenizer\.json"):
        write_gguf(folder, tmp_path / "model.gguf")
    (folder / "tokenizer.json").write_text('{"model": {"type": "BPE"}}')
    with pytest.raises(CorruptFile, match=r"tokenizer\.json"):
        write_gguf(folder, tmp_path / "model.gguf")


@pytest.mark.parametrize(
    ("value", "kind", "word"), [(70000.0, "F16", "too large"), (float("nan"), "F32", "not finite")]
)
def test_values_that_do_not_fit(value, kind, word, saved, tmp_path):
    folder = saved()
    state = load_file(folder / "model.safetensors")
    state["model.layers.2.mlp.up_proj.weight"][3, 4] = value
    save_file(state, folder / "model.safetensors")
    with pytest.raises(InputError, match=word):
        write_gguf(folder, tmp_path / "model.gguf", kind)
    assert not list(tmp_path.glob("*.gguf")) and not list(tmp_path.glob(".*"))


def test_integers_are_not_weights(saved, tmp_path):
    folder = saved()
    state = load_file(folder / "model.safetensors")
    state["model.norm.weight"] = torch.ones(48, dtype=torch.int8)
    save_file(state, folder / "model.safetensors")
    with pytest.raises(QuantisedCheckpoint, match=r"model\.norm\.weight"):
        write_gguf(folder, tmp_path / "model.gguf")


def test_a_full_disk_leaves_the_old_file(saved, tmp_path):
    """The limit on file sizes makes the system refuse a write as a full disk does."""
    folder, out = saved(), tmp_path / "model.gguf"
    out.write_text("old")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        with pytest.raises(InputError, match="cannot be written"):
            write_gguf(folder, out, "F32")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert out.read_text() == "old" and not list(tmp_path.glob(".*"))


def test_places_that_cannot_be_written_and_unknown_types(saved, tmp_path):
    folder = saved()
    with pytest.raises(InputError, match="cannot be written"):
        write_gguf(folder, tmp_path / "no" / "model.gguf")
    with pytest.raises(InputError, match="cannot be written"):
        write_gguf(folder, folder)
    with pytest.raises(InputError, match="Q3_X"):
        write_gguf(folder, tmp_path / "model.gguf", "Q3_X")


def test_stopping_leaves_nothing(saved, tmp_path):
    folder, stop, told = saved(), Event(), []

    def report(share, message):
        told.append(share)
        if len(told) == 5:
            stop.set()

    with pytest.raises(Cancelled):
        write_gguf(folder, tmp_path / "model.gguf", "F32", report, stop)
    assert len(told) == 5 and told == sorted(told) and 0 <= told[0] < told[-1] < 1
    assert not list(tmp_path.glob("*.gguf")) and not list(tmp_path.glob(".*"))


def tokenizer_keys(words, folder, **changes):
    """The tokenizer's keys of a tiny Llama with that tokenizer."""
    tiny_checkpoints.save(make(LlamaForCausalLM, LlamaConfig, GQA, vocab_size=800), folder, words)
    for name, content in changes.items():
        (folder / name.replace("__", ".")).write_text(content)
    keys, _ = read(write_gguf(folder, folder / "model.gguf").path)
    return {name.removeprefix("tokenizer.ggml."): value for name, value in keys.items() if "tokenizer" in name}


def test_vocabulary_types_and_special_tokens(tmp_path):
    words = tiny_checkpoints.tokenizer(size=300)
    words.add_tokens(["<tool>"])
    words.pad_token = "</s>"
    words.chat_template = "{% for message in messages %}{{ message.content }}{% endfor %}"
    keys = tokenizer_keys(words, tmp_path, generation_config__json=json.dumps({"eos_token_id": [1, 7]}))
    count = len(words)
    assert keys["model"] == "gpt2" and keys["pre"] == "trillion"
    assert keys["tokens"][:count] == words.convert_ids_to_tokens(range(count))
    assert keys["tokens"][count:] == [f"[PAD{number}]" for number in range(count, 800)]
    types = keys["token_type"]
    assert types[:2] == [3, 3] and types[2] == 1 and types[count - 1] == 4 and set(types[count:]) == {5}
    stored = json.loads((tmp_path / "tokenizer.json").read_text())["model"]["merges"]
    assert keys["merges"] == [" ".join(pair) for pair in stored]
    assert keys["bos_token_id"] == 0 and keys["eos_token_id"] == 1 and keys["padding_token_id"] == 1
    assert keys["eot_token_id"] == 7 and "unknown_token_id" not in keys
    assert keys["add_bos_token"] is False and keys["add_eos_token"] is False
    assert keys["tokenizer.chat_template" if "tokenizer.chat_template" in keys else "chat_template"]


END_KEYS = ("eos", "eot", "eom", "fim_pad", "fim_rep", "fim_sep")


@pytest.mark.parametrize(
    ("generation", "config", "expected"),
    [
        ({}, {}, [1]), ({"eos_token_id": 7}, {}, [1, 7]), ({"eos_token_id": [1, 5]}, {}, [1, 5]),
        ({"eos_token_id": [5]}, {"eos_token_id": 6}, [1, 5, 6]), (None, {"eos_token_id": [6, 8]}, [1, 6, 8]),
        ({"eos_token_id": 5}, {"eos_token_id": 2}, [1, 5]), (None, {"eos_token_id": 2}, [1, 2]),
        ({"eos_token_id": [9, 8, 7, 6, 5, 4, 3]}, {}, [1, 9, 8, 7, 6, 5]), ({"eos_token_id": [800, 6]}, {}, [1, 6]),
    ],
)  # fmt: skip
def test_end_tokens_in_every_shape(generation, config, expected, tmp_path):
    """2 is what Llama's configuration says by itself: it does not count beside what somebody wrote."""
    tiny_checkpoints.save(make(LlamaForCausalLM, LlamaConfig, GQA, vocab_size=800), tmp_path)
    edit_json(tmp_path / "config.json", **config)
    (tmp_path / "generation_config.json").unlink()
    if generation is not None:
        (tmp_path / "generation_config.json").write_text(json.dumps(generation))
    made = write_gguf(tmp_path, tmp_path / "model.gguf")
    keys, _ = read(made.path)
    names = [f"tokenizer.ggml.{name}_token_id" for name in END_KEYS]
    assert [keys[name] for name in names if name in keys] == expected
    assert any("does not end an answer" in note for note in made.notes) == (expected[-1] == 5 and len(expected) == 6)


def test_a_model_without_an_end_token_ends_at_one_that_is_idle(tmp_path):
    words = tiny_checkpoints.tokenizer(size=300)
    words.eos_token = None
    keys = tokenizer_keys(words, tmp_path)
    assert keys["tokens"][keys["eos_token_id"]] == "<s>"  # of type control; without the key llama.cpp takes token 11


def test_how_tokens_are_drawn(saved, tmp_path):
    folder = saved()
    settings = {"temperature": 0.6, "top_p": 0.9, "top_k": 40, "min_p": 0.05, "repetition_penalty": 1.1}
    edit_json(folder / "generation_config.json", **settings)
    keys, _ = read(write_gguf(folder, tmp_path / "model.gguf").path)
    found = {name.removeprefix("general.sampling."): value for name, value in keys.items() if "sampling" in name}
    assert found == pytest.approx({"temp": 0.6, "top_p": 0.9, "top_k": 40, "min_p": 0.05, "penalty_repeat": 1.1})
    for wrong in ("hot", float("nan"), -1, True):
        edit_json(folder / "generation_config.json", temperature=wrong)
        with pytest.raises(CorruptFile, match=r"generation_config\.json says temperature"):
            write_gguf(folder, tmp_path / "model.gguf")


def test_names_of_spare_rows_are_nobody_elses(tmp_path):
    words = tiny_checkpoints.tokenizer(size=300)
    count = len(words)
    words.add_tokens([f"[PAD{count + 5}]", f"[PAD{count + 5}_]", f"[PAD{count + 9}]"])
    names = tokenizer_keys(words, tmp_path)["tokens"]
    assert len(set(names)) == len(names) == 800 and f"[PAD{count + 5}__]" in names


def test_tokens_without_a_row_are_left_out(tmp_path):
    """With every merge that needs one: llama.cpp would load it and lose characters."""
    words = tiny_checkpoints.tokenizer()
    words.add_tokens(["<tool>"])
    rows = len(words) - 11
    model = make(LlamaForCausalLM, LlamaConfig, GQA, vocab_size=rows)
    made = write_gguf(tiny_checkpoints.save(model, tmp_path / "m", words), tmp_path / "model.gguf")
    keys, tensors = read(made.path)
    names = keys["tokenizer.ggml.tokens"]
    assert len(names) == rows == tensors["token_embd.weight"].shape[1]
    kept = set(names)
    for merge in keys["tokenizer.ggml.merges"]:
        left, right = merge.split(" ")
        assert {left, right, left + right} <= kept
    assert "<tool>" not in kept and any("11 tokens have no row" in note for note in made.notes)


def test_bos_and_eos_as_the_tokenizer_adds_them(tmp_path):
    words = tiny_checkpoints.tokenizer()
    words.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 1)]
    )
    keys = tokenizer_keys(words, tmp_path)
    assert keys["add_bos_token"] is True and keys["add_eos_token"] is True


def test_a_sentencepiece_vocabulary(tmp_path):
    words = tiny_checkpoints.sentencepiece("normalizer")
    keys = tokenizer_keys(words, tmp_path)
    assert keys["model"] == "llama" and keys["pre"] == "default" and keys["add_space_prefix"] is True
    assert keys["unknown_token_id"] == 0 and keys["bos_token_id"] == 1 and keys["add_bos_token"] is True
    assert keys["token_type"][:3] == [2, 3, 3] and keys["token_type"][3 + 65] == 6
    ranks = {}
    for left, right in json.loads((tmp_path / "tokenizer.json").read_text())["model"]["merges"]:
        ranks.setdefault(left + right, len(ranks))
    scores = dict(zip(keys["tokens"], keys["scores"], strict=True))
    ordered = sorted(ranks, key=lambda token: -scores[token])
    assert ordered == sorted(ranks, key=ranks.get) and max(scores.values()) == 0


def words_of(model, pre=None, **parts):
    made = Tokenizer(model)
    made.pre_tokenizer = pre
    for name, part in parts.items():
        setattr(made, name, part)
    return PreTrainedTokenizerFast(tokenizer_object=made, bos_token="a", eos_token="b")


ABC = {"a": 0, "b": 1, "c": 2, "ab": 3, "abc": 4, "bc": 5}
PIECES = pre_tokenizers.Metaspace(prepend_scheme="never", split=False)
bpe = partial(models.BPE, vocab=ABC)
fallback = partial(bpe, byte_fallback=True)


@pytest.mark.parametrize(
    ("words", "word"),
    [
        (lambda: words_of(models.WordLevel({"a": 0, "b": 1}, unk_token="a")), "WordLevel"),
        (lambda: words_of(models.Unigram([("a", 0.0), ("b", -1.0)])), "Unigram"),
        (lambda: words_of(bpe(merges=[]), pre_tokenizers.ByteLevel(add_prefix_space=True)), "pre-tokenizer"),
        (lambda: words_of(bpe(merges=[]), pre_tokenizers.Sequence(
            [pre_tokenizers.Punctuation(), pre_tokenizers.ByteLevel(add_prefix_space=False)])), "Punctuation"),
        (lambda: words_of(bpe(merges=[], ignore_merges=True), pre_tokenizers.ByteLevel(add_prefix_space=False)),
         "pre-tokenizer"),
        (lambda: words_of(bpe(merges=[("a", "b")]), pre_tokenizers.Whitespace()), "byte fallback"),
        (lambda: words_of(fallback(merges=[("a", "b"), ("ab", "c")]), PIECES), "would join"),
        (lambda: words_of(fallback(merges=[("ab", "c"), ("b", "c"), ("a", "bc"), ("a", "b")]), PIECES), "order"),
        (lambda: words_of(bpe(merges=[]), pre_tokenizers.ByteLevel(add_prefix_space=False), post_processor=
                          processors.TemplateProcessing("c $A", special_tokens=[("c", 2)])), "adds other"),
    ],
)  # fmt: skip
def test_tokenizers_that_are_refused(words, word, tmp_path):
    with pytest.raises(InputError, match=word):
        tokenizer_keys(words(), tmp_path)


@pytest.mark.parametrize(
    ("name", "strips", "expected"),
    [("my-Phi-3-mini", False, "my-phi 3-mini"), ("small", True, "Phi-3 small"), ("small", False, "small")],
)
def test_the_name_tells_llama_cpp_how_special_tokens_treat_spaces(name, strips, expected, tmp_path):
    folder = tiny_checkpoints.save(tiny_models.build("llama"), tmp_path / name)
    document = json.loads((folder / "tokenizer.json").read_text())
    if strips:
        vocabulary = document["model"]["vocab"]
        for old, new in (("T", "<unk>"), ("c", "<|endoftext|>")):
            vocabulary[new] = vocabulary.pop(old)
        document["model"]["merges"] = []
        document["added_tokens"][1]["rstrip"] = True
    (folder / "tokenizer.json").write_text(json.dumps(document))
    keys, _ = read(write_gguf(folder, tmp_path / "model.gguf").path)
    assert keys["general.name"] == expected
