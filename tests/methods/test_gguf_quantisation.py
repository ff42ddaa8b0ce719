"""GGUF types: live = written = read back, sizes known beforehand, the importance matrix; families and edits."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any, get_args

import gguf
import numpy as np
import pytest
import torch

from analysis.statistics.collect import collect
from benchmarks.gguf_types import reload_gguf
from surgery.calibration.moments import input_moments
from surgery.checkpoints.build import build_model
from surgery.checkpoints.save import save_checkpoint
from surgery.errors import CorruptFile, InputError, RecipeError
from surgery.gguf.read import read_tensors
from surgery.gguf.types import GgufCodec, Kind, decode, encode
from surgery.gguf.write import write_gguf
from surgery.quantization.gguf_codecs import importance_of
from surgery.recipe.base import TextReference
from surgery.recipe.edits import Compensate, PruneNeurons, RemoveAttention, RemoveBlocks, RemoveMlp
from surgery.recipe.storage import GgufType, Quantize
from surgery.recipe.texts import TextChoice, text_reference
from surgery.workbench.open_model import OpenModel
from tests.reference import random_windows
from tests.wide_models import MODELS, open_wide

TYPES = get_args(GgufType)
EDITS: dict[str, tuple[Any, ...]] = {
    "dense": (),
    "mixed": (RemoveAttention(blocks="1"), PruneNeurons(removed={0: "0-255", 2: "0-31"})),
    "bare": (RemoveAttention(blocks="0"), RemoveMlp(blocks="2")),
}
TEXT = TextChoice(window=24, windows=3, purpose="calibration")


def written(model: OpenModel, structure: Any, recipe: Any, folder: Any, importance: Any = None) -> Any:
    """The GGUF file of a completed structure, by way of a saved checkpoint."""
    built = build_model(model.loaded.model, model.architecture, structure)
    save_checkpoint(built, model.loaded.tokenizer, recipe, folder / "checkpoint")
    kind = recipe.edits[-1].type
    return write_gguf(folder / "checkpoint", folder / "m.gguf", kind, importance=importance, name="m")


def logits(model: OpenModel, structure: Any, ids: torch.Tensor) -> torch.Tensor:
    """Live losses of every predicted token."""
    return model.evaluator.token_losses(structure, ids)


def check_file(model: OpenModel, recipe: Any, folder: Any) -> None:
    """Live = read back, bit for bit and in what it computes; predicted bytes = actual bytes."""
    structure = model.resolve(recipe)
    edit = recipe.edits[-1]
    completed = model.complete(structure).structure
    importance = importance_of(completed, model.moments(completed, edit.text)) if edit.text else None
    made = written(model, completed, recipe, folder, importance)
    plan = model.gguf_plan(structure)
    assert made.bytes == made.path.stat().st_size == plan.file_bytes(edit.type, "m", importance is not None)
    back = reload_gguf(made.path, model, structure)
    codecs = {
        f"{model.architecture.block_list}.{position}.{path}": codec
        for position, spec in enumerate(completed.kept)
        for path, codec in spec.codecs
    }
    floating = build_model(model.loaded.model, model.architecture, completed).model
    assert bool(codecs) == bool(completed.outer) == (edit.type != "F32")
    for path, codec in codecs.items():
        linear, stored = floating.get_submodule(path), back.get_submodule(path)
        turned = type(linear).__name__ == "Conv1D"
        wanted = codec.apply(linear.weight.T if turned else linear.weight)
        assert torch.equal(stored.weight.T if turned else stored.weight, wanted), path
    ids = random_windows(2, 16).ids
    with torch.no_grad():
        found = torch.nn.functional.cross_entropy(
            back(ids).logits[:, :-1].transpose(1, 2), ids[:, 1:], reduction="none"
        )
    torch.testing.assert_close(logits(model, completed, ids), found, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("type_name", TYPES)
def test_every_type(type_name, tmp_path):
    model = open_wide("llama_tied")
    check_file(model, model.recipe(Quantize(type=type_name)), tmp_path)


@pytest.mark.parametrize("family", MODELS)
@pytest.mark.parametrize("type_name", ["Q4_K_M", "IQ4_XS"])
def test_every_family_with_an_importance_matrix(family, type_name, tmp_path):
    model = open_wide(family)
    text = text_reference(model.windows(TEXT))
    check_file(model, model.recipe(Quantize(type=type_name, text=text)), tmp_path)


@pytest.mark.parametrize("name", EDITS)
@pytest.mark.parametrize("compensated", [False, True])
def test_edited_models(name, compensated, tmp_path):
    model = open_wide("llama")
    text = text_reference(model.windows(TEXT))
    edits = (*EDITS[name], *([Compensate(how="least_squares", text=text)] if compensated else []))
    check_file(model, model.recipe(*edits, Quantize(type="Q3_K_L", text=text)), tmp_path)


def test_moments_are_those_of_the_analysis_and_of_the_built_model():
    model = open_wide("llama")
    windows = model.windows(TEXT)
    found = input_moments(model.evaluator, model.evaluator.dense, windows)
    statistics = collect(model.runner, windows)
    for parts, block in zip(found, statistics.blocks, strict=True):
        assert parts.keys() == block.inputs.keys()
        for path, values in parts.items():
            torch.testing.assert_close(values.double(), block.inputs[path].mean_square(), rtol=1e-5, atol=1e-9)
    structure = model.resolve(model.recipe(*EDITS["mixed"]))
    built = build_model(model.loaded.model, model.architecture, structure).model
    seen: dict[str, torch.Tensor] = {}

    def keep(module: torch.nn.Module, args: tuple[torch.Tensor, ...], path: str) -> None:
        seen[path] = args[0].double()

    for path, module in built.model.layers.named_modules():
        if isinstance(module, torch.nn.Linear):
            module.register_forward_pre_hook(partial(keep, path=path))
    with torch.no_grad():
        built(windows.ids)
    for position, parts in enumerate(input_moments(model.evaluator, structure, windows)):
        for path, values in parts.items():
            naive = seen[f"{position}.{path}"].square().flatten(0, 1).mean(dim=0)
            torch.testing.assert_close(values.double(), naive, rtol=1e-4, atol=1e-8)


@pytest.mark.parametrize("type_name", ["Q4_0", "Q4_K", "Q3_K", "Q2_K", "IQ4_NL", "IQ4_XS", "IQ3_S", "Q5_1"])
def test_importance_lowers_the_error_that_counts(type_name):
    generator = np.random.default_rng(0)
    weight = generator.standard_normal((64, 512)).astype(np.float32)
    importance = np.exp(2 * generator.standard_normal(512)).astype(np.float32)
    errors = []
    for given in (None, importance):
        back = GgufCodec(type_name, given).apply(torch.from_numpy(weight)).numpy()
        errors.append(float((importance * (weight - back) ** 2).sum()))
    assert errors[1] < errors[0]


def test_an_importance_of_zeros_is_none_and_single_zeros_do_no_harm():
    weight = torch.randn(8, 256, generator=torch.Generator().manual_seed(0))
    zeros = np.zeros(256, np.float32)
    assert torch.equal(GgufCodec("Q2_K", zeros).apply(weight), GgufCodec("Q2_K").apply(weight))
    some = np.where(np.arange(256) < 64, 0.0, 1.0).astype(np.float32)
    assert GgufCodec("IQ3_S", some).apply(weight).isfinite().all()


def test_float_types_round_as_they_should():
    weight = torch.randn(4, 7, generator=torch.Generator().manual_seed(0))
    assert torch.equal(GgufCodec("F32").apply(weight), weight)
    assert torch.equal(GgufCodec("F16").apply(weight), weight.half().float())


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e38])
def test_weights_that_no_type_holds_are_refused(value):
    weight = np.ones((2, 256), np.float32)
    weight[1, 3] = value
    with pytest.raises(InputError, match=r"not finite|too large"):
        encode(weight, Kind.Q4_0)
    assert np.isfinite(decode(encode(np.full((1, 32), 65000, np.float32), Kind.Q8_0), Kind.Q8_0)).all()


def test_cut_and_foreign_files_are_refused(tmp_path):
    model = open_wide("llama_tied")
    recipe = model.recipe(Quantize(type="Q8_0"))
    completed = model.complete(model.resolve(recipe)).structure
    made = written(model, completed, recipe, tmp_path)
    plan = model.gguf_plan(completed)
    whole = made.path.read_bytes()
    for damaged in (whole[: len(whole) // 2], whole[:20], b"no GGUF file at all", b""):
        made.path.write_bytes(damaged)
        with pytest.raises(CorruptFile, match=r"m\.gguf"):
            read_tensors(made.path, plan)
    made.path.write_bytes(whole)
    other = model.resolve(model.recipe(RemoveBlocks(blocks="1")))
    with pytest.raises(CorruptFile, match="tensors of this recipe"):
        read_tensors(made.path, model.gguf_plan(other))
    narrow = model.resolve(model.recipe(PruneNeurons(removed=dict.fromkeys(range(3), "0-255"))))
    with pytest.raises(CorruptFile, match="another shape"):
        read_tensors(made.path, model.gguf_plan(narrow))


def test_the_official_reader_agrees(tmp_path):
    model = open_wide("llama_tied")
    recipe = model.recipe(Quantize(type="Q4_K_M"))
    completed = model.complete(model.resolve(recipe)).structure
    made = written(model, completed, recipe, tmp_path)
    chosen = model.gguf_plan(completed).kinds("Q4_K_M")
    for tensor in gguf.GGUFReader(made.path).tensors:
        assert tensor.tensor_type == chosen[tensor.name]
        wanted = decode(np.ascontiguousarray(tensor.data), tensor.tensor_type)
        np.testing.assert_allclose(
            gguf.quants.dequantize(tensor.data, tensor.tensor_type), wanted, rtol=1e-6, atol=1e-7
        )


def test_blocks_are_addressed_by_structure_and_type():
    model = open_wide("llama")
    text = text_reference(model.windows(TEXT))
    found = []
    for edit in (Quantize(type="Q4_0"), Quantize(type="Q8_0"), Quantize(type="Q4_0", text=text), Quantize(type="Q4_0")):
        structure = model.complete(model.resolve(model.recipe(edit))).structure
        found.append((structure.key, [spec.key for spec in structure.blocks]))
    assert found[0] == found[3] and len({key for key, _ in found}) == 3
    assert len({tuple(blocks) for _, blocks in found}) == 3
    dense = model.evaluator.dense
    assert model.resolve(model.recipe()).key == dense.key != found[0][0]


def test_plain_types_are_known_at_once_and_importance_after_one_pass():
    model = open_wide("llama")
    text = text_reference(model.windows(TEXT))
    plain = model.resolve(model.recipe(Quantize(type="Q4_K_M")))
    weighted = model.resolve(model.recipe(Quantize(type="Q4_K_M", text=text)))
    assert model.known_complete(plain) is not None and model.known_complete(weighted) is None
    done = model.complete(weighted).structure
    known = model.known_complete(weighted)
    assert known is not None and known.structure.key == done.key


def test_order_and_repetition_are_refused():
    model = open_wide("llama")
    text = text_reference(model.windows(TEXT))
    late = (Quantize(type="Q8_0"), Compensate(how="bias", text=text))
    with pytest.raises(RecipeError, match="order"):
        model.resolve(model.recipe(*late))
    with pytest.raises(RecipeError, match="two"):
        model.resolve(model.recipe(Quantize(type="Q8_0"), Quantize(type="Q4_0")))
    for wrong in (
        {"format": "gguf", "type": "Q9"},
        {"format": "torchao", "type": "Q4_0"},
        {"format": "compressed-tensors", "type": "int4", "method": "gptq"},
        {"format": "gguf", "type": "Q8_0", "method": "gptq"},
    ):
        with pytest.raises(RecipeError):
            model.recipe().with_edits({"op": "quantize", **wrong})


def test_a_foreign_text_for_the_importance_is_refused():
    model = open_wide("llama")
    text = TextReference(source="other.txt", fingerprint="0" * 16, window=24, windows=3)
    with pytest.raises(RecipeError, match="calibration text"):
        model.complete(model.resolve(model.recipe(Quantize(type="Q4_0", text=text))))


def test_quantisation_is_left_out_of_what_is_built():
    model = open_wide("llama")
    structure = model.complete(model.resolve(model.recipe(*EDITS["mixed"], Quantize(type="Q2_K")))).structure
    plain = replace(structure.floating)
    built = [build_model(model.loaded.model, model.architecture, one).model.state_dict() for one in (structure, plain)]
    assert all(torch.equal(built[0][name], built[1][name]) for name in built[1])
