"""Resolving a recipe over an architecture, against numbers computed by hand, and every refusal by name."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from analysis.model.architecture import Architecture
from analysis.model.describe import describe
from surgery.errors import RecipeError
from surgery.recipe.recipe import Recipe
from surgery.structure.resolve import resolve
from surgery.structure.structure import Structure, dense
from tests.tiny_models import build

# Tiny Llama: 4 blocks, hidden 48, 6 query heads of 8 in 2 groups, MLP 80, vocabulary 128, not tied.
ATTENTION, MLP, NORM = 2 * 48 * 48 + 2 * 48 * 16, 3 * 48 * 80, 48
BLOCK = ATTENTION + MLP + 2 * NORM
WHOLE = 4 * BLOCK + 2 * 128 * 48 + NORM

ATTENTION_OUT: dict[str, Any] = {"op": "remove_attention", "blocks": "1"}
MLP_OUT: dict[str, Any] = {"op": "remove_mlp", "blocks": "1"}
BLOCK_OUT: dict[str, Any] = {"op": "remove_blocks", "blocks": "0-1"}
NEURONS: dict[str, Any] = {"op": "prune_neurons", "removed": {"1": "3-7,12"}}
GROUPS: dict[str, Any] = {"op": "prune_kv_groups", "removed": {"1": "0"}}
HEADS: dict[str, Any] = {"op": "prune_heads", "removed": {"1": "0,3"}}


@cache
def architecture(family: str) -> Architecture:
    return describe(build(family))


def resolved(*edits: dict[str, Any], family: str = "llama", of: Architecture | None = None) -> Structure:
    recipe = Recipe.read({"schema": "model-surgery/recipe/1", "model": {"id": "tiny"}, "edits": list(edits)})
    return resolve(of or architecture(family), recipe)


def refusal(*edits: dict[str, Any], family: str = "llama") -> str:
    with pytest.raises(RecipeError) as caught:
        resolved(*edits, family=family)
    message = str(caught.value)
    assert message.endswith(".") and "\n" not in message and len(message) < 500, message
    return message


@pytest.mark.parametrize(
    ("edits", "less"),
    [
        ([], 0),
        ([{"op": "remove_blocks", "blocks": "1-2"}], 2 * BLOCK),
        ([{"op": "remove_attention", "blocks": "0,3"}], 2 * (ATTENTION + NORM)),
        ([{"op": "remove_mlp", "blocks": "3"}], MLP + NORM),
        ([ATTENTION_OUT, MLP_OUT], BLOCK),
        ([NEURONS], 6 * 3 * 48),
        ([GROUPS], 3 * 2 * 8 * 48 + 2 * 8 * 48),
        ([HEADS], 2 * 2 * 8 * 48),
        ([GROUPS, {"op": "prune_heads", "removed": {"1": "4"}}], 4 * 2 * 8 * 48 + 2 * 8 * 48),
        ([{"op": "remove_blocks", "blocks": "0"}, NEURONS, HEADS], BLOCK + 6 * 3 * 48 + 2 * 2 * 8 * 48),
    ],
)
def test_parameters_of_a_tiny_llama(edits: list[dict[str, Any]], less: int) -> None:
    assert WHOLE == 83_376
    assert resolved(*edits).parameters == WHOLE - less


@pytest.mark.parametrize(
    ("family", "edit", "less"),
    [  # biases leave with their rows; OLMo 2 norms all heads' positions together
        ("llama_bias", NEURONS, 6 * (2 * 49 + 48)),
        ("llama_bias", HEADS, 2 * 8 * (49 + 48)),
        ("llama_bias", GROUPS, 3 * 8 * (49 + 48) + 2 * 8 * 49),
        ("llama_bias", ATTENTION_OUT, 48 * 49 + 2 * 16 * 49 + 48 * 48 + 48 + 48),
        ("llama_bias", MLP_OUT, 2 * 80 * 49 + 48 * 80 + 48 + 48),
        ("qwen2", GROUPS, 3 * 8 * (49 + 48) + 2 * 8 * 49),
        ("olmo2", HEADS, 2 * (2 * 8 * 48 + 8)),
        ("olmo2", GROUPS, 3 * (2 * 8 * 48 + 8) + 2 * 8 * 48 + 8),
        ("gemma2", ATTENTION_OUT, 2 * 96 * 48 + 2 * 32 * 48 + 2 * 48),
        ("gemma2", MLP_OUT, 3 * 48 * 80 + 2 * 48),
        ("qwen3", HEADS, 2 * 2 * 16 * 48),
        ("phi3", GROUPS, 3 * 2 * 8 * 48 + 2 * 8 * 48),
        ("gpt2", NEURONS, 6 * (49 + 48)),
    ],
)
def test_what_leaves_with_an_edit_in_other_families(family: str, edit: dict[str, Any], less: int) -> None:
    count = sum(parameter.numel() for parameter in build(family).parameters())
    assert dense(architecture(family)).parameters == count
    assert resolved(edit, family=family).parameters == count - less


def test_what_stays_is_listed_in_the_sources_numbering() -> None:
    structure = resolved({"op": "remove_blocks", "blocks": "0"}, NEURONS, GROUPS, {**HEADS, "removed": {"2": "2,5"}})
    assert [spec.source for spec in structure.blocks] == [1, 2, 3]
    first, second, third = structure.blocks
    assert first.query_heads == (3, 4, 5) and first.kv_heads == (1,)
    assert first.neurons == tuple(n for n in range(80) if n not in {3, 4, 5, 6, 7, 12})
    assert second.query_heads == (0, 1, 3, 4) and second.kv_heads == (0, 1) and len(second.neurons) == 80
    assert third.query_heads == tuple(range(6)) and third.kv_heads == (0, 1)
    assert structure.kv_heads == [1, 2, 2]
    assert structure.expansion_ratios == [74 / 48, 80 / 48, 80 / 48]
    assert not structure.uniform


def test_a_whole_group_may_leave_through_its_heads() -> None:
    through_heads = resolved({"op": "prune_heads", "removed": {"1": "0-2"}})
    assert through_heads == resolved(GROUPS) and through_heads.key == resolved(GROUPS).key


def test_sublayers_that_are_gone_count_as_nothing() -> None:
    structure = resolved(ATTENTION_OUT, {"op": "remove_mlp", "blocks": "1,3"})
    assert structure.kv_heads == [2, 0, 2, 2]
    assert structure.expansion_ratios == [80 / 48, 0, 80 / 48, 0]
    assert [spec.empty for spec in structure.blocks] == [False, True, False, False]
    assert [spec.source for spec in structure.kept] == [0, 2, 3]


@pytest.mark.parametrize(
    ("edits", "uniform"),
    [
        ([], True),
        ([BLOCK_OUT], True),
        ([NEURONS], False),
        ([{"op": "prune_neurons", "removed": {str(block): f"{block}-{block + 4}" for block in range(4)}}], True),
        ([{"op": "prune_kv_groups", "removed": {"0": "0", "1": "1", "2": "0", "3": "1"}}], True),
        ([{"op": "prune_kv_groups", "removed": {"0": "0", "1": "1"}}], False),
        ([{"op": "remove_blocks", "blocks": "2-3"}, {"op": "prune_neurons", "removed": {"0": "1", "1": "2"}}], True),
        ([{"op": "remove_mlp", "blocks": "0-3"}], False),
        ([{"op": "remove_attention", "blocks": "0-3"}], False),
    ],
)
def test_uniform_means_that_all_kept_blocks_have_the_same_widths(edits: list[dict[str, Any]], uniform: bool) -> None:
    assert resolved(*edits).uniform is uniform


@pytest.mark.parametrize(
    ("edit", "names"),
    [
        ({"op": "remove_blocks", "blocks": "4"}, ["remove_blocks", "block 4", "0 to 3"]),
        ({"op": "remove_attention", "blocks": "0,9"}, ["remove_attention", "block 9"]),
        ({"op": "remove_mlp", "blocks": "3-4"}, ["remove_mlp", "block 4"]),
        ({"op": "prune_neurons", "removed": {"7": "0"}}, ["prune_neurons", "block 7"]),
        ({"op": "prune_neurons", "removed": {"2": "79-80"}}, ["prune_neurons", "block 2", "neuron 80", "0 to 79"]),
        ({"op": "prune_kv_groups", "removed": {"2": "2"}}, ["prune_kv_groups", "block 2", "KV group 2", "0 to 1"]),
        ({"op": "prune_heads", "removed": {"2": "6"}}, ["prune_heads", "block 2", "head 6", "0 to 5"]),
        ({"op": "remove_blocks", "blocks": "0-1048575"}, ["remove_blocks", "block"]),
    ],
)
def test_indices_out_of_range_are_refused_by_name(edit: dict[str, Any], names: list[str]) -> None:
    message = refusal(edit)
    assert all(name in message for name in names), message


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (BLOCK_OUT, BLOCK_OUT), (BLOCK_OUT, ATTENTION_OUT), (BLOCK_OUT, MLP_OUT), (BLOCK_OUT, NEURONS),
        (BLOCK_OUT, GROUPS), (BLOCK_OUT, HEADS), (ATTENTION_OUT, ATTENTION_OUT), (MLP_OUT, MLP_OUT),
        (ATTENTION_OUT, GROUPS), (ATTENTION_OUT, HEADS), (MLP_OUT, NEURONS), (NEURONS, NEURONS),
        (GROUPS, GROUPS), (HEADS, HEADS), (GROUPS, {"op": "prune_heads", "removed": {"1": "2"}}),
    ],
)  # fmt: skip
def test_contradictory_edits_are_refused_in_either_order(one: dict[str, Any], other: dict[str, Any]) -> None:
    for first, second in ((one, other), (other, one)):
        message = refusal(first, second)
        assert "block 1" in message or (one == other == BLOCK_OUT and "block 0" in message), message
        assert second["op"] in message


@pytest.mark.parametrize(
    ("one", "other"), [(ATTENTION_OUT, MLP_OUT), (ATTENTION_OUT, NEURONS), (MLP_OUT, HEADS), (NEURONS, GROUPS)]
)
def test_edits_of_different_parts_agree_in_either_order(one: dict[str, Any], other: dict[str, Any]) -> None:
    assert resolved(one, other) == resolved(other, one)


@pytest.mark.parametrize(
    ("edits", "names"),
    [
        ([{"op": "remove_blocks", "blocks": "0-3"}], ["every block"]),
        ([{"op": "remove_blocks", "blocks": "0,2"}, {"op": "remove_blocks", "blocks": "1,3"}], ["every block"]),
        ([{"op": "prune_neurons", "removed": {"2": "0-79"}}], ["prune_neurons", "block 2", "remove_mlp"]),
        ([NEURONS, {"op": "prune_neurons", "removed": {"1": "0-2,8-11,13-79"}}], ["block 1", "remove_mlp"]),
        ([{"op": "prune_heads", "removed": {"2": "0-5"}}], ["block 2", "remove_attention"]),
        ([{"op": "prune_kv_groups", "removed": {"2": "0-1"}}], ["block 2", "remove_attention"]),
        ([GROUPS, {"op": "prune_heads", "removed": {"1": "3-5"}}], ["block 1", "remove_attention"]),
    ],
)
def test_removing_everything_is_refused(edits: list[dict[str, Any]], names: list[str]) -> None:
    message = refusal(*edits)
    assert all(name in message for name in names), message


TEXT = {"source": "embedded", "fingerprint": "0" * 16, "window": 16, "windows": 2}
EORA: dict[str, Any] = {"op": "eora", "rank": 2, "text": TEXT}


@pytest.mark.parametrize(
    ("edits", "words"),
    [
        ([EORA], "nothing to repair"),
        ([NEURONS, EORA], "nothing to repair"),
        ([{"op": "quantize", "type": "F32"}, EORA], "nothing to repair"),
        ([{"op": "arrange_blocks", "order": [0, 1, 2, 3]}], "in this order as it is"),
        ([BLOCK_OUT, {"op": "arrange_blocks", "order": [2, 3]}], "in this order as it is"),
    ],
)
def test_edits_without_effect_are_refused(edits: list[dict[str, Any]], words: str) -> None:
    message = refusal(*edits)
    assert words in message and edits[-1]["op"] in message


def test_edits_that_have_an_effect_somewhere_are_not() -> None:
    resolved({"op": "quantize", "type": "Q4_0"}, EORA)
    resolved({"op": "arrange_blocks", "order": [0, 1, 3]})


@pytest.mark.parametrize("heads", ["0", "0-1,3", "0-1", "2-4"])
def test_unequal_groups_are_refused(heads: str) -> None:
    message = refusal({"op": "prune_heads", "removed": {"2": heads}})
    assert "prune_heads" in message and "block 2" in message
    assert resolved({"op": "prune_heads", "removed": {"2": heads}}, family="qwen2_mha").kv_heads != [6, 6, 6, 6]


@pytest.mark.parametrize(
    ("changes", "whole", "edit", "less"),
    [
        # Llama 3.2 1B, MLP 20% narrower (1,638 neurons a block): -13.0%
        ({"vocab_size": 128_256, "hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16,
          "num_attention_heads": 32, "num_key_value_heads": 8, "tie_word_embeddings": True}, 1_235_814_400,
         {"op": "prune_neurons", "removed": {str(block): "0-1637" for block in range(16)}}, 161_021_952),
        # Llama 2 7B without 8 of its 32 blocks
        ({"vocab_size": 32_000, "hidden_size": 4096, "intermediate_size": 11_008, "num_hidden_layers": 32,
          "num_attention_heads": 32, "num_key_value_heads": 32}, 6_738_415_616,
         {"op": "remove_blocks", "blocks": "21-28"}, 8 * 202_383_360),
        # SmolLM2 135M, one of three KV groups of every block
        ({"vocab_size": 49_152, "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30,
          "num_attention_heads": 9, "num_key_value_heads": 3, "tie_word_embeddings": True}, 134_515_008,
         {"op": "prune_kv_groups", "removed": {str(block): "1" for block in range(30)}}, 30 * 294_912),
    ],
)  # fmt: skip
def test_the_figures_of_real_llamas(changes: dict[str, Any], whole: int, edit: dict[str, Any], less: int) -> None:
    with torch.device("meta"):
        model = LlamaForCausalLM(LlamaConfig(**changes))
    real = describe(model)
    assert dense(real).parameters == whole
    structure = resolved(edit, of=real)
    assert structure.parameters == whole - less and structure.uniform
