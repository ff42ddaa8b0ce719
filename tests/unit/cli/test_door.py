"""One door for every option of every verb: refused in one sentence, with nothing opened, whatever is given."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import pytest

from surgery.cli.options import TextOptions
from surgery.workbench.workbench import Workbench
from tests.unit.cli.test_commands import ROOT, folder, run  # noqa: F401

RECIPE = {"schema": "model-surgery/recipe/1", "model": {"id": "default"}, "edits": []}


@pytest.fixture
def nothing_opens(monkeypatch: pytest.MonkeyPatch) -> None:
    def opened(*_: Any, **__: Any) -> None:
        raise AssertionError("a model was opened")

    monkeypatch.setattr(Workbench, "open", opened)


def lines() -> list[tuple[str, str]]:
    """Command lines in words, EMPTY for an empty one, and what the refusal says."""
    heal, many = "heal RECIPE --out new", "9" * 400
    return [
        ("fit default --device nvidia-t4 --context 2147483649", "--context"),
        (f"fit default --device nvidia-t4 --context {'9' * 30}", "--context"),
        ("fit default --device nvidia-t4 --kv-type F1", "KV-cache type"),
        ("fit default --device nvidia-t4 --type F1", "weight type"),
        ("fit default --device PIPE.json", "not a regular file"),
        ("fit default --device /dev/zero.json", "cannot be read"),
        (f"suggest default --method maw --params {many}", "not a parameter budget"),
        ("suggest default --method maw --params -20", "not a parameter budget"),
        ("suggest default --method maw --percent inf", "must be a number from"),
        ("suggest default --method maw --percent 101", "must be a number from 0 to 100"),
        ("suggest default --method maw --expansion-ratio 1e300", "not an expansion ratio"),
        ("suggest default --method maw --blocks 2", "its budget is"),
        ("suggest default --method nothing --blocks 2", "no method"),
        ("suggest default --method maw --percent 5 --sharpness nan", "--sharpness"),
        ("suggest default --method maw --percent 5 --text none.txt", "no text file"),
        ("suggest default --method maw --percent 5 --out no/such/recipe.json", "no folder"),
        ("analyze default --out .", "is a folder"),
        ("analyze default --out no/such/file", "no folder"),
        ("analyze default --text PIPE", "not a regular file"),
        ("analyze default --text /dev/zero", "not a regular file"),
        ("scan default --text /dev/null", "not a regular file"),
        ("scan default --edits EMPTY", "--edits is empty"),
        ("scan default --edits blocks,", "--edits"),
        ("evaluate default --recipe PIPE", "not a regular file"),
        ("evaluate default --recipe /dev/zero", "not a regular file"),
        ("evaluate default --calibration PIPE", "not a regular file"),
        ("evaluate default --text EMPTY", "--text is empty"),
        ("evaluate default --window 99999999999999999999", "--window"),
        ("evaluate EMPTY", "MODEL is empty"),
        ("evaluate PIPE.gguf", "not a regular file"),
        ("inspect PIPE", "not a regular file"),
        ("inspect /dev/zero", "not a regular file"),
        (heal, "how long"),
        (f"{heal} --minutes inf", "--minutes"),
        (f"{heal} --minutes 1e300", "--minutes"),
        (f"{heal} --steps 5 --clip inf", "--clip"),
        (f"{heal} --steps 5 --clip nan", "--clip"),
        (f"{heal} --steps 5 --linears EMPTY", "--linears is empty"),
        (f"{heal} --steps 5 --linears up,", "linears"),
        (f"{heal} --steps 5 --base EMPTY", "--base is empty"),
        (f"{heal} --steps 5 --base Q9", "base"),
        (f"{heal} --steps 5 --where nowhere", "where"),
        (f"{heal} --steps 5 --rank 100000", "rank"),
        (f"{heal} --steps 5 --precision float8", "precision"),
        (f"{heal} --steps 5 --windows 2 --held-out 2", "held out"),
        (f"{heal} --steps 5 --text PIPE", "not a regular file"),
        (f"{heal} --steps 5 --evaluation-text none.txt", "no text file"),
        ("iterate default --out new --method nothing --rounds 2 --steps 2 --blocks 2", "no method"),
        ("iterate default --out new --method maw --rounds 2 --steps 2 --blocks 2", "its budget is"),
        ("iterate default --out new --method maw --rounds 2 --steps 2 --params -10% --where nowhere", "where"),
        ("export default --out . --type F16", "is a folder"),
        ("export default --out new --type F17", "no type"),
        ("export default --out no/such/x.gguf", "no folder"),
        ("export RECIPE --format mergekit --out no/such/x.yaml", "no folder"),
        ("quantize default --out no/such/x.gguf", "no folder"),
        ("quantize default --out new --eora 4", "made by `ship`"),
        ("quantize default --out new --format torchao --type int9", "no type"),
        ("quantize default --out new --format torchao --type int8 --method gptq", "gptq"),
        ("quantize none --out new", "not a checkpoint folder"),
        ("ship RECIPE --out new --type none --no-checkpoint", "nothing to ship"),
        ("ship RECIPE --out new --type Q9", "no type"),
        ("ship RECIPE --out new --push owner/name", "HF_TOKEN"),
        ("read default --prompt x --tokens 0", "between 1 and"),
        ("read default --prompt x --temperature nan", "--temperature"),
        ("read default --prompt x --seed 99999999999999999999", "--seed"),
        ("read default --prompt EMPTY", "--prompt is empty"),
        ("verify PIPE", "has no SHA256SUMS"),
    ]


@pytest.mark.parametrize(("line", "words"), lines())
def test_a_refusal_comes_before_anything_is_opened(
    line: str, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, nothing_opens: None
) -> None:
    if line.startswith(("inspect", "evaluate PIPE")):  # the model itself is refused
        monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("HF_TOKEN", raising=False)
    for name in ("PIPE", "PIPE.json", "PIPE.gguf"):
        os.mkfifo(tmp_path / name)
    (tmp_path / "RECIPE").write_text(json.dumps(RECIPE))
    before = sorted(tmp_path.iterdir())
    said = run(*("" if word == "EMPTY" else word for word in line.split()), code=2)
    assert words in said and len(said.splitlines()) == 1 and len(said) < 700
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize("name", ["tokenizer.json", "generation_config.json", "chat_template.jinja", "x.safetensors"])
def test_a_pipe_in_a_checkpoint_folder_is_named(folder: Path, tmp_path: Path, name: str) -> None:  # noqa: F811
    for file in folder.iterdir():
        if file.is_file() and file.name != name:
            (tmp_path / file.name).write_bytes(file.read_bytes())
    os.mkfifo(tmp_path / name)
    for line in (("inspect", tmp_path), ("export", tmp_path, "--out", tmp_path / "x.gguf")):
        assert f"{name}' is not a regular file" in run(*line, code=2)


def test_libraries_are_not_heard_on_standard_error(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    """What a library prints, warns, logs or draws before a refusal is not shown; the sentence is."""
    import logging

    from tqdm import tqdm

    def chatty(*_: Any, **__: Any) -> None:
        warnings.warn("FutureWarning of a library", FutureWarning, stacklevel=1)
        print("a library speaks", file=sys.stderr)
        logging.getLogger("library").error("a library's log")
        list(tqdm(range(3)))

    monkeypatch.setattr(TextOptions, "measured", lambda *_: chatty() or [][0])
    said = run("evaluate", folder, code=1)
    assert len(said.splitlines()) == 1 and said.startswith("Something unforeseen went wrong (code ")
    (folder / "bad.gguf").write_bytes(b"GGUF and then nothing")
    said = run("inspect", folder / "bad.gguf", code=2)
    assert len(said.splitlines()) == 1 and "bad.gguf" in said


def test_rows_without_content_are_said_once(folder: Path, tmp_path: Path) -> None:  # noqa: F811
    words = (folder / "text.txt").read_text()
    text = tmp_path / "rows.jsonl"
    text.write_text("\n".join(json.dumps(row) for row in ({"text": None}, {"text": words}, {"messages": []})))
    command = [sys.executable, "-m", "surgery", "evaluate", folder, "--text", text, "--window", "16", "--windows", "2"]
    done = subprocess.run([*command, "--json"], cwd=ROOT, capture_output=True, text=True)
    assert done.stderr == f"2 rows of {text} held nothing and were skipped.\n"
    plain = json.loads(run("evaluate", folder, "--text", folder / "text.txt", "--window", 16, "--windows", 2, "--json"))
    found = json.loads(done.stdout)
    assert found["perplexity"] == plain["perplexity"] and found["text"]["skipped_rows"] == 2


def test_a_context_above_the_models_own_is_marked(folder: Path) -> None:  # noqa: F811
    most = json.loads(run("inspect", folder, "--json"))["context_length"]
    for context in (most, most + 1, 2**31):
        found = json.loads(run("fit", folder, "--device", "nvidia-t4", "--context", context, "--json"))
        marked = [note for note in found["notes"] if f"at most {most:,} tokens of context" in note]
        assert len(marked) == (context > most)


def test_standard_output_on_a_full_disk_is_one_sentence() -> None:
    with open("/dev/full", "w") as full:
        command = [sys.executable, "-m", "surgery", "methods", "--json"]
        done = subprocess.run(command, cwd=ROOT, stdout=full, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 1 and done.stderr.splitlines() == [
        "A file could not be read or written (No space left on device): check the disk."
    ]


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
@pytest.mark.parametrize("seconds", [2.0, 8.0])
def test_a_verb_ends_with_a_signal(folder: Path, tmp_path: Path, number: int, code: int, seconds: float) -> None:  # noqa: F811
    """While libraries are imported or the model opens, and while it heals."""
    (tmp_path / "recipe.json").write_text(json.dumps(RECIPE | {"model": {"id": str(folder)}, "edits": [
        {"op": "remove_blocks", "blocks": "1"}]}))  # fmt: skip
    command = [sys.executable, "-m", "surgery", "heal", tmp_path / "recipe.json", "--out", tmp_path / "out", "--steps",
               "1000000", "--text", folder / "text.txt", "--window", "16"]  # fmt: skip
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True, start_new_session=True)
    time.sleep(seconds)
    assert process.poll() is None
    begun = time.monotonic()
    process.send_signal(number)
    _, said = process.communicate(timeout=60)
    assert process.returncode == code and said == "Cancelled.\n"
    assert time.monotonic() - begun < 10  # 2 s, and what busy cores may add
    assert [entry.name for entry in tmp_path.iterdir() if entry.name != ".out.unfinished"] == ["recipe.json"]
