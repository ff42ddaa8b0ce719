"""Methods, budgets and rules become recipes: every method, every family, every budget."""

from __future__ import annotations

from dataclasses import fields, replace
from functools import cache
from threading import Event
from typing import get_args

import pytest
import torch

from analysis.importance import registry
from surgery.errors import Cancelled, InputError
from surgery.pruning import catalogue
from surgery.pruning.budget import AMOUNTS, Budget, Rules
from surgery.pruning.suggest import suggest
from surgery.recipe.recipe import Edit, Recipe
from surgery.structure.structure import dense
from tests.reference import heads_of, random_windows
from tests.tiny_models import FAMILIES
from tests.tiny_workbench import open_model

WINDOWS = replace(random_windows(), source="/home/someone/text.txt")
SHARES = (0.0, 0.13, 0.4, 0.71, 1.0)
EVERYTHING = catalogue.everything()
BY_KIND = {kind: [item for item in EVERYTHING if item.kind == kind] for kind in catalogue.KINDS}


@cache
def model_of(family):
    return open_model(family)


def made(family, name, budget, rules=Rules()):
    model = model_of(family)
    recipe = suggest(model, name, budget, rules, WINDOWS)
    assert Recipe.parse(recipe.to_json()) == recipe
    return recipe, model.resolve(recipe)


def refused(family, name, budget, rules=Rules(), word=""):
    with pytest.raises(InputError, match=word) as caught:
        suggest(model_of(family), name, budget, rules, WINDOWS)
    message = str(caught.value)
    assert message.endswith(".") and "\n" not in message
    return message


def ends(family, kind, rules):
    """Parameters of the model with as little as possible of what a kind can remove, and of its largest unit.

    Stated by hand from the configuration: the blocks of a tiny model are all alike.
    """
    source = model_of(family).architecture
    block, total = source.blocks[0], source.parameters
    query, kv = heads_of(family)
    if kind == "blocks":
        return total - 3 * block.parameters, block.parameters
    if kind in ("attention", "mlp"):
        unit = block.sublayer_parameters(kind)
        return total - 4 * unit, unit
    if kind == "sublayers":
        parts = [block.sublayer_parameters(part) for part in ("attention", "mlp")]
        return total - 4 * sum(parts) + max(parts), max(parts)
    if kind == "neurons":
        return total - 4 * 72 * block.mlp.per_neuron, 8 * block.mlp.per_neuron
    if kind == "hidden":
        unit = total - source.with_hidden(source.hidden_size - 8).parameters
        return source.with_hidden(8).parameters, unit
    attention = block.attention
    group = attention.per_kv_head + query // kv * attention.per_query_head
    step, steps = (group, kv) if rules.unit == "kv_groups" else (kv * attention.per_query_head, query // kv)
    return total - 4 * (steps - 1) * step, step


def applies(family, kind, rules):
    query, kv = heads_of(family)
    if kind == "hidden":
        return all(block.attention.free_head_size for block in model_of(family).architecture.blocks)
    return kind != "heads" or rules.unit == "kv_groups" or query > kv


def rules_of(item):
    if item.kind == "neurons":
        return [Rules(allocation=name) for name in ("uniform", "cfsp", "global", "raw")]
    if item.kind == "heads":
        return [
            Rules(unit=unit, allocation=name) for unit in ("kv_groups", "query_heads") for name in ("uniform", "global")
        ]
    return [Rules()]


@pytest.mark.parametrize("kind", [name for name, kind in catalogue.KINDS.items() if "params" in kind.budgets])
@pytest.mark.parametrize("family", FAMILIES)
def test_every_method_meets_a_parameter_budget_within_one_unit(family, kind):
    total = model_of(family).architecture.parameters
    assert BY_KIND[kind]
    for item in BY_KIND[kind]:
        for rules in rules_of(item):
            divisor = 8 if kind in ("neurons", "hidden") else 1
            if not applies(family, kind, rules):
                refused(family, item.name, Budget(params="-5%", divisor=divisor), rules)
                continue
            least, unit = ends(family, kind, rules)
            for share in SHARES:
                target = round(total - share * (total - least))
                recipe, structure = made(family, item.name, Budget(params=str(target), divisor=divisor), rules)
                assert abs(structure.parameters - target) <= unit, (item.name, rules, share)
                assert all(edit.chosen_by.method == item.name for edit in recipe.edits)
            refused(family, item.name, Budget(params=str(max(1, least - unit)), divisor=divisor), rules, "more than")


@pytest.mark.parametrize("item", [item for item in EVERYTHING if "blocks" in catalogue.KINDS[item.kind].budgets])
def test_depth_methods_remove_that_many(item):
    for count in range(4):
        recipe, structure = made("llama", item.name, Budget(blocks=count))
        left = sum(spec.attention + spec.mlp for spec in structure.blocks)
        assert 8 - left == count * (2 if item.kind == "blocks" else 1)
        assert bool(recipe.edits) == bool(count)
    refused("llama", item.name, Budget(blocks=9), word="Between 0 and")


@pytest.mark.parametrize("item", [item for item in BY_KIND["blocks"] if isinstance(item, registry.Method)])
def test_block_methods_take_the_lowest_scores(item):
    model = model_of("llama")
    made("llama", item.name, Budget(blocks=1))
    scores = registry.score_blocks(item, model.evidence(WINDOWS))
    for count in (1, 2, 3):
        blocks = made("llama", item.name, Budget(blocks=count))[0].edits[0].blocks
        if item.name == "angular_distance":
            assert blocks == tuple(range(blocks[0], blocks[0] + count))
        else:
            assert set(blocks) == set(scores.argsort()[:count].tolist())


@pytest.mark.parametrize("item", BY_KIND["blocks"] + BY_KIND["attention"] + BY_KIND["mlp"] + BY_KIND["sublayers"])
def test_protected_ends_keep_their_depth(item):
    rules = Rules(protect_first=1, protect_last=1)
    for edit in made("llama", item.name, Budget(blocks=2), rules)[0].edits:
        assert set(edit.blocks) <= {1, 2}


@pytest.mark.parametrize("item", BY_KIND["blocks"] + BY_KIND["attention"] + BY_KIND["mlp"] + BY_KIND["sublayers"])
def test_named_blocks_keep_their_depth(item):
    for edit in made("llama", item.name, Budget(blocks=1), Rules(protect_blocks=(0, 2)))[0].edits:
        assert set(edit.blocks) <= {1, 3}
        assert edit.chosen_by.budget["protect_blocks"] == "0,2"


@pytest.mark.parametrize("name, budget", [("cfsp_fine", {"width": 50}), ("minitron_heads", {"heads": 1}),
                                          ("gqa_mean", {"kv_heads": 1})])  # fmt: skip
def test_named_blocks_keep_their_width(name, budget):
    structure = made("llama", name, Budget(**budget), Rules(protect_blocks=(0, 2)))[1]
    before = dense(model_of("llama").architecture)
    changed = {spec.source for spec, old in zip(structure.blocks, before.blocks, strict=True) if spec != old}
    assert changed and changed <= {1, 3}


@pytest.mark.parametrize("item", BY_KIND["hidden"])
def test_named_blocks_cannot_be_kept_from_a_narrower_residual_stream(item):
    with pytest.raises(InputError, match="changes every block"):
        made("llama", item.name, Budget(percent=20), Rules(protect_blocks=(0,)))


def test_a_block_that_is_not_there_cannot_be_protected():
    with pytest.raises(InputError, match="Block 4 cannot be protected: the model has 4 blocks"):
        made("llama", "block_influence", Budget(blocks=1), Rules(protect_blocks=(4,)))


@pytest.mark.parametrize("family", ["llama", "opt", "phi3"])
@pytest.mark.parametrize("item", BY_KIND["neurons"])
def test_width_budgets(family, item):
    for budget, width in (
        (Budget(expansion_ratio=1.0, divisor=8), 48),
        (Budget(width=50), 50),
        (Budget(width=50, divisor=32), 64),
        (Budget(percent=20), 64),
        (Budget(percent=100, divisor=16), 16),
        (Budget(percent=0), 80),
    ):
        structure = made(family, item.name, budget)[1]
        assert {len(spec.neurons) for spec in structure.blocks} == {width}


@pytest.mark.parametrize("allocation", ["uniform", "cfsp", "global", "raw"])
def test_protected_ends_keep_their_width_and_the_others_pay(allocation):
    rules = Rules(protect_first=1, protect_last=1, allocation=allocation)
    per_neuron = model_of("llama").architecture.blocks[0].mlp.per_neuron
    structure = made("llama", "wanda_structured", Budget(percent=25), rules)[1]
    widths = [len(spec.neurons) for spec in structure.blocks]
    assert widths[0] == widths[3] == 80 and widths[1] + widths[2] == 120
    total = model_of("llama").architecture.parameters
    structure = made("llama", "wanda_structured", Budget(params=str(total - 61 * per_neuron)), rules)[1]
    widths = [len(spec.neurons) for spec in structure.blocks]
    assert widths[0] == widths[3] == 80 and widths[1] + widths[2] == 99


def test_the_highest_neurons_stay():
    model = model_of("llama")
    structure = made("llama", "taylor_first", Budget(width=30), Rules(allocation="global"))[1]
    scores = model.neuron_scores(registry.method("taylor_first"), WINDOWS)
    for spec in structure.blocks:
        kept = torch.zeros(80, dtype=torch.bool)
        kept[list(spec.neurons)] = True
        assert scores[spec.source][kept].min() >= scores[spec.source][~kept].max()
    assert len({len(spec.neurons) for spec in structure.blocks}) > 1
    assert sum(len(spec.neurons) for spec in structure.blocks) == 120


def test_a_plain_checkpoint_if_asked_for():
    uneven = made("llama", "maw", Budget(params="-7%"))[1]
    even = made("llama", "maw", Budget(params="-7%"), Rules(same_width=True))[1]
    assert even.uniform and not uneven.uniform
    per_neuron = model_of("llama").architecture.blocks[0].mlp.per_neuron
    assert abs(even.parameters - uneven.parameters) <= 2.5 * per_neuron


@pytest.mark.parametrize("family", ["llama", "smollm", "qwen2_mha", "gpt2"])
@pytest.mark.parametrize("item", BY_KIND["heads"])
def test_head_budgets(family, item):
    query, kv = heads_of(family)
    for count in range(4 * (kv - 1) + 1):
        structure = made(family, item.name, Budget(heads=count), Rules(allocation="global"))[1]
        assert 4 * kv - sum(len(spec.kv_heads) for spec in structure.blocks) == count
    structure = made(family, item.name, Budget(percent=100 / kv))[1]
    assert {len(spec.kv_heads) for spec in structure.blocks} == {kv - 1}
    if query > kv:
        rules = Rules(unit="query_heads")
        structure = made(family, item.name, Budget(heads=4 * kv), rules)[1]
        assert {(len(spec.query_heads), len(spec.kv_heads)) for spec in structure.blocks} == {(query - kv, kv)}
    refused(family, item.name, Budget(heads=4 * kv), word="more than")


def test_the_lowest_groups_of_the_model_go():
    model, rules = model_of("qwen2_mha"), Rules(allocation="global")
    made("qwen2_mha", "michel", Budget(heads=1))
    entry = registry.method("michel")
    rows = [registry.score_units(entry, model.evidence(WINDOWS), block).double() for block in range(4)]
    ranked = sorted(
        (float(score), block, head) for block, row in enumerate(rows) for head, score in enumerate(row / row.norm())
    )
    left = dict.fromkeys(range(4), 6)
    expected: dict[int, set[int]] = {}
    for _, block, head in ranked:
        if sum(map(len, expected.values())) < 9 and left[block] > 1:
            left[block] -= 1
            expected.setdefault(block, set()).add(head)
    edit = made("qwen2_mha", "michel", Budget(heads=9), rules)[0].edits[0]
    assert {block: set(heads) for block, heads in edit.removed.items()} == expected


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", ["gqa_mean", "gqa_first"])
def test_key_value_heads_are_merged(family, name):
    _, kv = heads_of(family)
    assert made(family, name, Budget(kv_heads=kv))[0].edits == ()
    if not model_of(family).architecture.blocks[0].attention.groupable:
        assert "key/value head" in refused(family, name, Budget(kv_heads=1))
        return
    recipe, structure = made(family, name, Budget(kv_heads=1), Rules(protect_first=1))
    assert [len(spec.kv_heads) for spec in structure.blocks] == [kv, 1, 1, 1]
    assert {spec.merged for spec in structure.blocks[1:]} == {name.removeprefix("gqa_")}
    assert recipe.edits[0].chosen_by.budget == {"kv_heads": 1, "protect_first": 1, "protect_last": 0}
    refused(family, name, Budget(kv_heads=5), word="choose a divisor")


@pytest.mark.parametrize("item", BY_KIND["hidden"])
def test_channels_go(item):
    for budget, width in ((Budget(width=40), 40), (Budget(percent=50, divisor=16), 32), (Budget(width=48), 48)):
        structure = made("llama", item.name, budget)[1]
        assert structure.architecture.hidden_size == width
    refused("llama", item.name, Budget(width=49), word="48 channels")
    assert "head size" in refused("gpt2", item.name, Budget(width=40))


def test_random_scores_are_a_control_with_a_seed():
    for item in [item for item in EVERYTHING if item.needs_seed]:
        amount = {"neurons": Budget(width=20), "hidden": Budget(width=20), "heads": Budget(heads=3)}
        budget = amount.get(item.kind, Budget(blocks=2))
        recipes = {
            seed: [made("smollm", item.name, budget, Rules(seed=seed))[0] for _ in range(2)] for seed in range(8)
        }
        assert all(first == second for first, second in recipes.values())
        assert len({first.key for first, _ in recipes.values()}) > 1
        assert recipes[5][0].edits[0].chosen_by.budget["seed"] == 5
    refused("smollm", "maw", Budget(width=20), Rules(seed=1), "--seed does not go with")


def test_edits_say_how_they_were_chosen():
    rules = Rules(protect_first=1, allocation="cfsp")
    chosen_by = made("llama", "cfsp_fine", Budget(params="-5%", divisor=4), rules)[0].edits[0].chosen_by
    assert chosen_by.method == "cfsp_fine"
    assert chosen_by.budget == {
        "params": "-5%", "divisor": 4, "protect_first": 1, "protect_last": 0, "allocation": "cfsp", "sharpness": 13.1,
        "same_width": False,
    }  # fmt: skip
    text = {"source": "text.txt", "fingerprint": "none", "window": 24, "windows": 3, "spread": False}
    assert chosen_by.text == text
    rules = Rules(keep_candidates=2, no_neighbours=True)
    chosen_by = made("llama", "greedy_sublayers", Budget(blocks=2), rules)[0].edits[0].chosen_by
    assert chosen_by.budget == {
        "blocks": 2, "protect_first": 0, "protect_last": 0, "no_neighbours": True, "keep_candidates": 2,
        "per_parameter": False,
    }  # fmt: skip
    assert made("llama", "maw", Budget(width=20))[0].edits[0].chosen_by.text is None


@pytest.mark.parametrize(
    ("name", "budget", "rules", "word"),
    [
        ("maw", Budget(blocks=2), Rules(), "narrows MLPs"),
        ("block_influence", Budget(width=10), Rules(), "removes blocks"),
        ("block_influence", Budget(), Rules(), "exactly one"),
        ("block_influence", Budget(blocks=1, divisor=8), Rules(), "--divisor"),
        ("block_influence", Budget(blocks=1), Rules(keep_candidates=3), "--keep-candidates"),
        ("angular_distance", Budget(blocks=1), Rules(no_neighbours=True), "--no-neighbours"),
        ("minitron_heads", Budget(blocks=1), Rules(), "removes attention heads"),
        ("minitron_heads", Budget(percent=100), Rules(), "0 to 99"),
        ("no_such_method", Budget(blocks=1), Rules(), "use one of"),
        ("maw", Budget(params="-99%"), Rules(), "more than these parts hold"),
        ("maw", Budget(width=10), Rules(protect_first=4), "protect fewer"),
        ("minitron_heads", Budget(heads=1), Rules(protect_last=9), "protect"),
        ("gqa_mean", Budget(params="-5%"), Rules(), "--kv-heads"),
        ("gqa_mean", Budget(kv_heads=0), Rules(), "at least|At least"),
        ("minitron_hidden", Budget(width=8, divisor=99), Rules(), "divisor"),
        ("minitron_hidden", Budget(width=8), Rules(protect_first=1), "--protect-first"),
    ],
)
def test_what_does_not_go_together_is_refused(name, budget, rules, word):
    refused("llama", name, budget, rules, word)


@pytest.mark.parametrize(
    ("name", "budget", "rules"),
    [
        ("hybrid", Budget(width=10), Rules()),
        ("maw", Budget(width=10), Rules(allocation="cfsp")),
        ("perplexity_scan", Budget(blocks=1), Rules()),
        ("taylor_blocks", Budget(blocks=1), Rules()),
    ],
)
def test_what_needs_text_says_so(name, budget, rules):
    with pytest.raises(InputError, match="needs text"):
        suggest(model_of("llama"), name, budget, rules)


def test_a_stop_ends_the_scoring():
    stop = Event()
    stop.set()
    with pytest.raises(Cancelled):
        suggest(open_model("llama"), "maw", Budget(width=10), stop=stop)


def test_each_kind_is_one_complete_row():
    ops = {kind.model_fields["op"].default for kind in get_args(get_args(Edit)[0])}
    for name, kind in catalogue.KINDS.items():
        assert kind.name == name and kind.title and kind.does and kind.ops
        assert set(kind.ops) <= ops and set(kind.budgets) <= set(AMOUNTS)
        assert {procedure.kind for procedure in kind.procedures} <= {name}
        assert (kind.choose is not None) == (name in {entry.kind for entry in registry.METHODS})
        for item in BY_KIND[name]:
            rules = kind.rules_of(item)
            assert len(set(rules)) == len(rules) and set(rules) <= {rule.name for rule in fields(Rules)}
    assert {op for kind in catalogue.KINDS.values() for op in kind.ops} == ops - {
        "arrange_blocks", "compensate", "heal", "quantize", "eora", "iterate"
    }  # fmt: skip
    assert {item.kind for item in EVERYTHING} == set(catalogue.KINDS)


@pytest.mark.parametrize("kind", catalogue.KINDS.values(), ids=lambda kind: kind.name)
def test_a_kind_makes_only_the_edits_that_its_row_names(kind):
    for item in BY_KIND[kind.name]:
        budget = Budget(params="-12%") if "params" in kind.budgets else Budget(kv_heads=1)
        recipe, _ = made("llama", item.name, budget)
        assert recipe.edits and {edit.op for edit in recipe.edits} <= set(kind.ops)


def test_everything_is_listed_once():
    names = [entry["name"] for entry in catalogue.listed()]
    assert len(set(names)) == len(names) and {"maw", "perplexity_greedy", "gqa_first"} <= set(names)
    assert all(
        {"name", "kind", "source", "needs_gradients", "needs_text"} <= set(entry) for entry in catalogue.listed()
    )
