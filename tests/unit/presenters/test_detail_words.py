"""What the page says and shows of one block: pure, on tiny models of several families."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch

from surgery.errors import InputError
from surgery.recipe.edits import ArrangeBlocks, MergeKvHeads, RemoveAttention, RemoveBlocks, RemoveMlp
from surgery.session.session import Session
from surgery.session.view import View
from surgery.workbench.workbench import Workbench
from tests.sessions import changed, idle, measured
from tests.unit.session.test_session_detail import on
from ui.presenters import detail as detail_words
from ui.presenters import detail_widget as detail_model
from ui.presenters.detail_widget import MOST_POINTS, decision, strip, widget_model


def edited(bench: Workbench, family: str, *edits: Any) -> View:
    session = on(bench, family)
    model = session.view().model
    assert model is not None
    session.edit.take(model.recipe(*edits))
    return session.view()


def words(view: View, block: int) -> dict[str, tuple[str, str]]:
    found = detail_model.block_of(view, block)
    assert found is not None
    return {name: (text, kind) for name, text, kind in detail_words.facts(view, found)}


def test_without_a_block_it_says_how_to_select_one(session: Session, bench: Workbench) -> None:
    view = session.view()
    for selected in (None, -1, 4):
        assert "Select a block" in detail_words.detail_text(view, selected)
        assert widget_model(view, selected, "maw", "entropy") == {"block": None}
        assert decision(view, selected) == {"block": None, "groups": [], "heads": [], "width": 0}
    empty = Session(bench).view()
    assert detail_words.detail_text(empty, 0) == "" and detail_words.block_choices(empty) == [("No block", "none")]
    assert detail_words.block_choices(view)[1:3] == [("Block 0", "0"), ("Block 1", "1")]


def test_the_list_of_blocks_is_read_with_care() -> None:
    assert detail_words.chosen_block("none") is None is detail_words.chosen_block("") is detail_words.chosen_block(None)
    assert detail_words.chosen_block("12") == 12
    for wrong in ("-1", "x", "1.5", "٣", "1" * 9):
        with pytest.raises(InputError, match="from the list"):
            detail_words.chosen_block(wrong)


def test_the_numbers_of_a_block_and_where_they_come_from(session: Session) -> None:
    session.edit.switch_heads(1, [0])
    session.analyse.narrow_block(1, 60, "maw")
    view = session.view()
    found = words(view, 1)
    assert found["Influence"] == ("not measured yet: press Analyse", "")
    assert found["Heads"] == ("6 of 9 query heads, 2 of 3 KV groups", "arithmetic")
    assert found["KV cache"] == ("64 of 96 bytes a token in F16", "arithmetic")
    assert found["MLP width"][0] == "60 of 80 neurons, expansion ratio 83.3% (111.1% in the source)"
    assert view.structure is not None and view.model is not None
    block = view.model.architecture.blocks[1]
    kept = block.parameters - 3 * 20 * 72 - (3 * 2 + 2) * 8 * 72
    share = 100 * kept / view.structure.parameters
    assert found["Parameters"] == (f"{kept:,} of {block.parameters:,}, {share:.1f}% of the model", "arithmetic")
    assert "Measure every removal" in found["Without it"][0]
    text = detail_words.detail_text(view, 1)
    assert "<caption>Block 1 of 0 to 3</caption>" in text and text.count("<tr>") == len(found) + 1
    session.analyse.start()
    idle(session)
    influence, kind = words(session.view(), 1)["Influence"]
    assert influence.startswith("block 0.") or influence.startswith("block 1.")
    assert "attention" in influence and "MLP" in influence and kind == "measured on 64 tokens, dense"


def test_a_scan_says_what_a_removal_cost_and_what_was_predicted(session: Session) -> None:
    session.scan.start()
    idle(session)
    view = measured(session)
    block = detail_model.block_of(view, 2)
    assert block is not None and view.scan is not None
    rows = list(detail_words.facts(view, block))
    removals = [row for row in rows if row[0].startswith("Without")]
    assert [name for name, _, _ in removals] == [
        f"Without {what}" for what in ("the block", "its attention", "its MLP") for _ in range(2)
    ]
    estimate = view.scan.scan.removals["blocks"][2]
    assert estimate is not None
    assert f"loss {estimate.difference:+.3f}" in removals[0][1] and removals[0][2] == "measured on 45 tokens, dense"
    assert "second order" in removals[1][1] and removals[1][2] == "estimated from gradients"
    only = replace(view.scan, predicted=None, scan=replace(view.scan.scan, removals={"mlp": [None] * 4}))
    assert "Measure every removal" in words(replace(view, scan=only), 2)["Without it"][0]


@pytest.mark.parametrize(
    ("edit", "what"),
    [
        (RemoveBlocks(blocks=(1,)), ("block", "block")),
        (RemoveAttention(blocks=(1,)), ("attention", "")),
        (RemoveMlp(blocks=(1,)), ("", "MLP")),
    ],
)
def test_what_is_removed_cannot_be_narrowed_and_says_why(bench: Workbench, edit: Any, what: tuple[str, str]) -> None:
    view = edited(bench, "llama", edit)
    model = widget_model(view, 1, "maw", "entropy")
    for part, name in zip(("attention", "mlp"), what, strict=True):
        assert model[part]["able"] is not bool(name) and model[part]["gone"] is bool(name)
        if name:
            assert f"{name} " in model[part]["why"] and "is removed: bring it back" in model[part]["why"]
    text = detail_words.detail_text(view, 1)
    assert ("Block 1 of 0 to 3, removed" in text) is (what == ("block", "block"))
    assert ("0 of 6 query heads" in text) is bool(what[0]) and ("0 of 80 neurons" in text) is bool(what[1])


def test_merged_and_repeated_blocks_are_described(bench: Workbench) -> None:
    view = edited(bench, "llama", MergeKvHeads(blocks=(0,), kv_heads=1), ArrangeBlocks(order=(0, 0, 1, 2)))
    model = widget_model(view, 0, "maw", "entropy")
    assert model["attention"]["able"] is False and "merged to 1" in model["attention"]["why"]
    assert words(view, 0)["Heads"][0] == "all 6 query heads, 1 of 2 KV heads, merged"
    assert words(view, 0)["KV cache"][0] == "all 64 bytes a token in F16", "two of the one head that is left"
    assert "2 times in the model" in detail_words.detail_text(view, 0)
    assert "removed" in detail_words.detail_text(view, 3)


@pytest.mark.parametrize(
    ("family", "single", "why"),
    [("llama", False, "as a whole"), ("gpt2", False, "goes with it"), ("qwen2_mha", False, "goes with it")],
)
def test_the_unit_that_goes_is_the_one_the_checkpoint_needs(
    bench: Workbench, family: str, single: bool, why: str
) -> None:
    attention = widget_model(on(bench, family).view(), 0, "maw", "entropy")["attention"]
    assert attention["single"] is single and why in attention["why"] and attention["able"] is True


def test_with_one_kv_head_query_heads_go_alone(session: Session) -> None:
    model = session.view().model
    assert model is not None
    attention = model.architecture.blocks[0].attention
    assert attention is not None and not detail_model.heads_go_alone(attention)
    assert detail_model.heads_go_alone(replace(attention, kv_heads=1))


def test_a_group_without_query_heads_counts_as_removed(bench: Workbench) -> None:
    view = edited(bench, "smollm", {"op": "prune_heads", "removed": {"0": "0-2,3,6"}})
    assert decision(view, 0) == {"block": 0, "groups": [0], "heads": [3, 6], "width": 80}


def test_heads_are_coloured_by_what_is_known(session: Session) -> None:
    def shown(name: str) -> Any:
        return widget_model(session.view(), 0, "maw", name)["attention"]

    assert shown("entropy")["values"] is None and shown("minitron_heads")["shades"] is None
    known = shown("magnitude_heads")
    assert len(known["values"]) == 9 and min(known["shades"]) == 0 and max(known["shades"]) == 1
    session.analyse.start()
    idle(session)
    for title, name in detail_model.COLOURS:
        found = shown(name)
        assert found["title"] == title and len(found["values"]) == 9
        assert all(0 <= shade <= 1 for shade in found["shades"])


def test_neurons_are_ranked_as_they_would_be_cut(session: Session) -> None:
    def shown(method: str) -> Any:
        return widget_model(session.view(), 2, method, "entropy")["mlp"]

    assert shown("cfsp_fine")["ranked"] is False and "scores" not in shown("cfsp_fine")
    session.analyse.narrow_block(2, 50, "vow")
    assert shown("vow")["chosen"] is True and shown("vow")["cut"] == [0.0] * 50 + [1.0] * 30
    other = shown("maw")
    assert other["chosen"] is False and sum(other["cut"]) == 30
    assert decision(session.view(), 2)["width"] == 50
    assert decision(changed(session.view(), analyse_pending_widths={2: 33}), 2)["width"] == 33


def test_a_wide_strip_is_sampled_and_its_scale_shows_every_column() -> None:
    scores = torch.logspace(-6, 3, 1600)
    found = strip(scores, range(160))
    assert len(found["scores"]) == len(found["heights"]) == len(found["cut"]) == MOST_POINTS
    assert found["scale"] == "logarithmic scale" and found["chosen"] is True
    assert found["scores"] == sorted(found["scores"], reverse=True)
    sizes = [(i + 1) * 1600 // MOST_POINTS - i * 1600 // MOST_POINTS for i in range(MOST_POINTS)]
    assert sum(c * size for c, size in zip(found["cut"], sizes, strict=True)) == pytest.approx(160, abs=0.5)
    assert found["heights"][0] == 1 and 0 < found["heights"][-1] < 0.1
    steps = [a - b for a, b in zip(found["heights"], found["heights"][1:])]
    assert max(steps) < 0.01, "equal ratios are equal steps"


@pytest.mark.parametrize(
    ("scores", "scale"),
    [
        ([1.0, 2.0, 3.0], "linear scale"),
        ([0.0, 1.0, 100.0], "linear scale"),
        ([-1.0, 0.0, 1.0], "linear scale from the lowest score"),
        ([1.0, 1.0], "linear scale"),
        ([0.0, 0.0], "linear scale"),
    ],
)
def test_the_scale_goes_with_the_scores(scores: list[float], scale: str) -> None:
    found = strip(torch.tensor(scores), [])
    assert found["scale"] == scale and found["cut"] == [0.0] * len(scores)
    assert all(0 < height <= 1 and math.isfinite(height) for height in found["heights"])
