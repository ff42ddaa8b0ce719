"""Verification: a single changed byte is found and named, damage that the sums cover up is found by its numbers."""

from __future__ import annotations

import json
import shutil
import stat
from pathlib import Path
from threading import Event
from typing import Any

import gguf
import pytest
import torch
from safetensors.torch import load_file, save_file

from surgery.errors import Cancelled, CorruptFile, InputError, UnknownModel, VerificationFailed
from surgery.recipe.texts import TextChoice
from surgery.shipping import verify as verification
from surgery.shipping.checksums import SUMS, check_sums, read_sums, write_sums
from surgery.shipping.record import RECORD, SAMPLE, ShipRecord
from surgery.shipping.ship_folder import ship
from surgery.shipping.verify import Difference, verify
from surgery.shipping.weights import ShipOptions
from tests.shipped import TEXT, mixed, source

WORDS = "My own words, which are nobody's business but mine. " * 4
MINE = TextChoice("pasted", 16, 3, content=WORDS)


@pytest.fixture(scope="module")
def originals(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shipped folders: both forms; a checkpoint whose blocks differ; one whose text stayed at home."""
    where = tmp_path_factory.mktemp("shipped")
    model = source(where / "tiny")
    ship(model, model.recipe(), where / "both", TEXT, ShipOptions(gguf="Q8_0"))
    ship(model, mixed(model), where / "mixed", TEXT)
    ship(model, mixed(model), where / "file", TEXT, ShipOptions(False, "Q8_0"))
    ship(model, mixed(model), where / "private", MINE, ShipOptions(keep_windows=False))
    return where


@pytest.fixture
def folder(originals: Path, tmp_path: Path) -> Any:
    """A function that copies one of them."""
    return lambda name: Path(shutil.copytree(originals / name, tmp_path / name))


def flip(path: Path, place: float = 0.5) -> None:
    content = bytearray(path.read_bytes())
    content[int(place * (len(content) - 1))] ^= 1
    path.write_bytes(content)


def resum(folder: Path) -> None:
    """Make the sums right again, as whoever tampers with a folder would."""
    (folder / SUMS).unlink()
    write_sums(folder)


@pytest.mark.parametrize("name", ["both", "mixed", "file"])
def test_what_was_shipped_holds(folder: Any, name: str) -> None:
    seen: list[float] = []
    found = verify(folder(name), report=lambda share, words: seen.append(share))
    document = found.document()
    assert found.holds and document["problems"] == [] and seen == sorted(seen) and seen[-1] == 1.0
    for difference in document["differences"].values():
        assert difference["holds"] and difference["logits_max_relative"] < 1e-5
        assert difference["perplexity"] == pytest.approx(difference["perplexity_recorded"], rel=1e-5)
    assert document["sha256"] == read_sums(found.path)


def test_one_changed_byte_of_any_file_is_named(folder: Any) -> None:
    made = folder("both")
    for name in read_sums(made):
        before = (made / name).read_bytes()
        flip(made / name)
        with pytest.raises(VerificationFailed) as error:
            verify(made)
        assert f"{name} has changed" in str(error.value), name
        assert error.value.verification.sums.changed == (name,) and not error.value.verification.holds
        (made / name).write_bytes(before)
    assert verify(made).holds


def test_a_missing_file_is_named_and_another_one_is_listed(folder: Any) -> None:
    made = folder("mixed")
    (made / "notes.txt").write_text("mine")
    (made / ".hidden").write_text("")
    (made / ".git").mkdir()
    (made / ".git" / "config").write_text("")
    (made / ".empty").mkdir()
    (made / "elsewhere").symlink_to("/")
    assert verify(made).sums.unlisted == (".empty", ".git/config", ".hidden", "elsewhere", "notes.txt")
    (made / "tokenizer.json").unlink()
    with pytest.raises(VerificationFailed, match=r"tokenizer\.json is missing"):
        verify(made)


@pytest.mark.parametrize("name", ["both", "file"])
def test_another_scale_in_a_gguf_file_is_found_by_its_numbers(folder: Any, name: str) -> None:
    """The two bytes before each 32 weights of a Q8_0 row are their scale."""
    made = folder(name)
    [path] = made.glob("*.gguf")
    reader = gguf.GGUFReader(path)
    tensor = next(entry for entry in reader.tensors if entry.name == "blk.0.ffn_up.weight")
    assert tensor.tensor_type.name == "Q8_0"
    place = int(tensor.data_offset)
    content = bytearray(path.read_bytes())
    content[place + 1] ^= 0b00001100  # the exponent of a half
    path.write_bytes(content)
    resum(made)
    with pytest.raises(VerificationFailed, match=r"\.gguf gives a perplexity of"):
        verify(made)
    path.write_bytes(content[: len(content) // 2])
    resum(made)
    with pytest.raises(VerificationFailed, match=r"\.gguf of \w+ cannot be read back"):
        verify(made)


@pytest.mark.parametrize(("name", "share"), [("mixed", 1e-3), ("both", 1e-3)])
def test_other_weights_under_right_sums_are_found_by_their_numbers(folder: Any, name: str, share: float) -> None:
    made = folder(name)
    state = load_file(made / "model.safetensors")
    for tensor in state.values():
        if tensor.dim() == 2:
            tensor.mul_(1 + 100 * share)
    save_file(state, made / "model.safetensors", {"format": "pt"})
    resum(made)
    with pytest.raises(VerificationFailed, match=r"model\.safetensors gives a perplexity of .* was recorded") as error:
        verify(made)
    found = error.value.verification.document()
    assert not found["holds"] and not found["differences"]["checkpoint"]["holds"]
    assert found["differences"].get("gguf", {"holds": True})["holds"], "the other form is as it was"


def test_one_wrong_row_of_the_vocabulary_shows_in_the_logits(folder: Any) -> None:
    """A row whose token is not among the measured ones moves perplexity a little and its own logits a lot."""
    made = folder("both")
    state = load_file(made / "model.safetensors")
    state["lm_head.weight"][17] *= -1
    save_file(state, made / "model.safetensors", {"format": "pt"})
    resum(made)
    with pytest.raises(VerificationFailed, match="logits that differ by"):
        verify(made)


def test_weights_that_cannot_be_read_back(folder: Any) -> None:
    made = folder("mixed")
    (made / "model.safetensors").write_bytes((made / "model.safetensors").read_bytes()[:1000])
    resum(made)
    with pytest.raises(VerificationFailed, match=r"model\.safetensors of mixed cannot be read back"):
        verify(made)


def test_another_tokenizer_is_found(folder: Any) -> None:
    made = folder("mixed")
    tokenizer = json.loads((made / "tokenizer.json").read_text())
    tokenizer["model"]["merges"] = []
    (made / "tokenizer.json").write_text(json.dumps(tokenizer))
    resum(made)
    with pytest.raises(VerificationFailed, match="the tokenizer splits the sample text otherwise"):
        verify(made)


@pytest.mark.parametrize("name", ["mixed", "file"])
@pytest.mark.parametrize("part", ["normalizer", "special", "template"])
def test_another_tokenizer_is_found_where_the_sample_text_does_not_show_it(folder: Any, name: str, part: str) -> None:
    made = folder(name)
    [path] = made.rglob("tokenizer.json")
    words = json.loads(path.read_text())
    if part == "normalizer":  # of a character that the sample text has not
        words["normalizer"] = {"type": "Replace", "pattern": {"String": "\u0416"}, "content": "a"}
    elif part == "special":
        words["added_tokens"][1]["content"] = "</t>"
        words["model"]["vocab"]["</t>"] = words["model"]["vocab"].pop("</s>")
    else:
        (path.parent / "chat_template.jinja").write_text("{{ messages }}")
    path.write_text(json.dumps(words))
    resum(made)
    with pytest.raises(VerificationFailed, match="the tokenizer is not the one that was shipped"):
        verify(made)


def test_a_folder_of_an_older_release_still_holds() -> None:
    """Written by commit 4d2c8bc: blocks that differ, a modelling file of its time, no tokenizer in its record."""
    found = verify(Path(__file__).parents[2] / "older" / "shipped")
    assert found.holds and not found.sums.unlisted and found.record is not None
    assert found.record.tokenizer is None and not found.record.runs


@pytest.mark.parametrize("name", ["mixed", "file"])
def test_the_code_of_a_folder_is_not_run(folder: Any, tmp_path: Path, name: str) -> None:
    made = folder(name)
    [trap] = made.rglob("modeling_model_surgery.py")
    trap.write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n" + trap.read_text())
    resum(made)
    assert verify(made).holds and not (tmp_path / "ran").exists()


def test_a_text_that_stayed_at_home_is_asked_for(folder: Any, tmp_path: Path) -> None:
    made = folder("private")
    with pytest.raises(InputError, match="measured on 'pasted', whose tokens are not in the folder"):
        verify(made)
    other = tmp_path / "other.txt"
    other.write_text("Other words altogether, and as many as before they were. " * 4)
    with pytest.raises(InputError, match="is not the text that was measured"):
        verify(made, TextChoice(str(other)))
    other.write_text(WORDS)
    assert verify(made, TextChoice(str(other))).holds


def test_a_folder_of_something_else(tmp_path: Path, folder: Any) -> None:
    for place in (tmp_path, tmp_path / "none"):
        with pytest.raises(UnknownModel, match="SHA256SUMS"):
            verify(place)
    made = folder("mixed")
    (made / RECORD).unlink()
    resum(made)
    with pytest.raises(UnknownModel, match=r"ship\.json"):
        verify(made)


@pytest.mark.parametrize(
    "line",
    ["0" * 64 + "  ../secret", "0" * 64 + "  /etc/passwd", "0" * 64 + "  a/../../b", "0" * 64 + "  C:\\x", "x  y", "",
     "0" * 63 + "  a", "0" * 64 + "  " + "a" * 300, "0" * 64 + "  " + "a/" * 2000 + "b"],
)  # fmt: skip
def test_sums_that_lead_out_of_the_folder_or_are_none(tmp_path: Path, line: str) -> None:
    (tmp_path / SUMS).write_text(f"{line}\n")
    with pytest.raises(CorruptFile, match="Line 1 of SHA256SUMS"):
        check_sums(tmp_path)


@pytest.mark.parametrize(
    "change",
    [
        lambda record: record | {"schema": "model-surgery/ship/9"},
        lambda record: record | {"more": 1},
        lambda record: record | {"parts": []},
        lambda record: record | {"protocol": None},
        lambda record: record | {"parts": [record["parts"][0] | {"measured": None}]},
        lambda record: record | {"parts": [record["parts"][0] | {"kind": "pickle"}]},
        lambda record: record | {"parts": [record["parts"][0] | {"files": ["../../x.safetensors"]}]},
        lambda record: [],
    ],
)
def test_records_that_are_none(folder: Any, change: Any) -> None:
    made = folder("mixed")
    record = json.loads((made / RECORD).read_text())
    (made / RECORD).write_text(json.dumps(change(record)))
    with pytest.raises(CorruptFile, match=r"ship\.json of mixed cannot be used"):
        ShipRecord.load(made)
    (made / RECORD).write_text("[" * 100_000)
    with pytest.raises(CorruptFile):
        ShipRecord.load(made)


def test_samples_that_are_none(folder: Any) -> None:
    made = folder("mixed")
    tensors = load_file(made / SAMPLE)
    changes = {
        "windows": tensors["windows"] + 1,
        "ids": tensors["ids"][:, :0],
        "positions": tensors["positions"] + 60,
        "logits.checkpoint": tensors["logits.checkpoint"][:1],
    }
    changed = [{name: tensor} for name, tensor in changes.items()]
    changed += [{"logits.checkpoint": torch.zeros_like(tensors["logits.checkpoint"])}]
    changed += [{name: tensors[name].float()} for name in ("ids", "positions", "windows")]
    changed += [{name: kind} for name in tensors for kind in (torch.zeros(()), torch.zeros(0), torch.ones(2, 2).bool())]
    for change in (*changed, {"ids": tensors["ids"] + 9999}):
        save_file(tensors | change, made / SAMPLE)
        resum(made)
        with pytest.raises((CorruptFile, VerificationFailed)):
            verify(made)
    (made / SAMPLE).write_bytes(b"no")
    resum(made)
    with pytest.raises(CorruptFile, match="sample"):
        verify(made)


def test_numbers_that_are_not_finite_never_hold() -> None:
    good = Difference("checkpoint", 0.0, 0.0, 1e-3, 3.0, 3.0, 1e-4)
    assert good.holds
    for wrong in ({"nll": float("nan")}, {"logits_max_relative": float("nan")}, {"logits_max_relative": float("inf")},
                  {"nll": 3.001}, {"logits_max_relative": 2e-3}):  # fmt: skip
        assert not Difference(**(vars(good) | wrong)).holds


def test_it_can_be_cancelled(folder: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    made, stop = folder("both"), Event()
    stop.set()
    with pytest.raises(Cancelled):
        verify(made, stop=stop)
    later = Event()
    plain = verification.read_back

    def reading(*arguments: Any) -> Any:
        later.set()
        return plain(*arguments)

    monkeypatch.setattr(verification, "read_back", reading)
    with pytest.raises(Cancelled):
        verify(made, stop=later)


def test_a_folder_that_may_only_be_read(folder: Any) -> None:
    made = folder("mixed")
    for path in (*made.rglob("*"), made):
        path.chmod(path.stat().st_mode & ~(stat.S_IWUSR | stat.S_IWGRP | stat.S_IWOTH))
    try:
        assert verify(made).holds
    finally:
        for path in (made, *made.rglob("*")):
            path.chmod(path.stat().st_mode | stat.S_IWUSR)


def test_the_logits_of_verification_are_the_models_own(folder: Any) -> None:
    """Recorded block by block, read back by the whole forward pass."""
    made = folder("mixed")
    sample = load_file(made / SAMPLE)
    assert torch.isfinite(sample["logits.checkpoint"]).all()
    assert sample["logits.checkpoint"].shape == (2, 8, 128)
