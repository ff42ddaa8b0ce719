"""Loading: tiny checkpoints and a tiny GGUF file load whole, and everything else is refused by name."""

from __future__ import annotations

import functools
import json
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gguf
import httpx2
import huggingface_hub
import numpy as np
import psutil
import pytest
import torch
from huggingface_hub import errors as hub
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import BertConfig, BertForMaskedLM, PreTrainedTokenizerFast

from analysis.model.describe import describe
from surgery.errors import (
    CorruptFile,
    DoesNotFit,
    GatedModel,
    InputError,
    NoNetwork,
    NotACausalLanguageModel,
    QuantisedCheckpoint,
    RemoteCodeNeeded,
    UnknownModel,
    UnsupportedArchitecture,
)
from surgery.models.loading import fingerprint, load
from tests.tiny_models import build

LOST = "model.layers.1.mlp.up_proj.weight"


def save(family: str, folder: Path) -> Path:
    """A tiny checkpoint with a tokenizer beside it."""
    vocabulary = {"<unk>": 0, **{f"w{number}": number for number in range(1, 128)}}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    build(family).save_pretrained(folder)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>").save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save("llama", tmp_path_factory.mktemp("saved"))


@pytest.fixture
def folder(saved: Path, tmp_path: Path) -> Path:
    """A copy to spoil."""
    return Path(shutil.copytree(saved, tmp_path / "spoilt"))


def refusal(kind: type[InputError], source: str, **options: Any) -> str:
    """The one sentence with which a source is refused."""
    with pytest.raises(InputError) as caught:
        load(source, **options)
    message = str(caught.value)
    assert type(caught.value) is kind, message
    assert message.endswith(".") and "\n" not in message and len(message) < 500, message
    assert ": " in message and "Traceback" not in message, "it says what to do after a colon"
    return message


def configure(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.mark.parametrize("family", ["llama", "llama_tied", "llama_bias", "qwen3", "gemma2", "phi3", "gpt2"])
def test_a_saved_model_loads_whole(family: str, tmp_path: Path) -> None:
    source = str(save(family, tmp_path / family))
    told: list[float] = []
    loaded = load(source, progress=lambda fraction, _: told.append(fraction))
    original = build(family)
    ids = torch.arange(1, 20)[None]
    with torch.no_grad():
        assert torch.equal(loaded.model(ids).logits, original(ids).logits)
    assert not loaded.model.training and not any(p.requires_grad for p in loaded.model.parameters())
    assert {p.dtype for p in loaded.model.parameters()} == {torch.float32}
    assert loaded.architecture == describe(original)
    assert loaded.tokenizer("w3 w5")["input_ids"] == [3, 5]
    assert loaded.fingerprint == fingerprint(original) != fingerprint(build(family, seed=1))
    assert (loaded.id, loaded.revision, loaded.note) == (source, None, "")
    assert told == sorted(told) and told[-1] == 1.0


def test_half_precision_checkpoints_are_computed_in_float32(folder: Path) -> None:
    build("llama").to(torch.bfloat16).save_pretrained(folder)
    loaded = load(str(folder))
    assert {parameter.dtype for parameter in loaded.model.parameters()} == {torch.float32}


@pytest.mark.parametrize("size", [0, 4, 100, 40_000, -10])
def test_truncated_weights(folder: Path, size: int) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:size])
    assert str(folder) in refusal(CorruptFile, str(folder))


@pytest.mark.parametrize("name", [LOST, "lm_head.weight"])
def test_a_missing_or_misshapen_tensor_is_named(folder: Path, name: str) -> None:
    tensors = load_file(folder / "model.safetensors")
    save_file({**tensors, name: torch.zeros(3, 3)}, folder / "model.safetensors", {"format": "pt"})
    assert name in refusal(CorruptFile, str(folder))
    del tensors[name]
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    assert name in refusal(CorruptFile, str(folder))


def test_a_missing_shard(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    build("llama").save_pretrained(folder, max_shard_size="50KB")
    sorted(folder.glob("model-*.safetensors"))[1].unlink()
    refusal(CorruptFile, str(folder))


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.bin", "pytorch_model-00001-of-00001.bin"])
def test_pickled_weights_are_never_opened(folder: Path, name: str) -> None:
    touched = folder / "touched"

    class Bomb:
        def __reduce__(self) -> tuple[Any, ...]:
            return os.mkdir, (str(touched),)

    (folder / "model.safetensors").unlink()
    (folder / name).write_bytes(pickle.dumps(Bomb()))
    if "-of-" in name:
        index = {"metadata": {}, "weight_map": {LOST: name}}
        (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    assert "safetensors" in refusal(CorruptFile, str(folder))
    assert not touched.exists()


@pytest.mark.parametrize(
    ("changes", "kind", "names"),
    [
        ({"quantization_config": {"quant_method": "gptq", "bits": 4}}, QuantisedCheckpoint, ["gptq"]),
        ({"quantization_config": "int4"}, QuantisedCheckpoint, ["int4"]),
        ({"model_type": "wonder", "architectures": ["WonderForCausalLM"]}, UnsupportedArchitecture, ["wonder"]),
        ({"model_type": None}, CorruptFile, ["config.json"]),
        ({"model_type": ["llama"]}, CorruptFile, ["config.json"]),
        ({"architectures": 5}, CorruptFile, ["config.json"]),
        ({"architectures": ["LlamaForSequenceClassification"]}, NotACausalLanguageModel, ["SequenceClassification"]),
        ({"model_type": "t5", "architectures": ["T5ForConditionalGeneration"]}, NotACausalLanguageModel, ["T5"]),
        ({"hidden_size": "large"}, CorruptFile, ["hidden_size"]),
        ({"hidden_size": -48}, CorruptFile, []),
        ({"num_attention_heads": 0}, CorruptFile, []),
        ({"hidden_act": "wonder"}, CorruptFile, ["wonder"]),
        ({"rope_parameters": 5}, CorruptFile, ["rope_parameters"]),
        ({"dtype": "float99"}, CorruptFile, ["float99"]),
        ({"num_hidden_layers": 10**9}, CorruptFile, ["blocks"]),
        ({"num_hidden_layers": 5}, CorruptFile, ["model.layers.4"]),
        ({"num_hidden_layers": 0}, CorruptFile, ["num_hidden_layers"]),
        ({"vocab_size": 10**12}, CorruptFile, ["vocab_size"]),
    ],
)
def test_configurations_that_cannot_be_used(
    folder: Path, changes: dict[str, Any], kind: type[InputError], names: list[str]
) -> None:
    configure(folder, **changes)
    message = refusal(kind, str(folder))
    assert all(name in message for name in names), message


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b"[]", b"5", b"{}", b"[" * 100_000])
def test_damaged_configurations(folder: Path, content: bytes) -> None:
    (folder / "config.json").write_bytes(content)
    assert "config.json" in refusal(CorruptFile, str(folder))


def test_a_bert_is_not_a_causal_language_model(tmp_path: Path) -> None:
    config = BertConfig(hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32, vocab_size=64)
    BertForMaskedLM(config).save_pretrained(tmp_path)
    assert "BertForMaskedLM" in refusal(NotACausalLanguageModel, str(tmp_path))


def plant(folder: Path) -> Path:
    """A code file that leaves a mark when it is imported; returns the mark."""
    mark = folder / "imported"
    (folder / "mine.py").write_text(f"open({str(mark)!r}, 'w')\nclass C: pass\nclass M: pass\nclass T: pass\n")
    return mark


def test_a_checkpoints_own_code_is_not_run(folder: Path) -> None:
    mark, auto_map = plant(folder), {"AutoConfig": "mine.C", "AutoModelForCausalLM": "mine.M"}
    configure(folder, auto_map=auto_map)
    assert load(str(folder)).architecture.family == "llama", "a known type needs no code"
    configure(folder, model_type="mine", architectures=["MineForCausalLM"])
    assert "trust_remote_code" in refusal(RemoteCodeNeeded, str(folder))
    assert not mark.exists()


def test_a_tokenizers_own_code_is_not_run(folder: Path) -> None:
    mark, path = plant(folder), folder / "tokenizer_config.json"
    changes = {"tokenizer_class": "Mine", "auto_map": {"AutoTokenizer": ["mine.T", None]}}
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    assert "trust_remote_code" in refusal(RemoteCodeNeeded, str(folder))
    assert not mark.exists()


@pytest.mark.parametrize("content", [None, b'{"x', b"{}", b'{"added_tokens": [], "model": {"type": "Wonder"}}'])
def test_a_tokenizer_that_is_absent_or_damaged_is_named(folder: Path, content: bytes | None) -> None:
    path = folder / "tokenizer.json"
    path.unlink() if content is None else path.write_bytes(content)
    assert "okenizer" in refusal(CorruptFile, str(folder))


def test_what_does_not_fit_is_refused_with_needed_and_free(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    needed = 4 * build("llama").num_parameters()
    configure(folder, vocab_size=10**7)  # two matrices of 48 columns: 3.84 GB
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=3 * 10**9, total=4 * 10**9))
    message = refusal(DoesNotFit, str(folder))
    assert "3.8 GB" in message and "3.0 GB" in message
    configure(folder, vocab_size=128)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=needed - 1, total=needed))
    refusal(DoesNotFit, str(folder))
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=needed, total=needed))
    load(str(folder))


@pytest.mark.parametrize(
    "source", ["/no/such/folder", "./nothing", "a/b/c", "~/models", "a\\b", "x" * 5000, "/" * 9000]
)
def test_places_that_do_not_exist(source: str) -> None:
    refusal(UnknownModel, source)


def test_a_folder_without_a_configuration(tmp_path: Path) -> None:
    assert "config.json" in refusal(UnknownModel, str(tmp_path))


def http_error(kind: type[hub.HfHubHTTPError], status: int) -> hub.HfHubHTTPError:
    request = httpx2.Request("HEAD", "https://huggingface.co/owner/name/resolve/main/config.json")
    return kind("no\nsuch\n\nluck", response=httpx2.Response(status, request=request))


@pytest.mark.parametrize(
    ("error", "kind", "names"),
    [
        (lambda: http_error(hub.GatedRepoError, 403), GatedModel, ["licence", "HF_TOKEN"]),
        (lambda: http_error(hub.RepositoryNotFoundError, 404), UnknownModel, ["spelling"]),
        (lambda: http_error(hub.RevisionNotFoundError, 404), UnknownModel, ["v7", "branch"]),
        (lambda: http_error(hub.RemoteEntryNotFoundError, 404), NotACausalLanguageModel, ["config.json"]),
        (lambda: http_error(hub.HfHubHTTPError, 500), NoNetwork, ["network"]),
        (lambda: hub.LocalEntryNotFoundError("no cached file"), NoNetwork, ["network"]),
        (lambda: hub.OfflineModeIsEnabled("offline"), NoNetwork, ["network"]),
        (lambda: httpx2.ConnectError("refused"), NoNetwork, ["network"]),
        (lambda: TimeoutError("slow"), NoNetwork, ["network"]),
    ],
)
def test_answers_of_the_hub(
    monkeypatch: pytest.MonkeyPatch, error: Callable[[], Exception], kind: type[InputError], names: list[str]
) -> None:
    def answer(*_: Any, **__: Any) -> None:
        raise error()

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", answer)
    message = refusal(kind, "owner/name", revision="v7")
    assert all(name in message for name in ["owner/name", *names]), message


def test_without_a_network_an_unknown_id_is_a_matter_of_the_network(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    assert "nobody/nothing" in refusal(NoNetwork, "nobody/nothing")
    assert "not a model id" in refusal(UnknownModel, "two words?")


def write_gguf(path: Path, architecture: str = "llama", without: str = "", blocks: int = 2, width: int = 80) -> Path:
    """A tiny random Llama: hidden 48, 6 query heads in 2 groups, 64 tokens."""
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_context_length(128)
    writer.add_embedding_length(48)
    writer.add_block_count(blocks)
    writer.add_feed_forward_length(width)
    writer.add_head_count(6)
    writer.add_head_count_kv(2)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(8)
    writer.add_vocab_size(64)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(["<s>", "</s>", *(chr(33 + number) for number in range(60)), '!"', "#$"])
    writer.add_token_types([3, 3] + [1] * 62)
    writer.add_token_merges(['! "', "# $"])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(1)
    shapes: dict[str, tuple[int, ...]] = {"token_embd": (64, 48), "output_norm": (48,), "output": (64, 48)}
    parts = {"attn_norm": (48,), "attn_q": (48, 48), "attn_k": (16, 48), "attn_v": (16, 48), "attn_output": (48, 48),
             "ffn_norm": (48,), "ffn_gate": (80, 48), "ffn_up": (80, 48), "ffn_down": (48, 80)}  # fmt: skip
    shapes |= {f"blk.{block}.{part}": shape for block in range(2) for part, shape in parts.items()}
    numbers = np.random.default_rng(0)
    for name in shapes.keys() - {without}:
        writer.add_tensor(f"{name}.weight", numbers.normal(size=shapes[name]).astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.mark.parametrize("name", ["tiny.gguf", "TINY.GGUF"])
def test_a_gguf_file_loads_and_can_be_saved(tmp_path: Path, name: str) -> None:
    loaded = load(str(write_gguf(tmp_path / name)))
    assert loaded.architecture.parameters == 2 * (2 * 48 * 48 + 2 * 16 * 48 + 3 * 80 * 48 + 96) + 2 * 64 * 48 + 48
    assert loaded.tokenizer('!"')["input_ids"][-1] == 62 and "GGUF" in loaded.note
    loaded.model.save_pretrained(tmp_path / "out")
    loaded.tokenizer.save_pretrained(tmp_path / "out")
    assert load(str(tmp_path / "out")).fingerprint == loaded.fingerprint


def test_bad_gguf_files(tmp_path: Path) -> None:
    bad = functools.partial(refusal, CorruptFile)
    content = write_gguf(tmp_path / "whole.gguf").read_bytes()
    cut = tmp_path / "cut.gguf"
    for size in (0, 3, 24, 1000, len(content) // 2, len(content) - 10):
        cut.write_bytes(content[:size])
        assert "cut.gguf" in bad(str(cut))
    cut.write_bytes(b"PK\x03\x04" + content[4:])
    bad(str(cut))
    lost = write_gguf(tmp_path / "lost.gguf", without="blk.1.ffn_up")
    assert "blk.1.ffn_up.weight" in bad(str(lost)), "transformers would draw it at random"
    clip = write_gguf(tmp_path / "clip.gguf", architecture="clip")
    assert "'clip'" in refusal(UnsupportedArchitecture, str(clip))
    for wrong in ({"blocks": 10**8}, {"width": 10**8}, {"blocks": 3}, {"width": 79}):
        bad(str(write_gguf(tmp_path / "wrong.gguf", **wrong)))
    assert "none.gguf" in refusal(UnknownModel, str(tmp_path / "none.gguf"))


def test_a_gguf_file_that_does_not_fit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=1000, total=1000))
    assert "free" in refusal(DoesNotFit, str(write_gguf(tmp_path / "tiny.gguf")))
