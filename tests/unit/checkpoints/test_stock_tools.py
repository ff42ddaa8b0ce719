"""Checkpoints that were built, in the tools that people use: no question, no warning, the same numbers."""

from __future__ import annotations

import builtins
import contextlib
import json
import logging
import stat
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    Phi3Config,
    Phi3ForCausalLM,
    dynamic_module_utils,
    pipeline,
)
from transformers.utils import logging as transformers_logging

from analysis.model.describe import describe
from surgery.checkpoints.build import build_model
from surgery.checkpoints.packed import load_packed
from surgery.checkpoints.save import save_checkpoint
from surgery.errors import InputError
from surgery.folders.modeling import CONSENT
from surgery.folders.older_readers import older_entries
from surgery.models.loading import load, load_empty
from surgery.recipe.base import ModelReference
from surgery.recipe.recipe import Recipe
from surgery.structure.resolve import resolve
from surgery.workbench.open_model import OpenModel
from tests import tiny_checkpoints
from tests.tiny_models import _GQA, FAMILIES, _make, build

DIFFERING = [
    {"op": "remove_attention", "blocks": "0"},
    {"op": "remove_mlp", "blocks": "1"},
    {"op": "prune_neurons", "removed": {"2": "0-7", "3": "3"}},
]
GROUP = {"op": "prune_kv_groups", "removed": {"3": "0"}}
IDS = (torch.arange(24) * 7 % 128).view(2, 12)


def write(family: str, edits: list[Any], out: Path) -> Any:
    """The built model, written to a folder."""
    base = build(family)
    recipe = Recipe(model=ModelReference(id="tiny"))
    built = build_model(base, describe(base), resolve(describe(base), recipe.with_edits(*edits)))
    save_checkpoint(built, tiny_checkpoints.tokenizer(), recipe, out)
    return built.model


@pytest.fixture
def warnings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[list[str]]:
    """What transformers logs as a warning or worse, and what it asks on the terminal, where the answer is yes."""
    said: list[str] = []

    def asked(*words: Any) -> str:
        said.append(f"asked on the terminal: {words}")
        return "y"

    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: said.append(record.getMessage())  # type: ignore[method-assign]
    monkeypatch.setattr(builtins, "input", asked)
    monkeypatch.setattr(dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setattr(sys, "path", [*sys.path, str(tmp_path / "modules")])
    before = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_warning()
    transformers_logging.add_handler(handler)
    yield said
    transformers_logging.remove_handler(handler)
    transformers_logging.set_verbosity(before)


@pytest.mark.parametrize("family", FAMILIES)
def test_blocks_that_differ_in_stock_transformers(family: str, tmp_path: Path, warnings: list[str]) -> None:
    attention = describe(build(family)).blocks[3].attention
    assert attention is not None
    made, again = tmp_path / f"made_{family}", tmp_path / f"again_{family}"
    wanted = write(family, [*DIFFERING, *([GROUP] if attention.groupable else [])], made)(IDS).logits.detach()
    tokenizer = AutoTokenizer.from_pretrained(made)
    assert tokenizer("the cat")["input_ids"] == tiny_checkpoints.tokenizer()("the cat")["input_ids"]
    with pytest.raises(KeyError, match=CONSENT):  # the model class alone needs consent, and says so
        AutoModelForCausalLM.from_pretrained(made)
    assert AutoConfig.from_pretrained(made).model_type == wanted_type(family)
    assert AutoConfig.from_pretrained(made, trust_remote_code=True).model_type == wanted_type(family)
    model = AutoModelForCausalLM.from_pretrained(made, trust_remote_code=True)
    torch.testing.assert_close(model(IDS).logits, wanted, atol=1e-6, rtol=0)

    model.set_attn_implementation("eager")
    found = model(IDS, output_attentions=True, output_hidden_states=True)
    torch.testing.assert_close(found.logits, wanted, atol=1e-4, rtol=0)
    heads = attention.query_heads - (attention.heads_per_group if attention.groupable else 0)
    counts = [0, attention.query_heads, attention.query_heads, heads]
    assert [tuple(one.shape) for one in found.attentions] == [(2, count, 12, 12) for count in counts]
    assert len(found.hidden_states) == 5
    for one in found.attentions[1:]:
        torch.testing.assert_close(one.sum(-1), torch.ones_like(one[..., 0]))
    cached = model.generate(IDS[:1, :4], max_new_tokens=4, do_sample=False, output_attentions=True,
                            return_dict_in_generate=True, pad_token_id=0)  # fmt: skip
    assert [one.shape[-1] for one in cached.attentions[-1]] == [7, 7, 7, 7]

    model.save_pretrained(again)
    tokenizer.save_pretrained(again)
    AutoTokenizer.from_pretrained(again)
    torch.testing.assert_close(
        AutoModelForCausalLM.from_pretrained(again, trust_remote_code=True)(IDS).logits, wanted, atol=1e-6, rtol=0
    )
    torch.testing.assert_close(load(str(again)).model(IDS).logits, wanted, atol=1e-6, rtol=0)
    assert not warnings


def wanted_type(family: str) -> str:
    return str(build(family).config.model_type)


@pytest.mark.parametrize("edits", [[{"op": "prune_hidden", "removed": "0,3,9,17,40"}], DIFFERING[:1], DIFFERING[1:2]])
def test_every_kind_of_difference_is_refused_by_the_familys_own_class(
    edits: list[Any], tmp_path: Path, warnings: list[str]
) -> None:
    """A hidden size that heads do not divide, and removed parts alone: nothing is filled with random numbers."""
    made = tmp_path / f"kind_{edits[0]['op']}"
    wanted = write("llama", edits, made)(IDS).logits
    AutoTokenizer.from_pretrained(made)
    with pytest.raises(KeyError, match=CONSENT):
        AutoModelForCausalLM.from_pretrained(made)
    torch.testing.assert_close(AutoModelForCausalLM.from_pretrained(made, trust_remote_code=True)(IDS).logits, wanted)
    assert not warnings


def test_tools_around_transformers(tmp_path: Path, warnings: list[str]) -> None:
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM

    made = tmp_path / "tools"
    model = write("llama", [*DIFFERING, GROUP], made)
    tokenizer = AutoTokenizer.from_pretrained(made)
    generate = pipeline("text-generation", model=str(made), trust_remote_code=True)
    assert generate("The cat", max_new_tokens=3, do_sample=False)[0]["generated_text"].startswith("The cat")

    tool = HFLM(pretrained=str(made), trust_remote_code=True, device="cpu", batch_size=1)
    context, continuation = "The cat's mat", ", the end"
    [(found, _)] = tool.loglikelihood(
        [Instance(request_type="loglikelihood", doc={}, arguments=(context, continuation), idx=0)]
    )
    start, whole = (tokenizer(words)["input_ids"] for words in (context, context + continuation))
    scores = model(torch.tensor([whole])).logits[0].log_softmax(-1)
    wanted = sum(float(scores[place - 1, whole[place]]) for place in range(len(start), len(whole)))
    assert found == pytest.approx(wanted, abs=1e-4)

    tuned = get_peft_model(
        AutoModelForCausalLM.from_pretrained(made, trust_remote_code=True), LoraConfig(task_type="CAUSAL_LM")
    )
    for name, parameter in tuned.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    tuned.eval().save_pretrained(tmp_path / "adapter")
    base = AutoModelForCausalLM.from_pretrained(made, trust_remote_code=True)
    again = PeftModel.from_pretrained(base, tmp_path / "adapter").eval()
    torch.testing.assert_close(again(IDS).logits, tuned(IDS).logits)
    assert not torch.allclose(again(IDS).logits, model(IDS).logits, atol=1e-3)
    assert not warnings


def llama(**rope: Any) -> Any:
    return _make(LlamaForCausalLM, LlamaConfig, _GQA, rope_parameters=rope)


LONG = {"short_factor": [1.0, 2.0, 3.0, 4.0], "long_factor": [2.0, 3.0, 4.0, 5.0]}
SCALED = {
    "default": partial(llama, rope_type="default", rope_theta=500.0),
    "linear": partial(llama, rope_type="linear", rope_theta=500.0, factor=4.0),
    "yarn": partial(llama, rope_type="yarn", rope_theta=500.0, factor=4.0, original_max_position_embeddings=32),
    "llama3": partial(llama, rope_type="llama3", rope_theta=500.0, factor=8.0, low_freq_factor=1.0,
                      high_freq_factor=4.0, original_max_position_embeddings=64),
    "longrope": lambda: _make(Phi3ForCausalLM, Phi3Config, _GQA, original_max_position_embeddings=32,
                              rope_parameters={"rope_type": "longrope", "rope_theta": 500.0, **LONG}),
}  # fmt: skip
OLDER: dict[str, Any] = {
    "default": {},
    "linear": {"rope_scaling": {"rope_type": "linear", "factor": 4.0}},
    "yarn": {"rope_scaling": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}},
    "llama3": {"rope_scaling": {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                                "original_max_position_embeddings": 64}},
    "longrope": {"rope_scaling": {"type": "longrope", **LONG}, "original_max_position_embeddings": 32,
                 "partial_rotary_factor": 1.0},
}  # fmt: skip


@pytest.mark.parametrize("name", SCALED)
def test_what_older_readers_look_for_stands_beside(name: str, tmp_path: Path, warnings: list[str]) -> None:
    """transformers 4.57.3 computes the same from these keys: tried apart, as both cannot be installed."""
    torch.manual_seed(0)
    model = SCALED[name]()
    built = build_model(model, describe(model), resolve(describe(model), Recipe(model=ModelReference(id="tiny"))))
    save_checkpoint(built, tiny_checkpoints.tokenizer(), Recipe(model=ModelReference(id="tiny")), tmp_path / name)
    config = json.loads((tmp_path / name / "config.json").read_text())
    assert config["torch_dtype"] == config["dtype"] == "float32"
    assert config["rope_theta"] == config["rope_parameters"]["rope_theta"] == 500.0 and config["head_dim"] == 8
    assert older_entries(model.config).items() >= OLDER[name].items()
    assert {key: config[key] for key in OLDER[name]} == OLDER[name]
    again = AutoModelForCausalLM.from_pretrained(tmp_path / name)
    before, now = model.config.rope_parameters, again.config.rope_parameters
    assert {key: value for key, value in now.items() if key != "type"} == before
    assert again.dtype == torch.float32
    torch.testing.assert_close(again(IDS).logits, model(IDS).logits)
    assert not [words for words in warnings if "Unrecognized keys" in words]


@pytest.mark.parametrize("family", FAMILIES)
def test_older_names_say_what_the_newer_ones_do(family: str) -> None:
    config = build(family).config
    found, rope = older_entries(config), getattr(config, "rope_parameters", None)
    if family == "gemma3":
        assert (found["rope_theta"], found["rope_local_base_freq"]) == (10000.0, 100.0)
    elif rope is None:
        assert not {"rope_theta", "rope_scaling"} & set(found)
    else:
        assert found["rope_theta"] == rope["rope_theta"]
        assert found.get("partial_rotary_factor") == rope.get("partial_rotary_factor")
    if family.startswith("gpt_neox"):
        assert (found["rotary_emb_base"], found["rotary_pct"]) == (rope["rope_theta"], rope["partial_rotary_factor"])
    assert getattr(config, "head_dim", None) or found["head_dim"] == config.hidden_size // config.num_attention_heads


def test_one_file_mode_for_everything(tmp_path: Path) -> None:
    write("llama", DIFFERING, tmp_path / "made")
    (tmp_path / "any").write_text("")
    usual = stat.S_IMODE((tmp_path / "any").stat().st_mode)
    assert {stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "made").iterdir()} == {usual}


TORCHAO = {"op": "quantize", "format": "torchao", "type": "int4", "group_size": 16}
PACKED = {"op": "quantize", "format": "compressed-tensors", "type": "int4", "group_size": 64}


@pytest.mark.parametrize("edit", [TORCHAO | {"type": "int8", "group_size": None}, TORCHAO | {"group_size": None}])
def test_a_linear_with_one_input_is_refused_by_name_before_any_work(edit: Any, tmp_path: Path) -> None:
    model = OpenModel(load(str(tiny_checkpoints.save(build("llama"), tmp_path / "tiny"))))
    alone = {"op": "prune_neurons", "removed": {"2": "1-79"}}
    with pytest.raises(InputError, match=r"mlp\.down_proj of block 2 has rows of a single weight, which torchao"):
        model.resolve(model.recipe().with_edits(alone, edit))
    model.resolve(model.recipe().with_edits(alone, PACKED | {"group_size": None}))


@pytest.mark.parametrize("edit", [TORCHAO, PACKED])
def test_sizes_of_groups_that_are_advised_divide_every_row(edit: Any, tmp_path: Path) -> None:
    """Rows of 48 in the attention, and of 80 and 72 in the MLPs."""
    model = OpenModel(load(str(tiny_checkpoints.save(build("llama"), tmp_path / "tiny"))))
    narrower = model.recipe().with_edits({"op": "prune_neurons", "removed": {"2": "0-7"}})
    with pytest.raises(InputError, match=r"do not divide: choose a group size of 8, or none for whole rows\.$"):
        model.resolve(narrower.with_edits(*narrower.edits, edit | {"group_size": 24}))
    model.resolve(narrower.with_edits(*narrower.edits, edit | {"group_size": 8}))
    odd = model.recipe().with_edits({"op": "prune_neurons", "removed": {"2": "0"}}, edit)
    with pytest.raises(InputError, match=r"do not divide: choose none, for whole rows\.$"):
        model.resolve(odd)


@pytest.mark.parametrize("edits", [[], DIFFERING])
@pytest.mark.parametrize("packed", [False, True])
def test_code_beside_a_checkpoint_is_neither_run_nor_asked_for(
    edits: list[Any], packed: bool, tmp_path: Path, warnings: list[str]
) -> None:
    """A harmless marker in every place where a library looks for code."""
    made, marker = tmp_path / "made", tmp_path / "ran"
    write("llama", edits, made)
    (made / "marker.py").write_text(f"open({str(marker)!r}, 'w')\n")
    classes = {name: f"marker.{name}" for name in ("AutoConfig", "AutoModelForCausalLM")}
    tokenizer = {"AutoTokenizer": ["marker.Words", "marker.Words"]}
    for file, entries in (("config.json", classes), ("tokenizer_config.json", tokenizer)):
        document = json.loads((made / file).read_text())
        (made / file).write_text(json.dumps(document | {"auto_map": entries, "tokenizer_class": "Words"}))
    with contextlib.suppress(InputError):
        if packed:
            load_packed(made, None)
        else:
            load(str(made))
    with contextlib.suppress(InputError):
        load_empty(made)
    assert not marker.exists() and not [words for words in warnings if "asked" in words]
