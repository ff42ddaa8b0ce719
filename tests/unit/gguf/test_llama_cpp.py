"""Exported files in a real llama.cpp: the same probabilities, the same greedy text, the same token ids."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace
from functools import partial

import pytest
import torch
from tokenizers import Regex, pre_tokenizers
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GemmaConfig,
    GemmaForCausalLM,
    GraniteConfig,
    GraniteForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Olmo2Config,
    Olmo2ForCausalLM,
    Phi3Config,
    Phi3ForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
    SmolLM3Config,
    SmolLM3ForCausalLM,
)

from surgery.gguf.families import FAMILIES as EXPORTED
from surgery.gguf.tokenizer import BYTE_LEVEL, CLEANED
from surgery.gguf.write import write_gguf
from surgery.models.loading import load
from surgery.structure.structure import BlockSpec, dense
from tests import llama_cpp, tiny_checkpoints, tiny_models
from tests.tiny_models import FULL, SLIDING, WINDOW

pytestmark = [pytest.mark.slow, llama_cpp.needs_llama_cpp]

TOKENS = 32
make = partial(tiny_models._make)
GQA = tiny_models._GQA
YARN = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 8.0, "original_max_position_embeddings": 16}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
LINEAR = {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0}
GEMMA = {**GQA, "head_dim": 16, "query_pre_attn_scalar": 16, "sliding_window": WINDOW}
LOCAL = {"rope_type": "default", "rope_theta": 100.0}
gemma3 = partial(make, Gemma3ForCausalLM, Gemma3TextConfig, GEMMA, layer_types=[SLIDING, SLIDING, FULL, SLIDING])

UNIFORM = {
    **{
        name: partial(tiny_models.build, name)
        for name in ("llama", "llama_tied", "llama_bias", "qwen2", "qwen2_mha", "qwen3", "gemma", "phi3", "olmo2",
                     "granite", "smollm", "gpt2")
    },
    "mistral": partial(make, MistralForCausalLM, MistralConfig, GQA, sliding_window=None),
    "gemma2": partial(make, Gemma2ForCausalLM, Gemma2Config, GEMMA, attn_logit_softcapping=3.0,
                      final_logit_softcapping=4.0, layer_types=[SLIDING, FULL, SLIDING, FULL]),
    "gemma2_all_sliding": partial(make, Gemma2ForCausalLM, Gemma2Config, GEMMA, layer_types=[SLIDING] * 4),
    "gemma3": partial(gemma3, rope_parameters={SLIDING: LOCAL, FULL: LINEAR}),
    "smollm3": partial(make, SmolLM3ForCausalLM, SmolLM3Config, GQA, no_rope_layer_interval=4),
    "llama_yarn": partial(make, LlamaForCausalLM, LlamaConfig, GQA, rope_parameters=YARN),
    "llama_llama3": partial(make, LlamaForCausalLM, LlamaConfig, GQA, rope_parameters=LLAMA3),
    "llama_wide_heads": partial(make, LlamaForCausalLM, LlamaConfig, GQA, head_dim=16),
    "gemma_linear": partial(make, GemmaForCausalLM, GemmaConfig, GQA, head_dim=16, rope_parameters=LINEAR),
    "granite_bias": partial(make, GraniteForCausalLM, GraniteConfig, GQA, attention_bias=True, mlp_bias=True,
                            tie_word_embeddings=True),
    "olmo2_tied": partial(make, Olmo2ForCausalLM, Olmo2Config, GQA, tie_word_embeddings=True),
    "qwen2_wide_heads": partial(make, Qwen2ForCausalLM, Qwen2Config, GQA, head_dim=16),
    "phi3_partial": partial(make, Phi3ForCausalLM, Phi3Config, {**GQA, "hidden_size": 96},
                            rope_parameters={"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5}),
}  # fmt: skip


def same_in_llama_cpp(reference, checkpoint, out, limit):
    """Probabilities after three prompts within `limit`, and greedy text equal for 32 tokens."""
    made = write_gguf(checkpoint, out, "F32")
    generator = torch.Generator().manual_seed(1)
    prompts = [torch.randint(2, 128, (length,), generator=generator).tolist() for length in (3, 9, 20)]
    answer = llama_cpp.run(out, prompts, TOKENS, probabilities=True)
    for prompt, ids, pairs in zip(prompts, answer["greedy"], answer["probabilities"], strict=True):
        logits = reference(torch.tensor([prompt + ids]), use_cache=False).logits[0, len(prompt) - 1 : -1]
        assert logits.argmax(-1).tolist() == ids and len(ids) == TOKENS
        assert len(pairs) == logits.shape[-1]
        found = torch.tensor([probability for _, probability in sorted(pairs)])
        torch.testing.assert_close(found, logits[0].softmax(-1), atol=limit, rtol=0)
    opened = load(str(out)).model  # as a source, it is the model that llama.cpp runs
    torch.testing.assert_close(opened(torch.tensor([prompt])).logits[0, -1].softmax(-1), found, atol=limit, rtol=0)
    return made


@torch.no_grad()
@pytest.mark.parametrize("name", UNIFORM)
def test_every_uniform_family(name, tmp_path):
    torch.manual_seed(0)
    model = UNIFORM[name]()
    folder = tiny_checkpoints.save(model, tmp_path / "checkpoint")
    # llama.cpp looks GELU up in a table of half precision.
    limit = 5e-4 if "gelu" in str(getattr(model.config, "hidden_act", "gelu")) else 5e-6
    made = same_in_llama_cpp(model, folder, tmp_path / "model.gguf", limit)
    own = EXPORTED[model.config.model_type].architecture
    assert made.architecture == ("deci" if name == "qwen2_wide_heads" else own)


def test_every_exported_family_is_run():
    run = {make().config.model_type for make in UNIFORM.values()}
    assert run == set(EXPORTED)


QUERY, KV, NEURONS = tuple(range(6)), (0, 1), tuple(range(80))


def spec(source, query=QUERY, kv=KV, neurons=NEURONS):
    return BlockSpec(source, query, kv, neurons)


WHOLE = [spec(index) for index in range(4)]
EDITS = {
    "of everything": [
        spec(0, neurons=NEURONS[::2]), spec(1, (), ()), spec(2, neurons=()), spec(3, (0, 1, 2), (0,), NEURONS[:56]),
    ],
    "first block without attention": [spec(0, (), ()), *WHOLE[1:]],
    "last block without attention": [*WHOLE[:3], spec(3, (), ())],
    "first block without MLP": [spec(0, neurons=()), *WHOLE[1:]],
    "last block without MLP": [*WHOLE[:3], spec(3, neurons=())],
    "query heads": [spec(0, (0, 3)), spec(1, (0, 1, 3, 4)), spec(2, neurons=NEURONS[:7]), spec(3, (4,), (1,))],
    "repeated and reordered": [spec(3), spec(1), spec(1, neurons=()), spec(1, (), ()), spec(0), spec(2)],
}  # fmt: skip


@torch.no_grad()
@pytest.mark.parametrize("edit", EDITS)
@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3"])
def test_blocks_that_differ(family, edit, tmp_path):
    tied = partial(make, Qwen3ForCausalLM, Qwen3Config, GQA, head_dim=16, tie_word_embeddings=True)
    model = tied() if family == "qwen3" else tiny_models.build(family)
    reference = tiny_checkpoints.save_edited(model, EDITS[edit], tmp_path / "checkpoint")
    made = same_in_llama_cpp(reference, tmp_path / "checkpoint", tmp_path / "model.gguf", 5e-6)
    assert made.architecture == ("openelm" if family == "qwen3" else "deci")


@torch.no_grad()
@pytest.mark.parametrize("family", ["gemma2", "gemma3"])
def test_every_choice_of_kept_gemma_blocks(family, tmp_path):
    """Every order of three sliding and full blocks."""
    for number, types in enumerate(itertools.product([SLIDING, FULL], repeat=3)):
        torch.manual_seed(number)
        size = {"num_hidden_layers": 3, "layer_types": list(types)}
        if family == "gemma2":
            model = make(Gemma2ForCausalLM, Gemma2Config, GEMMA, attn_logit_softcapping=3.0,
                         final_logit_softcapping=4.0, **size)  # fmt: skip
        else:
            model = gemma3(rope_parameters={SLIDING: LOCAL, FULL: LINEAR}, **size)
        folder = tiny_checkpoints.save(model, tmp_path / f"{number}")
        same_in_llama_cpp(model, folder, tmp_path / "model.gguf", 5e-4)


@torch.no_grad()
@pytest.mark.parametrize(("kind", "limit"), [("F16", 2e-3), ("Q8_0", 2e-2)])
def test_smaller_types(kind, limit, tmp_path):
    """Rows of 96 are whole blocks of Q8_0, rows of 80 (the down projections) are not."""
    torch.manual_seed(1)
    model = make(LlamaForCausalLM, LlamaConfig, {**GQA, "hidden_size": 96})
    made = write_gguf(tiny_checkpoints.save(model, tmp_path / "checkpoint"), tmp_path / "model.gguf", kind)
    prompt = list(range(10, 30))
    found = torch.tensor(
        [p for _, p in sorted(llama_cpp.run(made.path, [prompt], probabilities=True)["probabilities"][0])]
    )
    torch.testing.assert_close(found, model(torch.tensor([prompt])).logits[0, -1].softmax(-1), atol=limit, rtol=0)


@torch.no_grad()
@pytest.mark.parametrize("family", ["llama", "llama_bias", "qwen2", "granite"])
def test_biases_that_a_compensation_added(family, tmp_path):
    model = tiny_models.build(family)
    specs = [WHOLE[0], tiny_checkpoints.with_bias(model, WHOLE[1], "mlp"),
             tiny_checkpoints.with_bias(model, WHOLE[2], "attention"), WHOLE[3]]  # fmt: skip
    reference = tiny_checkpoints.save_edited(model, specs, tmp_path / "checkpoint")
    made = same_in_llama_cpp(reference, tmp_path / "checkpoint", tmp_path / "model.gguf", 5e-6)
    assert made.architecture == {"qwen2": "deci", "granite": "granite"}.get(family, "llama")


TEXTS = (
    "Hello world, it's 12345 o'clock! WE'LL see'",
    "a\n\n  indented\tTabs \r\n x   ",
    "The café costs €3.50 — naïve? 你好 🙂 Ünï",
    "x=1;y=22;z=333;w=4444",
    "<s>cat</s> mat  the",
    "the   inner  spaces   ",
    "\n\n\n",
    "the cat's mat 'S 'Re I'M HelloWorld fooBAR//\n/ مرحبا ２３ ½ ²",
)


def same_ids(words, folder, texts=TEXTS):
    tiny_checkpoints.save(make(LlamaForCausalLM, LlamaConfig, GQA, vocab_size=800), folder, words)
    made = write_gguf(folder, folder / "model.gguf", "F16")
    answer = llama_cpp.run(made.path, texts=list(texts))
    for text, ids in zip(texts, answer["tokenized"], strict=True):
        assert ids == words(text, add_special_tokens=False)["input_ids"], text
    return made


def splitting(steps):
    """A pre-tokenizer of these steps."""
    parts = {
        "digits": pre_tokenizers.Digits(individual_digits=True),
        "bytes": pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        "bytes with words": pre_tokenizers.ByteLevel(add_prefix_space=False),
    }
    return pre_tokenizers.Sequence(
        [parts.get(step) or pre_tokenizers.Split(Regex(step.removeprefix("split ")), "isolated") for step in steps]
    )


@pytest.mark.parametrize("key", BYTE_LEVEL, ids=BYTE_LEVEL.get)
def test_every_byte_level_pre_tokenizer(key, tmp_path):
    steps, ignore_merges = key
    words = tiny_checkpoints.tokenizer(splitting(steps), 700, ignore_merges, tiny_checkpoints.TEXT + "".join(TEXTS))
    same_ids(words, tmp_path)


@pytest.mark.parametrize("prepend", ["normalizer", "metaspace", "never"])
def test_sentencepiece_tokenizers(prepend, tmp_path):
    texts = [text for text in TEXTS if prepend != "metaspace" or not text.startswith("<s>")]
    made = same_ids(tiny_checkpoints.sentencepiece(prepend), tmp_path, texts)
    assert bool(made.notes) == (prepend == "metaspace")  # says where the two differ


CODE = (
    'if (x == "y !") { return [1, 2 , 3]; }  // it \' s , a . b ?\n\tprint("we \'re", 650841823, 0.5)',
    'She said: " No ! " and he \'s gone . 12 , 34 ?\n\n  - x == y ! z',
)


@pytest.mark.parametrize("key", [key for key, name in BYTE_LEVEL.items() if name not in CLEANED], ids=BYTE_LEVEL.get)
def test_text_comes_back_as_it_was(key, tmp_path):
    words = tiny_checkpoints.tokenizer(splitting(key[0]), 700, key[1], tiny_checkpoints.TEXT + "".join(CODE))
    tiny_checkpoints.save(make(LlamaForCausalLM, LlamaConfig, GQA, vocab_size=800), tmp_path, words)
    made = write_gguf(tmp_path, tmp_path / "model.gguf", "F16")
    answer = llama_cpp.run(made.path, back=[words(text, add_special_tokens=False)["input_ids"] for text in CODE])
    assert answer["texts"] == list(CODE)


def test_tokens_without_a_row_and_rows_without_a_token(tmp_path):
    """Texts are split by the tokens that are left, and lose nothing."""
    words = tiny_checkpoints.tokenizer(size=700, text=tiny_checkpoints.TEXT + "".join(TEXTS))
    words.add_tokens(["[PAD395]"])
    for rows in (len(words) - 30, len(words) + 30):
        folder = tmp_path / str(rows)
        tiny_checkpoints.save(make(LlamaForCausalLM, LlamaConfig, GQA, vocab_size=rows), folder, words)
        made = write_gguf(folder, folder / "model.gguf", "F16")
        ids = llama_cpp.run(made.path, texts=list(TEXTS))["tokenized"]
        assert llama_cpp.run(made.path, back=ids)["texts"] == list(TEXTS)
        assert max(map(max, ids)) < rows


@torch.no_grad()
def test_every_end_token_ends_an_answer(tmp_path):
    """Whatever else the vocabulary holds, these alone."""
    model = tiny_models.build("llama")
    folder = tiny_checkpoints.save(model, tmp_path / "model")
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [5, 6, 7, 8, 9]}))
    made = write_gguf(folder, tmp_path / "model.gguf", "F16")
    assert llama_cpp.run(made.path, ends=list(range(128)))["ends"] == [1, 5, 6, 7, 8, 9]


PROMPTS = ("The capital of France is", "Once upon a time, in 1984,", "def fibonacci(n):\n")


@torch.no_grad()
def greedy(model, ids):
    """Greedy tokens after a prompt, end tokens included."""
    found, cache, step = [], None, torch.tensor([ids])
    for _ in range(TOKENS):
        output = model(step, past_key_values=cache, use_cache=True)
        cache = output.past_key_values
        found.append(int(output.logits[0, -1].argmax()))
        step = torch.tensor([[found[-1]]])
    return found


@pytest.mark.parametrize("edited", [False, True], ids=["as it is", "blocks that differ"])
def test_the_embedded_model(edited, tmp_path):
    """As it is, and with attention off twice, an MLP gone, three widths and one KV group less in a block."""
    loaded = load("default")
    whole = dense(loaded.architecture).blocks
    changes = {
        5: {"query_heads": (), "kv_heads": ()},
        21: {"query_heads": (), "kv_heads": ()},
        7: {"neurons": ()},
        3: {"neurons": tuple(range(1024))},
        12: {"neurons": tuple(range(0, 1536, 2))},
        18: {"neurons": tuple(range(1280))},
        25: {"query_heads": tuple(range(3, 9)), "kv_heads": (1, 2)},
    }
    specs = [replace(block, **(changes.get(block.source, {}) if edited else {})) for block in whole]
    model = tiny_checkpoints.save_edited(loaded.model, specs, tmp_path / "checkpoint", loaded.tokenizer)
    made = write_gguf(tmp_path / "checkpoint", tmp_path / "model.gguf", "F32")
    prompts = [loaded.tokenizer(prompt)["input_ids"] for prompt in PROMPTS]
    back = [loaded.tokenizer(text)["input_ids"] for text in CODE]
    answer = llama_cpp.run(made.path, prompts, TOKENS, list(TEXTS), back=back)
    assert answer["texts"] == list(CODE)
    print(made, answer["load_seconds"], answer["tokens_per_second"])
    assert made.architecture == ("deci" if edited else "llama")
    assert answer["greedy"] == [greedy(model, prompt) for prompt in prompts]
    assert answer["tokenized"] == [loaded.tokenizer(text)["input_ids"] for text in TEXTS]
