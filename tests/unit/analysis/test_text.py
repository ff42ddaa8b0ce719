"""Texts and windows: equal, without padding or overlap, and a named error for every bad source."""

from __future__ import annotations

import functools
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from analysis import files
from analysis import text as texts
from analysis.errors import TextError
from analysis.text import Text, load_file, load_text, make_windows

ROOT = Path(__file__).resolve().parents[3]
WORDS = " ".join(f"w{number}" for number in range(100))
MESSAGES = [{"role": "user", "content": "w1 w2"}, {"role": "assistant", "content": "w3"}]
TEMPLATE = "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}{% endfor %}"


def small_tokenizer(adds_bos: bool) -> PreTrainedTokenizerFast:
    """Word i has the id i + 2; with `adds_bos` its own default puts <s> in front and </s> behind."""
    vocabulary = {"<s>": 0, "</s>": 1, **{f"w{number}": number + 2 for number in range(100)}, "<unk>": 102}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    if adds_bos:
        tokenizer.post_processor = processors.TemplateProcessing(
            single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 1)]
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>", model_max_length=16
    )


PLAIN, WITH_BOS = small_tokenizer(False), small_tokenizer(True)


def refusal(call: Any) -> str:
    """The one sentence with which a call is refused."""
    with pytest.raises(TextError) as caught:
        call()
    message = str(caught.value)
    assert message.endswith(".") and "\n" not in message and len(message) < 500, message
    assert "Traceback" not in message
    return message


def test_windows_are_cut_from_the_start_without_overlap_or_padding() -> None:
    windows = make_windows(PLAIN, Text("pasted", WORDS), 8)
    assert (windows.count, windows.length, windows.predictions, windows.bos) == (12, 8, 12 * 7, False)
    assert windows.ids.dtype == torch.long
    assert windows.ids.flatten().tolist() == list(range(2, 98))  # 100 words: the last four fill no window
    assert windows.source == "pasted"


def test_bos_follows_the_tokenizers_own_default() -> None:
    windows = make_windows(WITH_BOS, Text("pasted", WORDS), 8)
    assert windows.bos and windows.count == 14 and windows.predictions == 14 * 7
    assert windows.ids[:, 0].tolist() == [0] * 14
    assert windows.ids[:, 1:].flatten().tolist() == list(range(2, 100))  # no BOS or EOS in between
    without = small_tokenizer(False)
    without.bos_token = None
    assert not make_windows(without, Text("pasted", WORDS), 8).bos


@pytest.mark.parametrize("tokenizer", [PLAIN, WITH_BOS])
def test_the_number_of_windows_is_the_number_asked_for(tokenizer: Any) -> None:
    everything = make_windows(tokenizer, Text("pasted", WORDS), 11)
    some = make_windows(tokenizer, Text("pasted", WORDS), 11, 3)
    assert some.count == 3 and torch.equal(some.ids, everything.ids[:3])
    exact = make_windows(tokenizer, Text("pasted", WORDS), 101 if tokenizer is WITH_BOS else 100)
    assert exact.count == 1 and exact.ids[0, -1] == 101


def test_windows_can_be_spread_over_the_text() -> None:
    everything = make_windows(PLAIN, Text("pasted", WORDS), 9)
    for count in (1, 3, 4, everything.count):
        spread = make_windows(PLAIN, Text("pasted", WORDS), 9, count, spread=True)
        chosen = [index * everything.count // count for index in range(count)]
        assert torch.equal(spread.ids, everything.ids[chosen]) and spread.spread and not everything.spread
    assert torch.equal(make_windows(PLAIN, Text("pasted", WORDS), 9, 3).ids, everything.ids[:3])


def test_the_same_text_gives_the_same_windows() -> None:
    one, two = (make_windows(WITH_BOS, Text("pasted", WORDS), 9, 4) for _ in range(2))
    assert torch.equal(one.ids, two.ids)
    assert one.fingerprint == two.fingerprint and one.text_fingerprint == two.text_fingerprint
    prints = {make_windows(PLAIN, Text("pasted", WORDS), *shape).fingerprint for shape in ((8, 3), (6, 4), (8, 4))}
    assert len(prints) == 3
    assert Text("a", WORDS).fingerprint == Text("b", WORDS).fingerprint != Text("a", WORDS + "!").fingerprint


@pytest.mark.parametrize("tokenizer", [PLAIN, WITH_BOS])
def test_windows_that_cannot_be_cut_are_refused(tokenizer: Any) -> None:
    text = Text("pasted", WORDS)
    for window, count in ((1, None), (0, None), (-5, 2), (8, 0), (8, -1)):
        assert "at least" in refusal(lambda w=window, c=count: make_windows(tokenizer, text, w, c))
    message = refusal(lambda: make_windows(tokenizer, text, 8, 50))
    assert "100 tokens" in message and "50" in message
    assert "100 tokens" in refusal(lambda: make_windows(tokenizer, text, 500))
    for blank in ("", " \n\t"):
        refusal(lambda content=blank: make_windows(tokenizer, Text("pasted", content), 8))
    assert "surrogate" in refusal(lambda: make_windows(tokenizer, Text("pasted", WORDS + "\ud800"), 8))


def write(folder: Path, name: str, content: str | bytes) -> Path:
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def test_a_plain_file_is_read_as_it_is(tmp_path: Path) -> None:
    assert load_file(write(tmp_path, "a.txt", "naïve – ✓\nline two\n")) == "naïve – ✓\nline two\n"
    assert load_file(write(tmp_path, "b.TXT", b"\xef\xbb\xbfwords")) == "words"  # as Windows programs save it
    text = load_text(str(tmp_path / "a.txt"))
    assert text.source == str(tmp_path / "a.txt") and text.content.startswith("naïve")


def test_json_lines_with_text(tmp_path: Path) -> None:
    rows = [{"text": "one"}, {"text": "two\u2028three\x85four", "other": 1}, {"text": ""}]
    content = "\r\n\n".join(json.dumps(row, ensure_ascii=False) for row in rows)
    assert load_file(write(tmp_path, "a.jsonl", content)) == "one\n\ntwo\u2028three\x85four\n\n"
    assert load_file(write(tmp_path, "b.jsonl", b'\xef\xbb\xbf{"text": "one"}')) == "one"


def test_messages_with_and_without_a_chat_template(tmp_path: Path) -> None:
    path = write(tmp_path, "a.jsonl", json.dumps({"messages": MESSAGES}))
    plain = "user: w1 w2\nassistant: w3"
    assert load_file(path) == load_file(path, small_tokenizer(False)) == plain
    chatty = small_tokenizer(False)
    chatty.chat_template = TEMPLATE
    assert load_file(path, chatty) == "<user>w1 w2<assistant>w3"
    assert load_text(str(path), tokenizer=chatty).content == "<user>w1 w2<assistant>w3"


def test_a_template_that_refuses_a_conversation_is_an_error_of_the_text(tmp_path: Path) -> None:
    strict = small_tokenizer(False)
    strict.chat_template = "{{ raise_exception('Roles must alternate') }}"
    path = write(tmp_path, "a.jsonl", json.dumps({"messages": MESSAGES}))
    message = refusal(lambda: load_file(path, strict))
    assert "Roles must alternate" in message and "line 1 of a.jsonl" in message
    strict.chat_template = "{{ messages[0]['name'] + messages[0]['content'] }}"
    refusal(lambda: load_file(path, strict))


def test_parquet_with_text_or_messages(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pyarrow.parquet.write_table(pyarrow.table({"id": [1, 2], "text": ["one", "two"]}), path)
    assert load_file(path) == "one\n\ntwo"
    pyarrow.parquet.write_table(pyarrow.table({"messages": [MESSAGES]}), path)
    assert load_file(path) == "user: w1 w2\nassistant: w3"


@pytest.mark.parametrize(
    ("name", "content", "names"),
    [
        ("a.txt", b"caf\xe9", ["a.txt", "UTF-8"]),
        ("a.jsonl", b'{"text": "caf\xe9"}', ["a.jsonl", "UTF-8"]),
        ("a.jsonl", '{"text": "one"}\n{"text": ', ["a.jsonl", "ine 2"]),
        ("a.jsonl", "[" * 100_000, ["a.jsonl", "ine 1"]),
        ("a.jsonl", '{"text": "one"}\n\n{"content": "two"}', ["a.jsonl", "line 3", "text", "messages"]),
        ("a.jsonl", '{"text": 5}', ["a.jsonl", "line 1"]),
        ("a.jsonl", '"one"', ["a.jsonl", "line 1"]),
        ("a.jsonl", '{"messages": "one"}', ["a.jsonl", "line 1"]),
        ("a.jsonl", '{"messages": [{"role": "user"}]}', ["a.jsonl", "line 1"]),
        ("a.parquet", b"PAR1 and then nothing", ["a.parquet"]),
        ("a.parquet", b"", ["a.parquet"]),
        ("a.csv", "text\none", ["a.csv", ".txt", ".jsonl", ".parquet"]),
        ("noname", "one", ["noname", ".txt"]),
    ],
)
def test_bad_files_are_refused_by_name(tmp_path: Path, name: str, content: str | bytes, names: list[str]) -> None:
    message = refusal(functools.partial(load_text, str(write(tmp_path, name, content))))
    assert all(part in message for part in names), message


def test_rows_that_hold_nothing_are_skipped_and_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    rows = [{"text": "one"}, {"text": None}, {"messages": []}, {"messages": None}, {"text": ""}, {"messages": MESSAGES}]
    path = write(tmp_path, "a.jsonl", "\n".join(map(json.dumps, rows)))
    found = load_text(str(path))
    assert found.content == "one\n\n\n\nuser: w1 w2\nassistant: w3" and found.skipped == 3
    assert caplog.messages == [f"3 rows of {path} held nothing and were skipped."]
    words = load_text(str(write(tmp_path, "b.jsonl", json.dumps({"text": WORDS}) + '\n{"text": null}')))
    assert make_windows(PLAIN, words, 8).skipped == 1 and caplog.messages[-1].startswith("1 row of ")
    table = tmp_path / "a.parquet"
    pyarrow.parquet.write_table(pyarrow.table({"text": ["one", None, "two"]}), table)
    assert load_text(str(table)).content == "one\n\ntwo" and load_text(str(table)).skipped == 1
    pyarrow.parquet.write_table(pyarrow.table({"messages": [MESSAGES, [], None]}), table)
    assert load_text(str(table)).skipped == 2
    assert "empty" in refusal(lambda: load_text(str(write(tmp_path, "c.jsonl", '{"messages": []}'))))


def test_a_malformed_row_is_refused_by_its_number(tmp_path: Path) -> None:
    table = tmp_path / "a.parquet"
    bad = [{"role": "user", "content": None}]
    pyarrow.parquet.write_table(pyarrow.table({"messages": [MESSAGES] * 1500 + [bad]}), table)
    assert "row 1501 of a.parquet" in refusal(lambda: load_text(str(table)))


@pytest.mark.parametrize("name", ["pipe.txt", "pipe.jsonl", "pipe.parquet"])
def test_a_pipe_is_not_waited_for(tmp_path: Path, name: str) -> None:
    os.mkfifo(tmp_path / name)
    for source in (str(tmp_path / name), "/dev/zero", "/dev/null"):
        assert "not a regular file" in refusal(lambda where=source: load_text(where))


@pytest.mark.parametrize("name", ["empty.txt", "blank.txt", "empty.jsonl"])
def test_files_without_words_are_refused(tmp_path: Path, name: str) -> None:
    path = write(tmp_path, name, "\n \n" if name == "blank.txt" else "")
    assert "empty" in refusal(lambda: load_text(str(path)))


def test_bad_parquet_contents(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pyarrow.parquet.write_table(pyarrow.table({"content": ["one"]}), path)
    assert "`text`" in refusal(lambda: load_file(path))
    pyarrow.parquet.write_table(pyarrow.table({"text": [1, 2]}), path)
    assert "a.parquet" in refusal(lambda: load_file(path))
    pyarrow.parquet.write_table(pyarrow.table({"text": ["some words " * 50] * 100}), path, compression="none")
    content = path.read_bytes()
    path.write_bytes(content[:200] + b"\xff" * 200 + content[400:])
    assert "a.parquet" in refusal(lambda: load_file(path))


def test_files_that_are_too_large_or_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    packed = tmp_path / "packed.parquet"
    pyarrow.parquet.write_table(pyarrow.table({"text": [str(n) + "x" * 10_000 for n in range(500)]}), packed)
    for module in (texts, files):
        monkeypatch.setattr(module, "LARGEST_TEXT", 2 * 2**20)
    assert packed.stat().st_size < 2**20, "a small file that unpacks to 5 MB"
    assert "2 MiB" in refusal(lambda: load_text(str(packed)))
    for name in ("big.txt", "big.jsonl", "big.parquet"):
        path = write(tmp_path, name, "x" * (2 * 2**20 + 1))
        message = refusal(lambda file=path: load_text(str(file)))
        assert name in message and "2 MiB" in message
    for source in (str(tmp_path), str(tmp_path / "none.txt"), "none.txt", "", "x" * 10_000, "no\nsuch.txt"):
        assert "no text file" in refusal(lambda where=source: load_text(where))


def test_a_hub_data_set_in_a_local_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    folder = tmp_path / "data"
    folder.mkdir()
    write(folder, "train.jsonl", '{"text": "one"}\n{"text": "two"}\n')
    write(folder, "test.jsonl", '{"text": "three"}\n')
    assert load_text(f"hub:{folder}").content == "one\n\ntwo"
    assert load_text(f"hub:{folder}::test").content == "three"
    assert "validation" in refusal(lambda: load_text(f"hub:{folder}::validation"))
    chats = tmp_path / "chats"
    chats.mkdir()
    write(chats, "train.jsonl", json.dumps({"messages": MESSAGES}))
    chatty = small_tokenizer(False)
    chatty.chat_template = TEMPLATE
    assert load_text(f"hub:{chats}").content == "user: w1 w2\nassistant: w3"
    assert load_text(f"hub:{chats}", tokenizer=chatty).content == "<user>w1 w2<assistant>w3"
    other = tmp_path / "other"
    other.mkdir()
    write(other, "train.jsonl", '{"content": "one"}\n')
    message = refusal(lambda: load_text(f"hub:{other}"))
    assert "`text`" in message and "content" in message


def test_a_data_set_that_cannot_be_had_is_one_sentence() -> None:
    for source in ("hub:", "hub:a:b:c:d"):
        assert "hub:owner/name" in refusal(lambda where=source: load_text(where))
    script = (
        "from analysis.text import load_text, TextError\n"
        "for source in ('hub:nobody/no-such-data', 'wikitext-2'):\n"
        "    try: load_text(source)\n"
        "    except TextError as error: print(error)\n"
    )
    offline = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": "/nonexistent", "HF_DATASETS_OFFLINE": "1"}
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, env=offline, capture_output=True, text=True)
    lines = done.stdout.splitlines()
    assert len(lines) == 2 and "no-such-data" in lines[0] and "wikitext" in lines[1], done.stderr
    assert all(line.endswith(".") and len(line) < 500 and "network" in line for line in lines)


def test_the_embedded_texts_share_no_sentence() -> None:
    def sentences(purpose: Any) -> set[str]:
        found = re.split(r"(?<=[.!?])\s+|\n+", load_text("embedded", purpose).content)
        return {" ".join(sentence.lower().split()) for sentence in found if len(sentence) >= 40}

    calibration, evaluation = sentences("calibration"), sentences("evaluation")
    assert min(len(calibration), len(evaluation)) > 100
    assert not calibration & evaluation


@pytest.mark.slow
@pytest.mark.parametrize("purpose", ["calibration", "evaluation"])
def test_each_embedded_text_has_at_least_5000_tokens(purpose: Any) -> None:
    from transformers import AutoTokenizer

    from surgery.models import embedded

    tokenizer = AutoTokenizer.from_pretrained(embedded.directory())
    windows = make_windows(tokenizer, load_text("embedded", purpose), 500, 10)
    assert windows.ids.numel() == 5000 and windows.ids.max() < len(tokenizer)
