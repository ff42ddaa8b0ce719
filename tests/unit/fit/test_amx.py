"""Weights laid out for AMX, against what llama.cpp's buffers of the embedded model were measured to take."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from analysis.model.describe import describe
from surgery.fit import devices
from surgery.fit.amx import amx_bytes
from surgery.fit.devices import Devices, measure_this_computer
from surgery.fit.fit import fit
from surgery.fit.weight_types import Stored, weight_type
from surgery.structure.structure import dense
from surgery.workbench.workbench import Workbench
from tests.tiny_models import _GQA, _make

MEASURED = json.loads((Path(__file__).resolve().parents[3] / "docs" / "fit.json").read_text("utf-8"))


def file_of(**tensors: tuple[str, tuple[int, ...], int]) -> Stored:
    """A file of tensors by name: type, shape and bytes; `__` in a name is a dot."""
    named = {name.replace("__", "."): tensor for name, tensor in tensors.items()}
    shapes = {name: shape for name, (_, shape, _) in named.items()}
    kinds, sizes = ({name: tensor[place] for name, tensor in named.items()} for place in (0, 2))
    return Stored(weight_type("Q8_0"), shapes, kinds, sizes)


@pytest.mark.parametrize(
    ("kind", "shape", "more"),
    [
        ("Q8_0", (64, 96), 64 * 3 * 4),
        ("Q4_0", (64, 96), 0),
        ("Q4_K", (32, 512), 32 * 2 * 4),
        ("Q6_K", (32, 512), 0),
        ("IQ4_XS", (32, 256), 32 * 2),
        ("Q3_K", (32, 512), 0),
        ("Q8_0", (33, 96), 0),
    ],
)
def test_sums_beside_blocks(kind: str, shape: tuple[int, int], more: int) -> None:
    head = ("F32", (100, 96), 1)
    assert amx_bytes(file_of(blk__0__ffn_up__weight=(kind, shape, 7), output__weight=head)) == more


def test_embeddings_that_are_the_head_are_there_twice() -> None:
    embeddings = ("Q8_0", (64, 96), 6528)
    assert amx_bytes(file_of(token_embd__weight=embeddings)) == 6528 + 64 * 3 * 4
    assert amx_bytes(file_of(token_embd__weight=embeddings, output__weight=("F16", (64, 96), 9))) == 0
    assert amx_bytes(file_of(token_embd__weight=("F32", (64, 96), 6528))) == 0


def test_the_fit_counts_them_with_the_program_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    structure = dense(describe(_make(LlamaForCausalLM, LlamaConfig, _GQA, hidden_size=96, intermediate_size=64)))
    plain = Devices().get("hugging-face-cpu-basic")
    amx = plain.model_copy(update={"amx": True})
    for kind, differs in (("Q8_0", True), ("F32", False), ("safetensors-F16", False)):
        one, other = (fit(structure, device, 64, kind) for device in (plain, amx))
        assert (other.overhead_bytes > one.overhead_bytes) == differs == any("AMX" in note for note in other.notes)
        assert other.weights == one.weights and not any("AMX" in note for note in one.notes)
    for known, expected in (({"amx_int8": True, "avx512_vnni": True}, True), ({"avx512_vnni": True}, False)):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda known=known: known)
        assert devices.has_amx() == measure_this_computer().amx == expected


@pytest.mark.slow
@pytest.mark.parametrize("part", ["memory", "memory_with_amx"])
def test_what_was_measured_in_llama_cpp_is_predicted_within_a_tenth(part: str) -> None:
    structure = dense(Workbench().open("default").architecture)
    device = Devices().get("hugging-face-cpu-basic").model_copy(update={"amx": part == "memory_with_amx"})
    for row in MEASURED[part].values():
        predicted = fit(structure, device, row["context"], row["type"], row["kv_type"]).needed_bytes
        assert abs(predicted / row["measured"]["total_bytes"] - 1) < 0.1, row
