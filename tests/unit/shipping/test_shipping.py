"""Shipping folders: what is in them, what they give when others load them, and that nothing is left when it fails."""

from __future__ import annotations

import errno
import hashlib
import json
import resource
import shutil
import subprocess
from pathlib import Path
from threading import Event
from typing import Any

import gguf
import pytest
import torch
import transformers
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from surgery.checkpoints import save
from surgery.errors import Cancelled, InputError, VerificationFailed
from surgery.recipe.base import TextReference
from surgery.recipe.edits import Eora, RemoveBlocks
from surgery.recipe.recipe import Recipe
from surgery.recipe.storage import Quantize
from surgery.recipe.texts import TextChoice, text_reference
from surgery.shipping import folder as ship_files
from surgery.shipping import ship_folder as shipping
from surgery.shipping import stock_run
from surgery.shipping import weights as ship_weights
from surgery.shipping.checksums import SUMS, write_sums
from surgery.shipping.record import RECORD, SAMPLE, Sample, ShipRecord
from surgery.shipping.ship_folder import ship
from surgery.shipping.verify import verify
from surgery.shipping.weights import ShipOptions
from surgery.workbench.open_model import OpenModel
from tests.shipped import CALIBRATION, TEXT, compensated, mixed, source


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> OpenModel:
    return source(tmp_path_factory.mktemp("source") / "tiny")


def own_perplexity(folder: Path, model: OpenModel) -> float:
    """By stock transformers and the plain definition, window by window."""
    loaded = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)
    losses = []
    for row in model.windows(TEXT).ids:
        scores = loaded(row[None]).logits[0, :-1].log_softmax(-1)
        losses.append(-scores.gather(1, row[1:, None]).mean())
    return float(torch.stack(losses).mean().exp())


def test_a_shipped_checkpoint_is_tried_in_stock_transformers(
    model: OpenModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shipped = ship(model, mixed(model), tmp_path / "out", TEXT)
    [(name, run)] = ShipRecord.load(tmp_path / "out").runs.items()
    assert (name, run.version) == ("transformers", transformers.__version__)
    assert run.tried == ("AutoTokenizer", "AutoConfig", "AutoModelForCausalLM", "generate")
    said = {"version": run.version, "tried": list(run.tried), "memory": {}, "predicted": {}}
    assert shipped.document()["runs"] == {"transformers": said}
    assert f"in transformers {run.version}: AutoTokenizer, AutoConfig" in (tmp_path / "out" / "README.md").read_text()

    plain = save.modelling_file
    monkeypatch.setattr(save, "modelling_file", lambda family: f"{plain(family)}\nraise ValueError('broken')\n")
    monkeypatch.setattr(stock_run, "modelling_file", save.modelling_file)
    with pytest.raises(VerificationFailed, match=r"transformers \S+ cannot run out \(broken\)") as error:
        ship(model, mixed(model), tmp_path / "broken" / "out", TEXT)
    assert error.value.kept == tmp_path / "broken" / "out.not-verified" and error.value.kept.is_dir()


def test_code_that_is_not_ours_is_not_run_when_shipping(
    model: OpenModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    marker, plain = tmp_path / "ran", save.modelling_file
    monkeypatch.setattr(save, "modelling_file", lambda family: f"open({str(marker)!r}, 'w')\n{plain(family)}")
    shipped = ship(model, mixed(model), tmp_path / "out", TEXT)
    assert not shipped.record.runs and not marker.exists()


def test_a_model_of_zeros_ships(tmp_path: Path) -> None:
    zeros = source(tmp_path / "zeros")
    for parameter in zeros.loaded.model.parameters():
        parameter.data.zero_()
    shipped = ship(zeros, zeros.recipe(RemoveBlocks(blocks=(1,))), tmp_path / "out", TEXT, ShipOptions(gguf="Q8_0"))
    assert shipped.verification.holds
    assert all(found["logits_max_relative"] == 0.0 for found in shipped.document()["differences"].values())


@pytest.mark.parametrize("make", [mixed, compensated])
def test_what_is_shipped_is_what_was_measured(model: OpenModel, tmp_path: Path, make: Any) -> None:
    recipe, out = make(model), tmp_path / "out"
    shipped = ship(model, recipe, out, TEXT, ShipOptions(), [CALIBRATION])
    document = shipped.document()
    live = model.complete(model.resolve(recipe), [CALIBRATION]).structure
    estimate = model.evaluator.measure(live, model.windows(TEXT))
    assert document["perplexity"] == pytest.approx(estimate.perplexity, rel=1e-6)
    assert own_perplexity(out, model) == pytest.approx(estimate.perplexity, rel=1e-4)
    assert document["dense_perplexity"] == estimate.dense_perplexity
    part = shipped.record.part("checkpoint")
    assert part is not None and part.plain is (make is compensated)
    assert part.bytes == (out / "model.safetensors").stat().st_size
    kept = Recipe.load(out / "recipe.json")
    assert kept.edits == recipe.edits and kept.results is not None
    assert kept.results["perplexity"] == estimate.perplexity and kept.results["bos"] == "none"
    assert AutoTokenizer.from_pretrained(out)("The cat")["input_ids"] == model.loaded.tokenizer("The cat")["input_ids"]
    assert [entry.name for entry in tmp_path.iterdir()] == ["out"], "nothing else is left"


def test_the_sums_are_those_of_coreutils_and_cover_every_file(model: OpenModel, tmp_path: Path) -> None:
    shipped = ship(model, mixed(model), tmp_path / "out", TEXT, ShipOptions(gguf=None))
    done = subprocess.run(["sha256sum", "--check", "--strict", SUMS], cwd=tmp_path / "out", capture_output=True)
    assert done.returncode == 0, done.stderr
    files = {
        path.relative_to(tmp_path / "out").as_posix(): path for path in (tmp_path / "out").rglob("*") if path.is_file()
    }
    del files[SUMS]
    sums = shipped.document()["sha256"]
    assert sums == {name: hashlib.sha256(path.read_bytes()).hexdigest() for name, path in files.items()}
    assert {path.stat().st_mode & 0o777 for path in files.values()} == {files["README.md"].stat().st_mode & 0o777}


def test_the_sample_is_what_the_source_gives_live(model: OpenModel, tmp_path: Path) -> None:
    ship(model, model.recipe(), tmp_path / "out", TEXT)
    sample = Sample.load(tmp_path / "out")
    logits = model.loaded.model(sample.ids).logits[:, sample.positions]
    torch.testing.assert_close(sample.logits["checkpoint"], logits, rtol=0, atol=1e-4)
    assert sample.positions.tolist() == list(range(7, 64, 8)) and sample.ids.shape == (2, 64)
    assert sample.windows is not None and torch.equal(sample.windows.long(), model.windows(TEXT).ids)
    assert not any(
        path.suffix == ".safetensors" and path.name != "model.safetensors" for path in (tmp_path / "out").iterdir()
    )


@pytest.mark.parametrize("checkpoint", [True, False])
def test_a_gguf_file_beside_a_checkpoint_or_alone(model: OpenModel, tmp_path: Path, checkpoint: bool) -> None:
    recipe, out = model.recipe(RemoveBlocks(blocks=(1,))), tmp_path / "out"
    shipped = ship(model, recipe, out, TEXT, ShipOptions(checkpoint, "Q8_0"))
    assert (out / "model.safetensors").exists() is (out / "config.json").exists() is checkpoint
    [file] = out.glob("*.gguf")
    assert file.name == "tiny-Q8_0.gguf"
    kinds = {tensor.tensor_type.name for tensor in gguf.GGUFReader(file).tensors}
    assert "Q8_0" in kinds
    assert (out / "Modelfile").read_text().startswith("FROM ./tiny-Q8_0.gguf\n")
    quantised = recipe.with_edits(*recipe.edits, Quantize(type="Q8_0"))
    kept = Recipe.load(out / "recipe.json")
    assert kept.edits == quantised.edits and kept.key == shipped.record.recipe == quantised.key
    live = model.complete(model.resolve(quantised)).structure
    found = shipped.document()
    assert found["perplexity"] == pytest.approx(model.evaluator.measure(live, model.windows(TEXT)).perplexity, rel=1e-6)
    assert set(found["differences"]) == ({"checkpoint", "gguf"} if checkpoint else {"gguf"})
    if checkpoint:
        floating = model.evaluator.measure(model.resolve(recipe), model.windows(TEXT)).perplexity
        assert found["differences"]["checkpoint"]["perplexity_recorded"] == pytest.approx(floating, rel=1e-6)
        assert floating != found["perplexity"]


@pytest.mark.parametrize("type_name", ["F32", "Q4_K_M", "IQ4_NL", "Q2_K"])
@pytest.mark.parametrize("make", [mixed, compensated])
def test_every_kind_of_file_reads_back_alone(model: OpenModel, tmp_path: Path, make: Any, type_name: str) -> None:
    """Blocks that differ, which only `deci` can hold, and types that only llama.cpp knows."""
    shipped = ship(model, make(model), tmp_path / "out", TEXT, ShipOptions(False, type_name), [CALIBRATION])
    part, found = shipped.record.shipped, shipped.document()["differences"]["gguf"]
    assert part.architecture == ("deci" if make is mixed else "llama") and part.type == type_name
    assert found["logits_max_relative"] < 1e-5 and abs(found["nll_difference"]) < 1e-5
    assert not list((tmp_path / "out").glob("*.safetensors")) and not (tmp_path / "out" / "config.json").exists()
    assert not (tmp_path / "out" / "verification" / "model.safetensors").exists()


@pytest.mark.parametrize("family", ["qwen2", "qwen3", "gemma", "phi3", "gpt2", "olmo2", "granite", "smollm"])
def test_files_of_other_families(tmp_path: Path, family: str) -> None:
    model = source(tmp_path / "source", family=family)
    recipe = model.recipe(RemoveBlocks(blocks=(1,)))
    found = ship(model, recipe, tmp_path / "out", TEXT, ShipOptions(True, "Q4_0")).document()["differences"]
    assert set(found) == {"checkpoint", "gguf"} and all(one["logits_max_relative"] < 1e-5 for one in found.values())


def test_the_importance_matrix_of_the_recipe_is_what_the_file_is_written_with(
    model: OpenModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[Any] = []
    plain = ship_weights.write_gguf

    def noting(*arguments: Any, **options: Any) -> Any:
        given.append(arguments[5])
        return plain(*arguments, **options)

    monkeypatch.setattr(ship_weights, "write_gguf", noting)
    text = TextReference(
        source="embedded", fingerprint=model.windows(CALIBRATION).text_fingerprint, window=16, windows=8
    )
    ship(model, model.recipe(Quantize(type="IQ4_NL", text=text)), tmp_path / "with", TEXT, ShipOptions(False, "IQ4_NL"))
    ship(model, model.recipe(), tmp_path / "without", TEXT, ShipOptions(False, "IQ4_NL"))
    expected = model.completer.moments(model.resolve(model.recipe()), text, lambda _: model.windows(CALIBRATION))
    assert given[1] is None
    name = "model.layers.2.mlp.down_proj"
    assert given[0][f"{name}.weight"] == pytest.approx(expected[2]["mlp.down_proj"].numpy())


@pytest.mark.parametrize(
    ("format_name", "type_name", "group_size"),
    [("torchao", "int8", None), ("torchao", "int4", 16), ("compressed-tensors", "int4", 16)],
)
@pytest.mark.parametrize("repaired", [False, True])
@pytest.mark.parametrize("make", [mixed, compensated])
def test_packed_checkpoints_with_and_without_an_adapter(
    model: OpenModel,
    tmp_path: Path,
    make: Any,
    format_name: Any,
    type_name: str,
    group_size: int | None,
    repaired: bool,
) -> None:
    recipe = make(model)
    edits = [*recipe.edits, Quantize(format=format_name, type=type_name, group_size=group_size)]
    edits += [Eora(rank=4, text=reference(model))] if repaired else []
    shipped = ship(model, recipe.with_edits(*edits), tmp_path / "out", TEXT, ShipOptions(), [CALIBRATION])
    part, found = shipped.record.shipped, shipped.document()["differences"]["checkpoint"]
    assert part.library == format_name and part.type == f"{type_name} ({format_name})"
    assert found["logits_max_relative"] < 1e-4 and abs(found["nll_difference"]) < 1e-5
    assert (tmp_path / "out" / "adapter" / "adapter_model.safetensors").exists() is repaired is bool(part.adapter)
    files = [*(tmp_path / "out").glob("*.safetensors"), *(tmp_path / "out").glob("adapter/*.safetensors")]
    assert part.bytes == sum(path.stat().st_size for path in files) < shipped.record.dense_bytes
    card = (tmp_path / "out" / "README.md").read_text()
    assert format_name in card and ('PeftModel.from_pretrained(model, "adapter")' in card) is repaired
    if not part.plain:
        return
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    if repaired:
        loaded = PeftModel.from_pretrained(loaded, tmp_path / "out" / "adapter")
    windows = model.windows(TEXT).ids
    scores = loaded(windows).logits[:, :-1].float().log_softmax(-1).gather(2, windows[:, 1:, None])
    assert float(-scores.mean()) == pytest.approx(shipped.record.shipped.measured.nll, abs=1e-4)  # type: ignore[union-attr]


@pytest.mark.parametrize("checkpoint", [True, False])
def test_a_file_with_a_low_rank_repair(model: OpenModel, tmp_path: Path, checkpoint: bool) -> None:
    edits = (Quantize(type="Q4_0"), Eora(rank=4, text=reference(model)))
    recipe, out = model.recipe(*edits), tmp_path / "out"
    shipped = ship(model, recipe, out, TEXT, ShipOptions(checkpoint, "Q4_0"), [CALIBRATION])
    part = shipped.record.shipped
    assert part.adapter == "tiny-Q4_0-eora.gguf" and f"ADAPTER ./{part.adapter}\n" in (out / "Modelfile").read_text()
    assert f"--lora {part.adapter}" in (out / "README.md").read_text()
    assert part.bytes == sum(path.stat().st_size for path in out.glob("*.gguf"))
    assert shipped.document()["differences"]["gguf"]["logits_max_relative"] < 1e-4
    adapter = bytearray((out / part.adapter).read_bytes())
    adapter[-1] ^= 0x40  # the exponent of the last value
    (out / part.adapter).write_bytes(adapter)
    (out / SUMS).unlink()
    write_sums(out)
    with pytest.raises(VerificationFailed, match=r"tiny-Q4_0\.gguf gives"):
        verify(out)


def reference(model: OpenModel) -> TextReference:
    return text_reference(model.windows(CALIBRATION))


def test_what_cannot_be_shipped_is_refused(model: OpenModel, tmp_path: Path) -> None:
    packed = model.recipe(Quantize(format="torchao", type="int8"))
    for options in (ShipOptions(gguf="Q8_0"), ShipOptions(checkpoint=False, gguf="Q8_0")):
        with pytest.raises(InputError, match="ship that checkpoint alone"):
            ship(model, packed, tmp_path / "out", TEXT, options)
    with pytest.raises(InputError, match="nothing is quantised"):
        ship(model, model.recipe(Eora(rank=4, text=reference(model))), tmp_path / "out", TEXT)
    with pytest.raises(InputError, match="nothing to ship"):
        ship(model, model.recipe(), tmp_path / "out", TEXT, ShipOptions(checkpoint=False))
    with pytest.raises(InputError, match="Q9"):
        ship(model, model.recipe(), tmp_path / "out", TEXT, ShipOptions(gguf="Q9"))
    assert list(tmp_path.iterdir()) == []


def test_a_checkpoint_of_a_quantised_recipe_is_floating_point(model: OpenModel, tmp_path: Path) -> None:
    ship(model, model.recipe(Quantize(type="Q4_0")), tmp_path / "out", TEXT, ShipOptions(gguf=None))
    assert Recipe.load(tmp_path / "out" / "recipe.json").edits == ()


def test_a_used_folder_is_never_touched(model: OpenModel, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "mine").write_text("mine")
    with pytest.raises(InputError, match="is there already"):
        ship(model, mixed(model), out, TEXT)
    assert [entry.name for entry in out.iterdir()] == ["mine"]
    (out / "mine").unlink()
    assert ship(model, mixed(model), out, TEXT).path == out, "an empty one is taken"


@pytest.mark.parametrize(
    "after", ["Reading", "Perplexity", "Building", "Writing", "Writing the sums", "Checking", "Measuring"]
)
def test_a_cancel_leaves_nothing(model: OpenModel, tmp_path: Path, after: str) -> None:
    stop, seen = Event(), []

    def report(share: float, words: str) -> None:
        seen.append((share, words))
        if words.startswith(after) and (after != "Reading" or "block" in words):
            stop.set()
            raise Cancelled("Cancelled.")

    text = TextReference(
        source="embedded", fingerprint=model.windows(CALIBRATION).text_fingerprint, window=16, windows=6
    )
    recipe = model.recipe(Quantize(type="Q8_0", text=text))
    fresh = OpenModel(model.loaded)
    with pytest.raises(Cancelled):
        ship(fresh, recipe, tmp_path / "out", TEXT, ShipOptions(gguf="Q8_0"), [], report, stop)
    assert list(tmp_path.iterdir()) == []


def test_progress_only_rises(model: OpenModel, tmp_path: Path) -> None:
    seen: list[float] = []
    ship(model, mixed(model), tmp_path / "out", TEXT, ShipOptions(), [], lambda share, words: seen.append(share))
    assert seen == sorted(seen) and seen[-1] == 1.0 and len(seen) > 10


def test_a_full_disk_leaves_nothing(model: OpenModel, tmp_path: Path) -> None:
    """The limit on file sizes makes the system refuse a write as a full disk does."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    for limit in (1000, 300_000):
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
        try:
            with pytest.raises(InputError, match="free some space"):
                ship(model, mixed(model), tmp_path / "out", TEXT)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert list(tmp_path.iterdir()) == []


def test_a_disk_that_fills_up_with_the_small_files(
    model: OpenModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> Any:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(ship_files, "write_sums", full)
    with pytest.raises(InputError, match="No space left on device"):
        ship(model, mixed(model), tmp_path / "out", TEXT)
    assert list(tmp_path.iterdir()) == []


def test_room_is_looked_for_first(model: OpenModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1000))
    monkeypatch.setattr(shipping, "_measured", None)
    with pytest.raises(InputError, match=r"Shipping: no space left in .* MB needed, .* MB free"):
        ship(model, mixed(model), tmp_path / "deep" / "er" / "out", TEXT)
    assert list(tmp_path.iterdir()) == []


def test_files_that_do_not_hold_are_kept_aside(
    model: OpenModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = ship_weights.build_model

    def wrong(*arguments: Any) -> Any:
        built = plain(*arguments)
        built.model.model.layers[3].mlp.down_proj.weight.mul_(1.05)
        return built

    monkeypatch.setattr(ship_weights, "build_model", wrong)
    (tmp_path / "out.not-verified").mkdir()
    (tmp_path / "out.not-verified" / "mine").write_text("mine")
    with pytest.raises(VerificationFailed, match=r"model\.safetensors gives a perplexity of .*out\.not-verified-2"):
        ship(model, mixed(model), tmp_path / "out", TEXT)
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["out.not-verified", "out.not-verified-2"]
    assert (tmp_path / "out.not-verified-2" / "model.safetensors").exists()
    assert (tmp_path / "out.not-verified" / "mine").read_text() == "mine"


def test_losses_that_are_no_numbers_are_not_shipped(tmp_path: Path) -> None:
    model = source(tmp_path / "tiny")
    model.loaded.model.model.norm.weight.data.fill_(float("nan"))
    with pytest.raises(InputError, match="not finite"):
        ship(model, model.recipe(), tmp_path / "out", TEXT)


def test_a_private_text_stays_at_home(model: OpenModel, tmp_path: Path) -> None:
    mine = TextChoice("pasted", 16, 3, content="My own words, which are nobody's business but mine. " * 4)
    ship(model, mixed(model), tmp_path / "out", mine, ShipOptions(keep_windows=False))
    assert Sample.load(tmp_path / "out").windows is None
    record = ShipRecord.load(tmp_path / "out")
    assert record.protocol is not None and not record.protocol.kept and record.protocol.text == "pasted"
    written = b"".join(path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file())
    assert b"nobody's business" not in written


def test_no_folder_of_this_computer_is_named_outside_the_recipe(model: OpenModel, tmp_path: Path) -> None:
    text = tmp_path / "words.txt"
    text.write_text("The cat and the mat, the end. " * 20)
    ship(model, mixed(model), tmp_path / "out", TextChoice(str(text), 16, 3), ShipOptions(gguf=None))
    for name in ("README.md", RECORD, SUMS):
        assert str(tmp_path.parent) not in (tmp_path / "out" / name).read_text()
    assert json.loads((tmp_path / "out" / RECORD).read_text())["protocol"]["text"] == "words.txt"
    assert (tmp_path / "out" / SAMPLE).exists()
