"""The verbs `ship` and `verify`, and cards, run as a person runs them."""

from __future__ import annotations

import io
import json
import zipfile
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import pytest

from surgery.cli import main as commands
from surgery.errors import GatedModel
from surgery.recipe.base import ModelReference
from surgery.recipe.edits import PruneNeurons, RemoveMlp
from surgery.recipe.recipe import Recipe
from surgery.recipe.storage import Quantize
from surgery.shipping import hub
from tests import tiny_checkpoints
from tests.shipped import source
from tests.tiny_models import build

TEXT = ("--window", 16, "--windows", 3)


def run(*arguments: Any, code: int = 0) -> tuple[str, str]:
    """Standard output and standard error of the command line in this process, which is to end so."""
    out, err = io.StringIO(), io.StringIO()
    with (
        pytest.MonkeyPatch.context() as patch,
        redirect_stdout(out),
        redirect_stderr(err),
        pytest.raises(SystemExit) as ended,
    ):
        patch.setattr("sys.argv", ["surgery", *map(str, arguments)])
        patch.setenv("HF_HUB_OFFLINE", "1")
        patch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
        commands.main()
    assert (ended.value.code or 0) == code, err.getvalue()
    assert "Traceback" not in err.getvalue()
    return out.getvalue(), err.getvalue()


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A source model and recipes for it."""
    where = tmp_path_factory.mktemp("ship")
    model = source(where / "tiny")
    model.recipe(RemoveMlp(blocks=(2,))).save(where / "mixed.json")
    model.recipe(PruneNeurons(removed={0: (1, 2)}), Quantize(type="Q4_0")).save(where / "quantised.json")
    return where


def test_ship_and_verify(place: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    shipped = json.loads(run("ship", place / "mixed.json", "--out", out, *TEXT, "--zip", "--json")[0])
    assert {"path", "files", "sha256", "bytes", "perplexity", "dense_perplexity", "differences"} <= set(shipped)
    assert shipped["path"] == str(out) and "model.safetensors" in shipped["files"]
    assert not any(name.endswith(".gguf") for name in shipped["files"])
    evaluated = json.loads(run("evaluate", place / "tiny", "--recipe", place / "mixed.json", *TEXT, "--json")[0])
    assert shipped["perplexity"] == pytest.approx(evaluated["perplexity"], rel=1e-5)
    assert shipped["dense_perplexity"] == evaluated["dense_perplexity"]
    with zipfile.ZipFile(shipped["zip"]) as archive:
        assert {f"out/{name}" for name in (*shipped["files"], "SHA256SUMS")} == set(archive.namelist())
        archive.extractall(tmp_path / "elsewhere")
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["elsewhere", "out", "out.zip"]
    verified = json.loads(run("verify", tmp_path / "elsewhere" / "out", "--json")[0])
    assert verified["holds"] and verified["sha256"] == shipped["sha256"]
    assert verified["differences"].keys() == {"checkpoint"}
    assert verified["perplexity"] == pytest.approx(shipped["perplexity"], rel=1e-5)
    table = run("verify", out)[0]
    assert f"{shipped['sha256']['README.md']}  README.md\n" in table and "of the largest (tolerance" in table


def test_the_type_is_the_recipes_unless_another_is_asked_for(place: Path, tmp_path: Path) -> None:
    def files(name: str, *options: Any) -> list[str]:
        found = json.loads(
            run("ship", place / "quantised.json", "--out", tmp_path / name, *TEXT, *options, "--json")[0]
        )
        return [file for file in found["files"] if file.endswith((".gguf", "model.safetensors"))]

    assert files("as-it-is") == ["model.safetensors", "tiny-Q4_0.gguf"]
    assert files("alone", "--no-checkpoint", "--type", "Q8_0") == ["tiny-Q8_0.gguf"]
    assert files("floating", "--type", "none") == ["model.safetensors"]


def test_one_changed_byte_ends_with_one_and_names_the_file(place: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    run("ship", place / "mixed.json", "--out", out, *TEXT, "--json")
    content = bytearray((out / "model.safetensors").read_bytes())
    content[-5] ^= 1
    (out / "model.safetensors").write_bytes(content)
    printed, said = run("verify", out, "--json", code=1)
    assert "model.safetensors has changed" in said and len(said.splitlines()) == 1
    found = json.loads(printed)
    assert not found["holds"] and found["changed"] == ["model.safetensors"]
    printed, said = run("verify", out, code=1)
    assert printed == "" and "model.safetensors has changed" in said


def test_a_ship_that_does_not_hold_ends_with_one(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from surgery.shipping import verify as verification

    monkeypatch.setattr(verification, "LOSS_TOLERANCE", dict.fromkeys(verification.LOSS_TOLERANCE, -1.0))
    printed, said = run("ship", place / "mixed.json", "--out", tmp_path / "out", *TEXT, "--json", code=1)
    assert "out.not-verified" in said and not json.loads(printed)["holds"]
    assert [entry.name for entry in tmp_path.iterdir()] == ["out.not-verified"]


def test_push_is_asked_after_the_folder_holds(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def push(folder: Path, repository: str, token: Any, private: bool, *rest: Any) -> str:
        calls.append((folder, repository, token, private))
        if repository == "owner/no":
            raise GatedModel("This token may not write to owner/no: use one that may.")
        return f"https://huggingface.co/{repository}"

    monkeypatch.setattr(hub, "push", push)
    monkeypatch.setenv("HF_TOKEN", "token")
    out = tmp_path / "out"
    found = json.loads(run("ship", place / "mixed.json", "--out", out, *TEXT, "--push", "owner/name", "--json")[0])
    assert calls == [(out, "owner/name", None, True)] and found["repository"] == "https://huggingface.co/owner/name"
    more = ("--push", "owner/no", "--public")
    said = run("ship", place / "mixed.json", "--out", tmp_path / "other", *TEXT, *more, "--json", code=2)[1]
    assert "may not write" in said and calls[-1][3] is False


def test_cards(place: Path, tmp_path: Path) -> None:
    out, card = tmp_path / "out", tmp_path / "card.md"
    run("ship", place / "mixed.json", "--out", out, *TEXT, "--type", "Q8_0")
    found = json.loads(run("export", out, "--format", "card", "--out", card, "--json")[0])
    assert card.read_text() == (out / "README.md").read_text() and found["bytes"] == card.stat().st_size
    run("build", place / "mixed.json", "--out", tmp_path / "built")
    run("export", tmp_path / "built", "--format", "card", "--out", card, "--json")
    text = card.read_text()
    assert "1 MLP removed" in text and "was not measured" in text and "trust_remote_code=True" in text
    run("export", tiny_checkpoints.save(build("llama"), tmp_path / "plain"), "--format", "card", "--out", card, code=2)


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (("ship", "/no/recipe.json", "--out", "OUT"), "/no/recipe.json"),
        (("ship", "RECIPE", "--out", "USED"), "is there already"),
        (("ship", "RECIPE", "--out", "OUT", "--type", "Q9"), "Q9"),
        (("ship", "RECIPE", "--out", "OUT", "--type", "none", "--no-checkpoint"), "nothing to ship"),
        (("ship", "RECIPE", "--out", "OUT", "--text", "/no/text.txt"), "/no/text.txt"),
        (("ship", "RECIPE", "--out", "OUT", "--model", "/no/model"), "/no/model"),
        (("ship", "RECIPE", "--out", "OUT", "--windows", "9999"), "longer text"),
        (("ship", "RECIPE", "--out", "ZIPPED", "--zip"), "is there already"),
        (("verify", "/no/folder"), "SHA256SUMS"),
        (("verify", "USED"), "SHA256SUMS"),
        (("export", "USED", "--format", "card", "--out", "OUT"), "recipe.json"),
    ],
)
def test_bad_input_is_one_sentence(place: Path, tmp_path: Path, arguments: tuple[str, ...], word: str) -> None:
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "mine").write_text("")
    (tmp_path / "zipped.zip").write_text("")
    names = {"RECIPE": place / "mixed.json", "OUT": tmp_path / "out", "USED": tmp_path / "used",
             "ZIPPED": tmp_path / "zipped"}  # fmt: skip
    printed, said = run(*(names.get(argument, argument) for argument in arguments), code=2)
    assert printed == "" and word in said and len(said.splitlines()) == 1
    assert not (tmp_path / "out").exists() and not (tmp_path / "zipped").exists()


def test_a_recipe_for_other_weights_is_refused(place: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.json"
    Recipe(model=ModelReference(id=str(place / "tiny"), fingerprint="0" * 16)).save(recipe)
    assert "other weights" in run("ship", recipe, "--out", tmp_path / "out", code=2)[1]
