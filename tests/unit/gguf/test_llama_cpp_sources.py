"""What a GGUF file means to us is what it means to the real llama.cpp: token ids, rotary factors, end tokens."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from surgery.gguf.source_tokenizer import SPLITS
from surgery.gguf.write import write_gguf
from surgery.models.loading import load
from tests import llama_cpp, tiny_checkpoints
from tests.gguf_files import rewritten
from tests.unit.gguf.test_llama_cpp import GQA, TEXTS, UNIFORM, make

pytestmark = [pytest.mark.slow, llama_cpp.needs_llama_cpp]


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file with a tokenizer whose merges reach across everything, so that each way of splitting shows."""
    folder = tmp_path_factory.mktemp("words")
    tokenizer = tiny_checkpoints.tokenizer(None, 700, text=tiny_checkpoints.TEXT + "".join(TEXTS))
    tiny_checkpoints.save(make(LlamaForCausalLM, LlamaConfig, GQA, vocab_size=800), folder / "c", tokenizer)
    return write_gguf(folder / "c", folder / "words.gguf", "F16").path


def same_ids(file: Path, texts: Any = TEXTS) -> None:
    """llama.cpp puts no BOS before these texts of itself: the test's program asks it not to."""
    tokenizer = load(str(file)).tokenizer
    answer = llama_cpp.run(file, texts=list(texts))
    for text, ids in zip(texts, answer["tokenized"], strict=True):
        assert tokenizer(text, add_special_tokens=False)["input_ids"] == ids, text


@pytest.mark.parametrize("names", SPLITS.values())
def test_every_pre_tokenizer_splits_as_llama_cpp_does(names: str, words: Path, tmp_path: Path) -> None:
    for name in names.split():
        same_ids(rewritten(words, tmp_path / f"{name}.gguf", keys={"tokenizer.ggml.pre": name}))


def test_a_file_without_a_pre_tokenizer(words: Path, tmp_path: Path) -> None:
    same_ids(rewritten(words, tmp_path / "none.gguf", without=("tokenizer.ggml.pre",)))


def test_user_defined_tokens(words: Path, tmp_path: Path) -> None:
    reader = gguf.GGUFReader(words)
    tokens, types = (list(reader.fields[f"tokenizer.ggml.{name}"].contents()) for name in ("tokens", "token_type"))
    tokens[-2:], types[-2:] = ["\u20ac\u00fc the", "<|im_end|>"], [4, 3]
    keys = {"tokenizer.ggml.tokens": tokens, "tokenizer.ggml.token_type": types}
    file = rewritten(words, tmp_path / "user.gguf", keys=keys)
    same_ids(file, [*TEXTS, "a \u20ac\u00fc them", "x<|im_end|> y"])


@torch.no_grad()
@pytest.mark.parametrize("factors", [(1.0, 3.0, 2.0, 5.0), (1.0, 1.0, 1.0, 1.0), (2.0, 2.0, 2.0, 2.0)])
def test_frequency_factors_of_any_kind(factors: tuple[float, ...], tmp_path: Path) -> None:
    torch.manual_seed(0)
    folder = tiny_checkpoints.save(UNIFORM["llama_llama3"](), tmp_path / "checkpoint")
    file = write_gguf(folder, tmp_path / "model.gguf", "F32").path
    odd = rewritten(file, tmp_path / "odd.gguf", tensors={"rope_freqs.weight": np.array(factors, np.float32)})
    prompt = list(range(5, 45))
    pairs = llama_cpp.run(odd, [prompt], probabilities=True)["probabilities"][0]
    found = torch.tensor([probability for _, probability in sorted(pairs)])
    ours = load(str(odd)).model(torch.tensor([prompt])).logits[0, -1].softmax(-1)
    torch.testing.assert_close(ours, found, atol=1e-5, rtol=0)


@torch.no_grad()
def test_a_scaling_whose_kind_is_not_said(tmp_path: Path) -> None:
    torch.manual_seed(0)
    folder = tiny_checkpoints.save(UNIFORM["llama"](), tmp_path / "checkpoint")
    file = write_gguf(folder, tmp_path / "model.gguf", "F32").path
    scaled = rewritten(file, tmp_path / "scaled.gguf", keys={"llama.rope.scaling.factor": 4.0})
    prompt = list(range(5, 45))
    pairs = llama_cpp.run(scaled, [prompt], probabilities=True)["probabilities"][0]
    found = torch.tensor([probability for _, probability in sorted(pairs)])
    ours = load(str(scaled)).model(torch.tensor([prompt])).logits[0, -1].softmax(-1)
    torch.testing.assert_close(ours, found, atol=1e-5, rtol=0)


def test_llama_cpp_reads_no_bounds_of_yarn(tmp_path: Path) -> None:
    """So the export refuses other ones than the usual, and a file that says some is not opened."""
    rope = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 8.0, "original_max_position_embeddings": 64}
    model = make(LlamaForCausalLM, LlamaConfig, GQA, head_dim=64, rope_parameters=rope)
    file = write_gguf(tiny_checkpoints.save(model, tmp_path / "checkpoint"), tmp_path / "model.gguf", "F32").path
    other = rewritten(file, tmp_path / "other.gguf", keys={"llama.rope.scaling.yarn_beta_fast": 4.0})
    prompt = list(range(5, 105))
    usual, said = (llama_cpp.run(one, [prompt], probabilities=True)["probabilities"] for one in (file, other))
    assert usual == said
