"""The architecture map against a table written by hand, and its arithmetic against really narrowed modules."""

from __future__ import annotations

import copy
from typing import Any, NamedTuple

import pytest
import torch
from torch import nn
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    BertConfig,
    BertForMaskedLM,
    BloomConfig,
    BloomForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    OPTConfig,
    OPTForCausalLM,
    Qwen2MoeConfig,
    Qwen2MoeForCausalLM,
)

from analysis.errors import UnsupportedArchitecture
from analysis.model.describe import describe
from analysis.model.runner import Prepared, Runner
from surgery.structure.narrow import build_block
from surgery.structure.structure import BlockSpec, whole
from tests.reference import edited, random_windows, runner_of, structure_of
from tests.tiny_models import FAMILIES, GATED, GROUPED, activations, build


class Row(NamedTuple):
    """What a family's configuration says; the defaults are those of the tiny Llama."""

    kv: int = 2
    query: int = 6
    head: int = 8
    hidden: int = 48
    activation: str = "silu"
    tied: bool = False
    fused: str = ""  # qkv, gate_up
    biases: str = ""  # of q k v o, g u d
    norms: str = ""  # of queries and keys: "", head, all
    sliding: tuple[int, ...] = ()
    parallel: bool = False


_PLAIN = Row(kv=6, activation="gelu_tanh", biases="qkvoud")
_GEMMA = Row(head=16, activation="gelu_tanh", tied=True)
_NEOX = _PLAIN._replace(fused="qkv", activation="gelu")
TABLE = {
    "llama": Row(),
    "llama_tied": Row(tied=True),
    "llama_bias": Row(biases="qkvogud"),
    "mistral": Row(sliding=(0, 1, 2, 3)),
    "qwen2": Row(biases="qkv"),
    "qwen3": Row(head=16, norms="head"),
    "qwen2_mha": Row(kv=6, biases="qkv"),
    "gemma": _GEMMA,
    "gemma2": _GEMMA._replace(sliding=(0, 2)),
    "gemma3": _GEMMA._replace(sliding=(0, 1, 3), norms="head"),
    "phi3": Row(fused="qkv gate_up"),
    "olmo2": Row(norms="all"),
    "granite": Row(),
    "smollm": Row(query=9, kv=3, hidden=72, tied=True),
    "smollm3": Row(tied=True),
    "gpt2": _PLAIN._replace(tied=True, fused="qkv"),
    "opt": _PLAIN._replace(tied=True, activation="relu"),
    "gpt_neox": _NEOX._replace(parallel=True),
    "gpt_neox_sequential": _NEOX,
    "phi": _PLAIN._replace(parallel=True),
}


def test_every_family_has_a_row() -> None:
    assert list(TABLE) == list(FAMILIES)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_map_says_what_the_configuration_says(family: str) -> None:
    row, found = TABLE[family], runner_of(family).architecture
    assert len(found.blocks) == 4
    assert (found.hidden_size, found.vocabulary_size, found.context_length) == (row.hidden, 128, 128)
    assert found.tied == row.tied
    for block in found.blocks:
        attention, mlp = block.attention, block.mlp
        assert attention is not None and mlp is not None
        assert (attention.query_heads, attention.kv_heads) == (row.query, row.kv)
        assert (attention.head_size, attention.heads_per_group) == (row.head, row.query // row.kv)
        assert (attention.kind, attention.window) == (("sliding", 8) if block.index in row.sliding else ("full", None))
        assert (mlp.width, mlp.gated, mlp.activation) == (80, family in GATED, row.activation)
        assert mlp.expansion_ratio == pytest.approx(80 / row.hidden)
        assert block.parallel == row.parallel
        roles = {"q": attention.query, "k": attention.key, "v": attention.value, "o": attention.output}
        roles |= {"g": mlp.gate, "u": mlp.up, "d": mlp.down}
        assert "".join(name for name, part in roles.items() if part and part.bias) == row.biases
        fused = "".join(name for name, part in roles.items() if part and part.fused)
        assert fused == ("qkv" if "qkv" in row.fused else "") + ("gu" if "gate_up" in row.fused else "")
        norms = {norm and ("all" if norm.over_all_heads else "head") for norm in _head_norms(attention)}
        assert norms == {row.norms or None}


def _head_norms(attention: Any) -> list[Any]:
    return [attention.query_norm, attention.key_norm]


def test_grouped_families_are_those_that_share_key_value_heads() -> None:
    shared = {family for family, row in TABLE.items() if row.query > row.kv}
    assert shared == set(GROUPED)


@pytest.mark.parametrize("name", activations())
def test_activations_are_told_by_their_values(name: str) -> None:
    torch.manual_seed(0)
    mlp = describe(activations()[name]()).blocks[2].mlp
    assert mlp is not None and mlp.gated
    assert mlp.activation == {"linear": "none"}.get(name, name)


@pytest.mark.parametrize("family", FAMILIES)
def test_parameters_are_those_of_the_distinct_tensors(family: str) -> None:
    model, found = runner_of(family).model, runner_of(family).architecture
    tensors = {parameter.data_ptr(): parameter for parameter in model.parameters()}
    assert found.parameters == sum(tensor.numel() for tensor in tensors.values())
    assert found.bytes_by_dtype == {"float32": 4 * found.parameters}
    parts = [block.parameters for block in found.blocks]
    assert parts == [sum(p.numel() for p in model.get_submodule(block.module).parameters()) for block in found.blocks]
    rest = {name: p for name, p in model.named_parameters() if ".layers." not in name and ".h." not in name}
    head = [p for name, p in rest.items() if name.startswith(("lm_head", "embed_out"))]
    embeddings = [p for name, p in rest.items() if any(mark in name for mark in ("embed_", "wte", "wpe"))]
    embeddings = [p for p in embeddings if not any(p is other for other in head)]
    norm = [p for p in rest.values() if not any(p is other for other in head + embeddings)]
    sizes = [sum(p.numel() for p in group) for group in (embeddings, head, norm)]
    assert sizes == [found.embedding_parameters, found.head_parameters, found.final_norm_parameters]
    assert sum(parts) + sum(sizes) == found.parameters


def test_bytes_are_counted_by_dtype() -> None:
    model = build("llama_tied")
    model.model.layers[1].to(torch.bfloat16)
    found = describe(model)
    sixteen = found.blocks[1].parameters
    assert found.bytes_by_dtype == {"float32": 4 * (found.parameters - sixteen), "bfloat16": 2 * sixteen}


def _size(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.mark.parametrize("family", FAMILIES)
def test_unit_arithmetic_is_that_of_narrowed_modules(family: str) -> None:
    runner = runner_of(family)
    for block, module in zip(runner.architecture.blocks, runner.blocks, strict=True):
        attention, mlp, spec = block.attention, block.mlp, whole(block)
        assert attention is not None and mlp is not None
        group = attention.heads_per_group
        changes: dict[int, BlockSpec] = {
            3 * mlp.per_neuron: _replace(spec, neurons=spec.neurons[1:-2]),
            group * attention.per_query_head + attention.per_kv_head: _replace(
                spec, query_heads=spec.query_heads[group:], kv_heads=spec.kv_heads[1:]
            ),
        }
        if group > 1:
            kept = tuple(head for head in spec.query_heads if head % group != 1)
            changes[attention.kv_heads * attention.per_query_head] = _replace(spec, query_heads=kept)
        for saved, change in changes.items():
            assert _size(module) - _size(build_block(module, block, change)) == saved
            assert block.parameters - change.parameters(block) == saved
        one = _replace(spec, neurons=(0,), query_heads=spec.query_heads[:1], kv_heads=(0,))
        assert _size(build_block(module, block, one)) == one.parameters(block)


@torch.inference_mode()
def _output(runner: Runner, block: nn.Module, prepared: Prepared) -> torch.Tensor:
    return runner.run(block, prepared.state, prepared.calls[1])


def _replace(spec: BlockSpec, **changes: Any) -> BlockSpec:
    return BlockSpec(**{**{name: getattr(spec, name) for name in spec.__dataclass_fields__}, **changes})


@pytest.mark.parametrize("family", FAMILIES)
def test_sublayer_arithmetic_counts_the_parameters_that_no_longer_matter(family: str) -> None:
    """A tensor is gone when other values in it leave the block's output bit for bit the same."""
    runner = runner_of(family)
    prepared = runner.prepare(random_windows(count=1, tokens=5).ids)
    block, module = runner.architecture.blocks[1], runner.blocks[1]
    spec = whole(block)
    for part, change in {
        "attention": _replace(spec, query_heads=(), kv_heads=()),
        "mlp": _replace(spec, neurons=()),
    }.items():
        new = copy.deepcopy(build_block(module, block, change))
        expected = _output(runner, new, prepared)
        alive = 0
        for parameter in new.parameters():
            before = parameter.data
            parameter.data = before + torch.randn_like(before)
            alive += parameter.numel() if not torch.equal(_output(runner, new, prepared), expected) else 0
            parameter.data = before
        assert alive == change.parameters(block)
        assert block.parameters - alive == block.sublayer_parameters(part)  # type: ignore[arg-type]
        assert block.sublayer_parameters(part) > 0  # type: ignore[arg-type]


@pytest.mark.parametrize("family", FAMILIES)
def test_a_structure_counts_what_is_left(family: str) -> None:
    """Removed blocks and zeroed units, counted on a reference copy whose removed inputs are zero."""
    plan = {"remove_blocks": [1], "prune_neurons": {0: [3, 4], 2: list(range(60))}}
    copy_ = edited(runner_of(family).model, family, plan)
    inputs = 3 if family in GATED else 2
    hidden, biases = TABLE[family].hidden, TABLE[family].biases
    per_neuron = inputs * hidden + sum(name in biases for name in "gu")
    assert structure_of(family, plan).parameters == _size(copy_) - 62 * per_neuron
    assert structure_of(family, plan).expansion_ratios == [78 / hidden, 20 / hidden, 80 / hidden]


SMALL: dict[str, Any] = {"vocab_size": 64, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}


def _mixtral() -> nn.Module:
    return MixtralForCausalLM(
        MixtralConfig(**SMALL, num_key_value_heads=2, intermediate_size=16, num_local_experts=2, num_experts_per_tok=1)
    )


def _qwen2_moe() -> nn.Module:
    config = Qwen2MoeConfig(
        **SMALL,
        num_key_value_heads=2,
        intermediate_size=16,
        moe_intermediate_size=8,
        shared_expert_intermediate_size=8,
        num_experts=2,
        num_experts_per_tok=1,
    )
    return Qwen2MoeForCausalLM(config)


def _opt(**overrides: Any) -> nn.Module:
    return OPTForCausalLM(OPTConfig(**{**SMALL, "ffn_dim": 16, **overrides}))


def _bart() -> nn.Module:
    sizes = {f"{half}_{what}": 2 for half in ("encoder", "decoder") for what in ("layers", "attention_heads")}
    return BartForConditionalGeneration(
        BartConfig(vocab_size=64, d_model=16, encoder_ffn_dim=16, decoder_ffn_dim=16, **sizes)
    )


class _Bare(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)


REFUSED = {
    "mixtral": (_mixtral, r"model\.layers\.0\.(mlp|block_sparse_moe)"),
    "qwen2_moe": (_qwen2_moe, r"model\.layers\.0\.mlp"),
    "bert": (lambda: BertForMaskedLM(BertConfig(**SMALL, intermediate_size=16)), "BertForMaskedLM"),
    "opt_projected": (lambda: _opt(word_embed_proj_dim=8), r"model\.decoder\.project_in"),
    "opt_norms_after": (lambda: _opt(do_layer_norm_before=False), r"model\.decoder\.layers\.0"),
    "bart": (_bart, r"model\.encoder\.layers"),
    "bloom": (
        lambda: BloomForCausalLM(BloomConfig(vocab_size=64, hidden_size=16, n_layer=2, n_head=2)),
        r"transformer\.h\.0\.self_attention",
    ),
    "plain_module": (_Bare, "_Bare"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_edited_is_refused_by_name(name: str) -> None:
    make, named = REFUSED[name]
    with pytest.raises(UnsupportedArchitecture, match=named) as refusal:
        describe(make())
    message = str(refusal.value)
    assert message.endswith(".") and "\n" not in message


def test_one_strange_block_is_named() -> None:
    model = build("llama")
    model.model.layers[2].mlp.down_proj = nn.Bilinear(2, 2, 2)
    with pytest.raises(UnsupportedArchitecture, match=r"model\.layers\.2"):
        describe(model)


def test_a_model_without_a_head_is_refused() -> None:
    with pytest.raises(UnsupportedArchitecture, match="head"):
        describe(build("llama").model)
