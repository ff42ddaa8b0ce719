"""A folder's tokenizer splits as its tokenizer.json says, whatever class is named beside it, and is written so."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gguf
import pytest
from tokenizers import Tokenizer, pre_tokenizers, processors

from surgery.checkpoints.build import build_model
from surgery.checkpoints.save import save_checkpoint
from surgery.gguf.write import write_gguf
from surgery.models.loading import load, load_empty
from surgery.recipe.base import ModelReference
from surgery.recipe.recipe import Recipe
from surgery.structure.structure import dense
from tests import tiny_checkpoints
from tests.tiny_models import build

TEXT = "In 1984 the 650841823 cats counted 2023 mats; it's 99 days.\n\n  Then 12345 more."


def digits() -> Any:
    level = pre_tokenizers.ByteLevel(add_prefix_space=False)
    return pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), level])


def named(family: str, class_name: str | None, folder: Path) -> Path:
    """A checkpoint that splits digits one by one, and whose tokenizer_config.json names a class that does not."""
    words = tiny_checkpoints.tokenizer(digits(), 420, text=TEXT)
    model = build(family)
    model.resize_token_embeddings(len(words), mean_resizing=False)
    tiny_checkpoints.save(model, folder, words)
    path = folder / "tokenizer_config.json"
    said = json.loads(path.read_text())
    path.unlink() if class_name is None else path.write_text(json.dumps({**said, "tokenizer_class": class_name}))
    return folder


CASES = [
    ("llama", "GPT2Tokenizer"),
    ("qwen3", "GPT2Tokenizer"),
    ("qwen2", "PreTrainedTokenizerFast"),
    ("qwen2", "Qwen2Tokenizer"),
    ("llama", "LlamaTokenizerFast"),
    ("gpt2", None),
]


@pytest.mark.parametrize(("family", "class_name"), CASES)
def test_ids_are_those_of_the_file(family: str, class_name: str | None, tmp_path: Path) -> None:
    source = named(family, class_name, tmp_path / "source")
    content = (source / "tokenizer.json").read_bytes()
    wanted = Tokenizer.from_file(str(source / "tokenizer.json")).encode(TEXT, add_special_tokens=False).ids
    loaded = load(str(source))
    for tokenizer in (loaded.tokenizer, load_empty(source)[1]):
        assert tokenizer(TEXT, add_special_tokens=False)["input_ids"] == wanted
    structure = dense(loaded.architecture)
    built = build_model(loaded.model, loaded.architecture, structure)
    save_checkpoint(built, loaded.tokenizer, Recipe(model=ModelReference(id="x")), tmp_path / "built")
    assert (tmp_path / "built" / "tokenizer.json").read_bytes() == content
    for folder in (source, tmp_path / "built"):
        file = write_gguf(folder, tmp_path / f"{folder.name}.gguf", "F32").path
        kept = gguf.GGUFReader(file).fields["tokenizer.ggml.tokens"].contents()
        assert kept[: len(loaded.tokenizer)] == loaded.tokenizer.convert_ids_to_tokens(range(len(loaded.tokenizer)))
        assert gguf.GGUFReader(file).fields["tokenizer.ggml.pre"].contents() == "smollm"


def test_ends_that_no_file_of_the_tokenizer_names_are_the_models(tmp_path: Path) -> None:
    source = named("gpt2", None, tmp_path)
    path = source / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "bos_token_id": 0, "eos_token_id": [1, 5]}))
    tokenizer = load(str(source)).tokenizer
    assert (tokenizer.bos_token, tokenizer.eos_token) == ("<s>", "</s>")
    (source / "tokenizer_config.json").write_text(json.dumps({"bos_token": None, "eos_token": "</s>"}))
    assert load(str(source)).tokenizer.bos_token is None


def test_bos_is_added_as_the_file_says(tmp_path: Path) -> None:
    words = tiny_checkpoints.tokenizer()
    adds = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    words.backend_tokenizer.post_processor = adds
    source = tiny_checkpoints.save(build("llama"), tmp_path, words)
    assert load(str(source)).tokenizer("the")["input_ids"][0] == 0
