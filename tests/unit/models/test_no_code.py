"""Code that lies beside a model is never asked for and never run: a harmless marker says so."""

from __future__ import annotations

import builtins
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import surgery
from surgery.checkpoints.packed import load_packed
from surgery.errors import InputError, RemoteCodeNeeded
from surgery.gguf.write import write_gguf
from surgery.models.loading import load_empty
from surgery.structure.structure import whole
from tests import tiny_checkpoints
from tests.tiny_models import build
from tests.unit.cli.test_commands import run

CLASSES = {"AutoConfig": "mine.C", "AutoModelForCausalLM": "mine.M", "AutoModel": "mine.M"}
TEXT = ("--window", 16, "--windows", 1)


@pytest.fixture(autouse=True)
def nobody_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    def asked(*_: Any) -> str:
        raise AssertionError("a library asks for consent")

    monkeypatch.setattr(builtins, "input", asked)


def plant(folder: Path, **also: Any) -> Path:
    """Code in every place where a library looks for some; returns the file that it makes when it runs."""
    mark = folder.parent / f"ran-{folder.name}"
    code = (
        f"open({str(mark)!r}, 'w').close()\nclass C: pass\nclass M: pass\nclass T: pass\ndef generate(*a, **k): pass\n"
    )
    (folder / "custom_generate").mkdir()
    for name in (
        "mine.py",
        "custom_generate/generate.py",
        "__init__.py",
        "modeling_model_surgery.py",
        "sitecustomize.py",
    ):
        (folder / name).write_text(code)
    path = folder / "config.json"
    if path.is_file():
        said = {
            "auto_map": CLASSES,
            "attn_implementation": "owner/kernel",
            "custom_pipelines": {"x": {"impl": "mine.C"}},
        }
        path.write_text(json.dumps({**json.loads(path.read_text()), **said, **also}))
    return mark


def plain(folder: Path) -> Path:
    return tiny_checkpoints.save(build("llama"), folder)


def own(folder: Path) -> Path:
    """A checkpoint whose blocks differ, which carries our modelling file."""
    specs = [whole(block) for block in surgery.load(str(plain(folder.parent / "whole"))).architecture.blocks]
    specs[1] = type(specs[1])(1, specs[1].query_heads, specs[1].kv_heads, specs[1].neurons[:40])
    tiny_checkpoints.save_edited(build("llama"), specs, folder)
    return folder


def gguf_file(folder: Path) -> Path:
    folder.mkdir()
    file = write_gguf(plain(folder.parent / "floating"), folder / "model.gguf", "F32").path
    shutil.copy(folder.parent / "floating" / "config.json", folder)
    return Path(file)


KINDS: dict[str, Callable[[Path], Path]] = {"folder": plain, "own": own, "gguf": gguf_file}


@pytest.mark.parametrize("kind", [*KINDS])
def test_code_beside_a_source_is_not_run_by_any_verb(kind: str, tmp_path: Path) -> None:
    source = KINDS[kind](tmp_path / "source")
    mark = plant(tmp_path / "source")
    recipe = tmp_path / "recipe.json"
    edits = [{"op": "remove_blocks", "blocks": "2"}]
    recipe.write_text(json.dumps({"schema": "model-surgery/recipe/1", "model": {"id": str(source)}, "edits": edits}))
    surgery.load(str(source))
    run("inspect", source)
    run("analyze", source, *TEXT)
    run("suggest", source, "--method", "block_influence", "--blocks", 1, *TEXT)
    run("evaluate", source, "--recipe", recipe, *TEXT)
    run("scan", source, "--edits", "blocks", *TEXT)
    run("read", source, "--prompt", "the", "--tokens", 2)
    run("fit", source, "--device", "android-phone-snapdragon-778g-6gb", "--context", 64)
    run("build", recipe, "--out", tmp_path / "built")
    run("heal", recipe, "--out", tmp_path / "healed", "--steps", 1, "--window", 16, "--windows", 4)
    run("iterate", source, "--method", "block_influence", "--blocks", 1, "--rounds", 1, "--steps", 1, "--out",
        tmp_path / "again", "--window", 16, "--windows", 4, "--calibration-windows", 1)  # fmt: skip
    run("export", recipe, "--format", "mergekit", "--out", tmp_path / "merge.yml")
    run("quantize", source, "--format", "torchao", "--type", "int8", "--out", tmp_path / "int8", *TEXT)
    if kind != "gguf":
        run("export", source, "--out", tmp_path / "out.gguf")
    run("ship", recipe, "--out", tmp_path / "shipped", *TEXT)
    run("verify", tmp_path / "shipped")
    assert not mark.exists()
    packed = tmp_path / "int8"
    planted = plant(packed)
    load_packed(packed, None)
    assert not planted.exists()


def test_a_tokenizers_code_is_refused_and_not_asked_for(tmp_path: Path) -> None:
    folder = plain(tmp_path / "source")
    mark, path = plant(folder), folder / "tokenizer_config.json"
    changes = {"tokenizer_class": "Mine", "auto_map": {"AutoTokenizer": ["mine.T", "mine.T"]}}
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    for door in (lambda: surgery.load(str(folder)), lambda: load_empty(folder), lambda: load_packed(folder, None)):
        with pytest.raises(InputError) as caught:
            door()
        assert "trust_remote_code" in str(caught.value)
    assert isinstance(caught.value, RemoteCodeNeeded | InputError) and not mark.exists()


def test_an_adapters_code_is_not_run(tmp_path: Path) -> None:
    folder = tmp_path / "adapter"
    folder.mkdir()
    said = {"base_model_name_or_path": "x", "auto_mapping": {"base_model_class": "M", "parent_library": "mine"}}
    (folder / "adapter_config.json").write_text(json.dumps(said))
    mark = plant(folder)
    with pytest.raises(InputError, match="adapter"):
        surgery.load(str(folder))
    assert not mark.exists()
