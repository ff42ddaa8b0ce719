"""Bytes of the weights, by arithmetic on a structure, against files that were written."""

from __future__ import annotations

import struct
from functools import cache
from pathlib import Path
from typing import Any, get_args

import gguf
import pytest
from transformers import LlamaConfig, LlamaForCausalLM

from analysis.model.describe import describe
from surgery.checkpoints.build import build_model
from surgery.errors import InputError, UnsupportedArchitecture
from surgery.fit.weight_types import TYPES, stored, type_of_edit, weight_type, weights_by_class
from surgery.gguf.write import write_gguf
from surgery.recipe.recipe import Recipe
from surgery.recipe.storage import GgufType, Quantize
from surgery.structure.resolve import resolve
from surgery.structure.structure import Structure, dense
from tests import tiny_checkpoints
from tests.methods.test_calibrated import quantisation, quantised, save_packed
from tests.reference import runner_of
from tests.tiny_models import _GQA, FAMILIES, _make, build
from tests.tiny_workbench import open_model

NEURONS = {"op": "prune_neurons", "removed": {str(block): "0-15" for block in range(4)}}
UNEVEN = {"op": "prune_neurons", "removed": {"0": "0-9", "2": "5"}}
GROUP = {"op": "prune_kv_groups", "removed": {"3": "0"}}
EDITS: dict[str, tuple[dict[str, Any], ...]] = {
    "whole": (),
    "narrower": (NEURONS,),
    "shorter": ({"op": "remove_blocks", "blocks": "0"},),
    "uneven": (UNEVEN, GROUP),
    "without an MLP": ({"op": "remove_mlp", "blocks": "1,2"},),
    "without the first attention": ({"op": "remove_attention", "blocks": "0"}, UNEVEN),
    "fewer channels": ({"op": "prune_hidden", "removed": "0-15"},),
}
GGUF_TYPES = get_args(GgufType)


def structure_of(family: str, *edits: dict[str, Any]) -> Structure:
    recipe = Recipe.read({"schema": "model-surgery/recipe/1", "model": {"id": "tiny"}, "edits": list(edits)})
    return resolve(describe(build(family)), recipe)


def total(structure: Structure, name: str) -> int:
    return sum(stored(structure, TYPES[name]).bytes.values())


@pytest.mark.parametrize("name", EDITS)
def test_gguf_bytes_are_those_of_the_planned_file_in_every_type_and_family(name: str) -> None:
    checked = []
    for family in sorted(FAMILIES):
        model = open_model(family)
        try:
            structure = model.resolve(model.recipe(*EDITS[name]))
            plan = model.gguf_plan(structure)
        except InputError:  # this family cannot have the edit, or llama.cpp has nothing like it
            continue
        for type_name in GGUF_TYPES:
            planned = plan.tensor_bytes(type_name)
            assert total(structure, type_name) == sum(planned.values()), (family, type_name)
            assert (
                stored(structure, TYPES[type_name]).bytes.items()
                >= {
                    key: size
                    for key, size in planned.items()
                    if key.endswith(("_q.weight", "_down.weight", "_embd.weight"))
                }.items()
            ), (family, type_name)
        checked.append(family)
    assert {"llama", "llama_tied"} <= set(checked) and (len(checked) >= 10 or name != "whole")


@cache
def wide() -> Any:
    """Rows that are whole blocks of every type in one direction, and of the small ones in the other."""
    return _make(LlamaForCausalLM, LlamaConfig, _GQA, hidden_size=256, intermediate_size=288, num_attention_heads=8)


@pytest.mark.parametrize("type_name", GGUF_TYPES)
def test_gguf_bytes_are_those_of_a_written_file(type_name: str, tmp_path: Path) -> None:
    folder = tiny_checkpoints.save(wide(), tmp_path / "checkpoint")
    made = write_gguf(folder, tmp_path / "model.gguf", type_name)
    held = sum(int(tensor.n_bytes) for tensor in gguf.GGUFReader(made.path).tensors)
    assert total(dense(describe(wide())), type_name) == held


def stored_bytes(folder: Path) -> int:
    """Bytes of all tensors of a checkpoint, from the headers of its safetensors files."""
    found = 0
    for path in folder.glob("*.safetensors"):
        raw = path.read_bytes()
        found += len(raw) - 8 - struct.unpack("<Q", raw[:8])[0]
    return found


@pytest.mark.parametrize("family", sorted(FAMILIES))
@pytest.mark.parametrize("edits", [(), (NEURONS,)], ids=["whole", "narrower"])
def test_safetensors_bytes_are_those_of_the_saved_checkpoint(
    family: str, edits: tuple[dict[str, Any], ...], tmp_path: Path
) -> None:
    model = build(family)
    structure = structure_of(family, *edits)
    built = build_model(model, describe(model), structure)
    built.model.save_pretrained(tmp_path / "out")
    assert total(structure, "safetensors-F32") == stored_bytes(tmp_path / "out") == 4 * structure.parameters
    assert total(structure, "safetensors-F16") == 2 * structure.parameters


PACKED = [
    quantisation("int8"),
    quantisation("int4", 16),
    quantisation("int3", 16, symmetric=False),
    quantisation("int2", 8),
    {"op": "quantize", "format": "torchao", "type": "int8"},
    {"op": "quantize", "format": "torchao", "type": "int4", "group_size": 8},
]


@pytest.mark.parametrize("family", ["llama", "llama_tied", "llama_bias", "qwen3", "phi3", "gemma", "opt"])
@pytest.mark.parametrize("edit", PACKED, ids=lambda edit: f"{edit['format']}-{edit['type']}")
def test_packed_bytes_are_those_of_the_saved_checkpoint(family: str, edit: dict[str, Any], tmp_path: Path) -> None:
    made = quantised(family, NEURONS, edit)
    runner = runner_of(family)
    recipe = Recipe.read({"schema": "model-surgery/recipe/1", "model": {"id": "tiny"}, "edits": [NEURONS, edit]})
    built = build_model(runner.model, runner.architecture, made)
    save_packed(built, made, tiny_checkpoints.tokenizer(), recipe, tmp_path / "out")
    kind = type_of_edit(Quantize.model_validate(edit))
    assert sum(stored(made, kind).bytes.values()) == stored_bytes(tmp_path / "out")


def test_classes_add_up_and_what_stays_in_floating_point_does() -> None:
    structure = structure_of("llama_bias")
    for name, kind in TYPES.items():
        classes = weights_by_class(structure, kind)
        assert set(classes) == {"embeddings", "head", "norms", "attention", "mlp"}
        assert sum(classes.values()) == total(structure, name)
        assert classes["norms"] == (9 * 48 * 2 if name.endswith("-F16") else 9 * 48 * 4)
        if kind.format.name in ("torchao", "compressed-tensors"):
            assert classes["embeddings"] == classes["head"] == 4 * 128 * 48


def test_a_recipes_quantisation_names_its_type() -> None:
    packed = type_of_edit(Quantize(format="compressed-tensors", type="int4", group_size=64, symmetric=False))
    assert (packed.name, packed.bits, packed.group_size, packed.symmetric) == ("compressed-tensors-int4", 4, 64, False)
    assert type_of_edit(Quantize(type="Q4_K_M")) == weight_type("Q4_K_M")


def test_unknown_types_are_refused_with_the_list() -> None:
    with pytest.raises(InputError, match="Q4_K_M"):
        weight_type("Q9")


def test_refused_families_are_counted_all_the_same() -> None:
    with pytest.raises(UnsupportedArchitecture):
        open_model("opt").gguf_plan(structure_of("opt"))
    assert total(structure_of("opt"), "F32") == 4 * structure_of("opt").parameters
