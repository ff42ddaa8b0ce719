"""Windows that a model can take: its positions, its vocabulary, and one BOS."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import processors

from analysis.errors import TextError
from analysis.text import Text, load_text, make_windows
from surgery.evaluation.generation import Writer
from surgery.evaluation.sampling import Sampling
from surgery.models.loading import load
from surgery.recipe.texts import TextChoice
from surgery.training.data import load_healing_text
from surgery.workbench.open_model import OpenModel
from tests import tiny_checkpoints
from tests.tiny_models import build
from tests.unit.cli.test_commands import run

TEMPLATE = "{{ bos_token }}{% for m in messages %}[{{ m['role'] }}]{{ m['content'] }}{% endfor %}"
WORDS = "the cat's mat, we'll see 1234 things in 99 days " * 60


def chatty() -> Any:
    """A tokenizer that puts BOS before a text, with a template that writes it too."""
    words = tiny_checkpoints.tokenizer()
    adds = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    words.backend_tokenizer.post_processor = adds
    words.chat_template = TEMPLATE
    return words


def conversations(folder: Path) -> Path:
    rows = [{"messages": [{"role": "user", "content": WORDS[:80]}, {"role": "assistant", "content": WORDS[:60]}]}] * 6
    path = folder / "chat.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


def test_a_conversation_has_one_bos_where_it_begins(tmp_path: Path) -> None:
    words, path = chatty(), conversations(tmp_path)
    text = load_text(str(path), tokenizer=words)
    wanted = words(text.content, add_special_tokens=False)["input_ids"]
    assert wanted.count(0) == 6
    for windows in (make_windows(words, text, 16), load_healing_text(words, str(path), 16, 8).windows):
        ids = windows.ids.flatten().tolist()
        assert ids == wanted[: len(ids)] and not windows.bos
    plain = make_windows(words, Text("pasted", WORDS), 16)
    assert plain.bos and plain.ids[:, 0].tolist() == [0] * plain.count and not (plain.ids[:, 1:] == 0).any()


@pytest.fixture(scope="module", params=["gpt2", "opt", "llama"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_checkpoints.save(build(request.param), tmp_path_factory.mktemp(request.param))


def test_windows_that_nobody_asked_for_shorten_and_say_so(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    model = OpenModel(load(str(folder)))
    with caplog.at_level(logging.WARNING):
        assert model.windows(TextChoice(shorten=True)).length == 128
    assert "at most 128 tokens a window" in caplog.text and "256" in caplog.text
    caplog.clear()
    assert model.windows(TextChoice(window=128)).length == 128 and not caplog.text
    for window in (129, 256):
        with pytest.raises(TextError, match=f"at most 128 tokens a window and {window} "):
            model.windows(TextChoice(window=window))


def test_an_explicit_window_beyond_the_positions_is_refused(folder: Path) -> None:
    said = "The model takes at most 128 tokens a window and 200 were asked for: choose shorter windows."
    assert run("evaluate", folder, "--window", 200, "--windows", 1, code=2).endswith(said)
    assert json.loads(run("evaluate", folder, "--windows", 1, "--json"))["window"] == 128
    with pytest.raises(TextError, match="at most 128"):
        load_healing_text(tiny_checkpoints.tokenizer(), "embedded", 200, 2, model=load(str(folder)).architecture)


def test_an_id_without_an_embedding_is_named(folder: Path) -> None:
    loaded = load(str(folder))
    model = OpenModel(loaded)
    loaded.tokenizer.add_tokens([f"<{number}>" for number in range(len(loaded.tokenizer), 128)] + ["zebra"])
    assert loaded.tokenizer("zebra")["input_ids"][-1] == 128
    named = r"the id 128 and the model has 128 tokens"
    with pytest.raises(TextError, match=named):
        model.windows(TextChoice("pasted", 16, 2, content="zebra " + WORDS))
    assert model.windows(TextChoice("pasted", 16, 2, content=WORDS)).count == 2
    with pytest.raises(TextError, match=named):
        Writer(loaded.model, loaded.tokenizer, torch.tensor([[3, 128]]), Sampling(tokens=2))
    with pytest.raises(TextError, match=named):
        load_healing_text(loaded.tokenizer, "", 16, 2, content="zebra " + WORDS, model=loaded.architecture)
