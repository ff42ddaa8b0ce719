"""Live = built = reloaded = built again, for every family and every edit; cached = uncached generation."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from analysis.model.runner import Runner
from surgery.checkpoints import save as checkpoint
from surgery.checkpoints.build import Built, build_model
from surgery.checkpoints.save import save_checkpoint
from surgery.errors import InputError, RecipeError
from surgery.evaluation.evaluator import Evaluator
from surgery.models.checks import quiet
from surgery.models.loading import load
from surgery.recipe.recipe import Recipe
from surgery.structure.resolve import resolve
from surgery.structure.structure import Structure
from tests.reference import heads_of, random_windows, runner_of, token_nll
from tests.tiny_models import FAMILIES, GROUPED, VOCAB

SCHEMA = "model-surgery/recipe/1"
ALL = "0-3"
EDITS: dict[str, list[dict[str, Any]]] = {
    "nothing": [],
    "blocks": [{"op": "remove_blocks", "blocks": "1"}],
    "attention_of_block_0": [{"op": "remove_attention", "blocks": "0"}],
    "attention": [{"op": "remove_attention", "blocks": "1-2"}],
    "mlp": [{"op": "remove_mlp", "blocks": "0,3"}],
    "uniform_neurons": [{"op": "prune_neurons", "removed": dict.fromkeys("0123", "0-15")}],
    "neurons": [{"op": "prune_neurons", "removed": {"0": "0-39", "2": "79"}}],
    "kv_groups": [{"op": "prune_kv_groups", "removed": {"1": "0"}}],
    "uniform_kv_groups": [{"op": "prune_kv_groups", "removed": dict.fromkeys("0123", "1")}],
    "heads": [{"op": "prune_heads", "removed": {"2": "HEADS"}}],
    "merged": [{"op": "merge_kv_heads", "blocks": "1", "kv_heads": 1}],
    "all_merged": [{"op": "merge_kv_heads", "blocks": ALL, "kv_heads": 1, "how": "first"}],
    "repeated": [{"op": "arrange_blocks", "order": [2, 0, 1, 2, 2, 3, 1]}],
    "channels": [{"op": "prune_hidden", "removed": "0,3,9,17,40-43"}],
    "together": [
        {"op": "remove_blocks", "blocks": "1"},
        {"op": "remove_attention", "blocks": "0"},
        {"op": "remove_mlp", "blocks": "2"},
        {"op": "prune_neurons", "removed": {"0": "1,2,60", "3": "0"}},
        {"op": "prune_kv_groups", "removed": {"3": "0"}},
        {"op": "arrange_blocks", "order": [0, 2, 2, 3]},
    ],
}
PLAIN = ("nothing", "blocks", "uniform_neurons", "repeated")
"""Edits whose result every family's own code can hold."""


def recipe_of(family: str, name: str) -> Recipe:
    query, kv = heads_of(family)
    size = query // kv
    heads = ",".join(str(group * size) for group in range(kv)) if size > 1 else "0,4"
    document = json.dumps({"schema": SCHEMA, "model": {"id": "tiny"}, "edits": EDITS[name]}).replace("HEADS", heads)
    return Recipe.parse(document)


CONVERSIONS = ("merged", "all_merged", "channels")
UNABLE = ("gpt2", "opt", "gpt_neox", "gpt_neox_sequential")
"""Families whose code takes the head size from the hidden size: they refuse conversions (see test_live_conversions)."""
CASES = [(family, name) for family in FAMILIES for name in EDITS if family not in UNABLE or name not in CONVERSIONS]


def built(family: str, name: str) -> tuple[Structure, Built]:
    runner = runner_of(family)
    structure = resolve(runner.architecture, recipe_of(family, name))
    return structure, build_model(runner.model, runner.architecture, structure)


def greedy(model: Any, ids: torch.Tensor, cached: bool) -> torch.Tensor:
    with quiet():
        return model.generate(ids, max_new_tokens=12, do_sample=False, use_cache=cached, pad_token_id=0)


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    words = Tokenizer(models.WordLevel({f"w{index}": index for index in range(VOCAB)}, unk_token="w0"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    made = PreTrainedTokenizerFast(tokenizer_object=words, unk_token="w0")
    made.chat_template = "{% for message in messages %}{{ message['content'] }} {% endfor %}"
    return made


@pytest.mark.parametrize(("family", "name"), CASES)
def test_live_is_built_is_reloaded(family: str, name: str, tokenizer: Any, tmp_path: Path) -> None:
    structure, new = built(family, name)
    windows = random_windows(count=2)
    live = Evaluator(runner_of(family)).token_losses(structure, windows.ids).double()
    torch.testing.assert_close(token_nll(new.model, windows.ids), live, atol=1e-4, rtol=0)
    assert sum(parameter.numel() for parameter in new.model.parameters()) == structure.parameters
    if name in PLAIN:
        assert new.plain

    saved = save_checkpoint(new, tokenizer, recipe_of(family, name), tmp_path / "made")
    assert saved.parameters == structure.parameters
    again = load(str(tmp_path / "made"))
    torch.testing.assert_close(token_nll(again.model, windows.ids), live, atol=1e-4, rtol=0)
    logits = [model(input_ids=windows.ids, use_cache=False).logits for model in (again.model, new.model)]
    torch.testing.assert_close(*logits, atol=1e-4, rtol=0)
    assert again.architecture.parameters == structure.parameters

    start = windows.ids[:1, :6]
    with_cache = greedy(again.model, start, cached=True)
    assert torch.equal(with_cache, greedy(again.model, start, cached=False))
    assert torch.equal(with_cache, greedy(new.model, start, cached=True))

    # A reloaded checkpoint can be operated on again.
    evaluator = Evaluator(Runner(again.model, again.architecture))
    torch.testing.assert_close(evaluator.token_losses(evaluator.dense, windows.ids).double(), live, atol=1e-4, rtol=0)
    twice = build_model(again.model, again.architecture, evaluator.dense)
    torch.testing.assert_close(token_nll(twice.model, windows.ids), live, atol=1e-4, rtol=0)


@pytest.mark.parametrize("family", GROUPED)
def test_uniform_results_need_no_code_of_their_own(family: str) -> None:
    for name in ("uniform_kv_groups", "all_merged", *PLAIN):
        structure, new = built(family, name)
        heads = len(structure.blocks[0].query_heads)
        # Llama's and Granite's own rules refuse head counts that do not divide the hidden size.
        assert new.plain or structure.architecture.hidden_size % heads
        assert type(new.model).__module__.startswith("transformers.") is new.plain


TIED = ("llama_tied", "gemma2", "gpt2", "smollm")


@pytest.mark.parametrize(
    ("family", "name"), [case for case in CASES if case[0] in TIED and case[1] in ("blocks", "together", "channels")]
)
def test_nothing_is_shared_and_tied_weights_stay_tied(family: str, name: str) -> None:
    _, new = built(family, name)
    base = {tensor.data_ptr() for tensor in runner_of(family).model.state_dict().values()}
    assert not base & {tensor.data_ptr() for tensor in new.model.state_dict().values()}
    head, embeddings = new.model.get_output_embeddings(), new.model.get_input_embeddings()
    assert head.weight is embeddings.weight


def test_the_files_of_a_checkpoint(tokenizer: Any, tmp_path: Path) -> None:
    recipe = recipe_of("llama_tied", "together")
    structure, new = built("llama_tied", "together")
    saved = save_checkpoint(new, tokenizer, recipe, tmp_path / "made")
    wanted = "config.json model.safetensors recipe.json tokenizer.json generation_config.json chat_template.jinja"
    assert set(saved.files) >= {*wanted.split(), "modeling_model_surgery.py"}
    assert Recipe.load(tmp_path / "made" / "recipe.json") == recipe
    config = json.loads((tmp_path / "made" / "config.json").read_text())
    assert config["model_surgery_recipe"] == recipe.key
    assert config["num_hidden_layers"] == 4 and config["base_model_type"] == "llama"
    blocks = config["surgery"]["per_layer_config"]
    assert blocks["0"]["skip"] == ["attention"]
    assert blocks["1"]["skip"] == blocks["2"]["skip"] == ["mlp"]
    assert blocks["3"] == {"intermediate_size": 79, "num_attention_heads": 3,
                           "num_key_value_heads": 1}  # fmt: skip
    assert saved.bytes == (tmp_path / "made" / "model.safetensors").stat().st_size
    assert 0 < saved.bytes - 4 * structure.parameters < 20_000, "a tied head or a removed part was written"


@pytest.mark.parametrize("name", ["blocks", "together"])
def test_stock_transformers_loads_it(name: str, tokenizer: Any, tmp_path: Path) -> None:
    """In a process that cannot import anything of this project."""
    _, new = built("llama", name)
    save_checkpoint(new, tokenizer, recipe_of("llama", name), tmp_path / name)
    ids = random_windows(count=1).ids[:, :8]
    script = (
        "import sys, json, torch\n"
        "from transformers import AutoModelForCausalLM as Auto\n"
        "model = Auto.from_pretrained(sys.argv[1], trust_remote_code=sys.argv[2] == '1')\n"
        "ids = torch.tensor(json.loads(sys.argv[3]))\n"
        "print(json.dumps(model.generate(ids, max_new_tokens=8, do_sample=False, pad_token_id=0).tolist()))\n"
        "assert not {'surgery', 'analysis'} & set(sys.modules)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / name), str(int(not new.plain)), json.dumps(ids.tolist())],
        cwd=tmp_path, env=os.environ | {"HF_HUB_OFFLINE": "1", "HF_MODULES_CACHE": str(tmp_path / "modules")},
        capture_output=True, text=True, stdin=subprocess.DEVNULL, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    with quiet():
        expected = new.model.generate(ids, max_new_tokens=8, do_sample=False, pad_token_id=0).tolist()
    assert json.loads(done.stdout.splitlines()[-1]) == expected


def test_a_folder_in_use_is_refused_and_a_failure_leaves_nothing(
    tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, new = built("llama", "blocks")
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "mine.txt").write_text("mine")
    with pytest.raises(InputError, match="there already"):
        save_checkpoint(new, tokenizer, recipe_of("llama", "blocks"), tmp_path / "used")
    assert [path.name for path in (tmp_path / "used").iterdir()] == ["mine.txt"]

    def full(*arguments: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint, "_note_recipe", full)
    with pytest.raises(InputError, match="No space left"):
        save_checkpoint(new, tokenizer, recipe_of("llama", "blocks"), tmp_path / "new")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["used"]


def test_nothing_left_is_refused() -> None:
    runner = runner_of("llama")
    edits = [{"op": "remove_attention", "blocks": ALL}, {"op": "remove_mlp", "blocks": ALL}]
    structure = resolve(runner.architecture, Recipe.read({"schema": SCHEMA, "model": {"id": "tiny"}, "edits": edits}))
    with pytest.raises(RecipeError, match="at least one must stay"):
        build_model(runner.model, runner.architecture, structure)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("base_model_type", "bert"),
        ("base_model_type", 7),
        ("per_layer_config", {"99": {"intermediate_size": 4}}),
        ("per_layer_config", {"0": {"intermediate_size": -3}}),
        ("surgery", {"blocks": "no.such.place"}),
        ("surgery", None),
    ],
)
def test_a_damaged_configuration_is_one_sentence(tokenizer: Any, tmp_path: Path, key: str, value: Any) -> None:
    _, new = built("llama", "together")
    save_checkpoint(new, tokenizer, recipe_of("llama", "together"), tmp_path / "made")
    path = tmp_path / "made" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {key: value}))
    with pytest.raises(InputError) as caught:
        load(str(tmp_path / "made"))
    assert len(str(caught.value).splitlines()) == 1
