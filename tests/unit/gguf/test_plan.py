"""What is known of a GGUF file before it is written, property by property."""

from __future__ import annotations

import gguf
import pytest
from transformers import LlamaConfig, LlamaForCausalLM

from surgery.folders.files import CheckpointFiles
from surgery.gguf.mixes import kinds
from surgery.gguf.plan import GgufPlan
from surgery.gguf.write import write_gguf
from tests import tiny_checkpoints, tiny_models, wide_models

YARN = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 8.0, "original_max_position_embeddings": 16}


@pytest.fixture(scope="module")
def wide(tmp_path_factory):
    """The plan of a model of eight blocks whose rows are whole blocks of 256."""
    folder = tmp_path_factory.mktemp("wide")
    model = tiny_models._make(LlamaForCausalLM, LlamaConfig, wide_models.SIZES, num_hidden_layers=8)
    return GgufPlan(CheckpointFiles(tiny_checkpoints.save(model, folder, tiny_checkpoints.tokenizer())))


@pytest.fixture
def tiny(tmp_path):
    """The plan of a model whose rows are shorter than 256."""
    return GgufPlan(
        CheckpointFiles(tiny_checkpoints.save(tiny_models.build("llama"), tmp_path, tiny_checkpoints.tokenizer()))
    )


def test_an_importance_matrix_is_not_assumed(wide):
    for kind in ("IQ4_NL", "Q4_0"):
        assert wide.mix(kind) == wide.mix(kind, False) != wide.mix(kind, True)
        assert wide.bits_per_weight(kind) == wide.bits_per_weight(kind, False) != wide.bits_per_weight(kind, True)
        assert wide.tensor_bytes(kind) == wide.tensor_bytes(kind, False) != wide.tensor_bytes(kind, True)
        assert wide.file_bytes(kind, "m") == wide.file_bytes(kind, "m", False) != wide.file_bytes(kind, "m", True)


def test_matrices_that_stay_in_f16_are_counted(wide, tiny):
    assert wide.short_rows("Q4_K_M") == "" and "F16" not in wide.mix("Q4_K_M")
    stay = tiny.mix("Q8_0")["F16"]
    assert stay and tiny.short_rows("Q8_0").startswith(f"{stay} of the matrices stay in F16")
    assert tiny.short_rows("F16") == ""


def test_bits_per_weight_are_those_of_all_tensors(wide):
    assert wide.bits_per_weight("F32") == 32
    assert 16 <= wide.bits_per_weight("F16") < 16.1


def test_tensors_come_embeddings_first_then_block_by_block(wide):
    names = [tensor.name for tensor in wide.tensors]
    blocks = [int(name.split(".")[1]) for name in names if name.startswith("blk.")]
    assert names[0] == "token_embd.weight" and blocks == sorted(blocks) and set(blocks) == set(range(len(set(blocks))))
    assert all(not name.startswith("blk.") for name in names[1 + len(blocks) :])


def test_the_ramp_of_yarn_is_written(tmp_path):
    """The usual one: llama.cpp's graphs of these families read no other from the file."""
    model = tiny_models._make(LlamaForCausalLM, LlamaConfig, tiny_models._GQA, rope_parameters=YARN)
    folder = tiny_checkpoints.save(model, tmp_path / "model", tiny_checkpoints.tokenizer())
    fields = gguf.GGUFReader(write_gguf(folder, tmp_path / "model.gguf", "F32").path).fields
    got = [fields[f"llama.rope.scaling.yarn_beta_{end}"].contents() for end in ("fast", "slow")]
    assert got == [32.0, 1.0]


@pytest.mark.parametrize("blocks", [1, 7, 8, 22, 30, 33])
def test_which_blocks_get_more_bits(blocks):
    """The first and the last eighth, and every third between them."""
    shapes = {f"blk.{index}.ffn_down.weight": (256, 512) for index in range(blocks)}
    found = [kinds(shapes, "Q4_K_M")[name].name for name in shapes]
    first, last = blocks // 8, 7 * blocks // 8
    more = [index < first or index >= last or (index - first) % 3 == 2 for index in range(blocks)]
    assert found == ["Q6_K" if one else "Q4_K" for one in more]
