"""Cuts inside one block of a session: KV groups, query heads and a width; each is one step, and others stay."""

from __future__ import annotations

from typing import Any

import pytest

from analysis.importance import registry
from surgery.checkpoints.build import build_model
from surgery.errors import InputError, RecipeError
from surgery.pruning.neurons import lowest
from surgery.recipe.edits import MergeKvHeads, RemoveMlp
from surgery.session.session import Session
from surgery.session.view import View
from surgery.structure.choices import Choices
from surgery.structure.structure import BlockSpec
from surgery.workbench.workbench import Workbench
from tests.reference import token_nll
from tests.sessions import SMALL, idle, measured, opened
from tests.tiny_workbench import open_model
from tests.unit.session.test_session import slow_analysis

FAMILIES = ("llama", "smollm", "qwen2_mha", "gpt2", "phi")
"""Grouped and not, gated and not."""


def on(bench: Workbench, family: str) -> Session:
    return opened(bench, open_model(family))


def spec(view: View, block: int) -> BlockSpec:
    assert view.structure is not None
    return next(spec for spec in view.structure.blocks if spec.source == block)


def edits(session: Session) -> dict[str, Any]:
    history = session.view().history
    assert history is not None
    return {edit["op"]: edit for edit in history.current.document()["edits"]}


def steps(session: Session) -> int:
    history = session.view().history
    assert history is not None
    return history.position


@pytest.mark.parametrize("family", FAMILIES)
def test_groups_and_a_width_are_steps_and_live_is_what_is_built(bench: Workbench, family: str) -> None:
    session = on(bench, family)
    dense = measured(session).measure.estimate
    session.edit.switch_heads(1, [1])
    assert session.analyse.narrow_block(2, 50, "maw") is None
    view = measured(session)
    attention = view.model.architecture.blocks[1].attention  # type: ignore[union-attr]
    assert attention is not None
    size = attention.heads_per_group
    assert spec(view, 1).kv_heads == tuple(group for group in range(attention.kv_heads) if group != 1)
    assert len(spec(view, 1).query_heads) == attention.query_heads - size
    assert len(spec(view, 2).neurons) == 50 and len(spec(view, 0).neurons) == 80
    assert (
        dense is not None and view.measure.estimate is not None and view.measure.estimate.perplexity != dense.perplexity
    )
    assert view.model is not None and view.structure is not None
    built = build_model(view.model.loaded.model, view.model.architecture, view.structure).model
    losses = token_nll(built, view.model.windows(SMALL).ids)
    assert float(losses.mean().exp()) == pytest.approx(view.measure.estimate.perplexity, rel=1e-4)
    assert steps(session) == 2
    session.edit.undo()
    assert set(edits(session)) == {"prune_kv_groups"}
    session.edit.undo()
    assert edits(session) == {}


def test_the_most_important_neurons_of_the_method_stay(bench: Workbench) -> None:
    session = on(bench, "llama")
    session.analyse.narrow_block(3, 30, "vow")
    view = session.view()
    assert view.model is not None
    scores = view.model.block_scores(registry.method("vow", "neurons"), None, 3)
    assert sorted(set(range(80)) - set(lowest(scores, 50))) == list(spec(view, 3).neurons)
    assert edits(session)["prune_neurons"]["chosen_by"] == {"method": "vow", "budget": {"width": 30, "divisor": 1}}


def test_other_blocks_stay_and_the_origin_says_only_what_is_true_of_all(bench: Workbench) -> None:
    session = on(bench, "llama")
    session.analyse.narrow("maw", 1.0)
    session.analyse.narrow_block(0, 20, "maw")
    assert [len(spec(session.view(), block).neurons) for block in range(4)] == [20, 48, 48, 48]
    assert edits(session)["prune_neurons"]["chosen_by"] == {"method": "maw", "budget": {}}
    session.analyse.narrow_block(1, 80, "vow")
    assert [len(spec(session.view(), block).neurons) for block in range(4)] == [20, 80, 48, 48]
    assert edits(session)["prune_neurons"]["chosen_by"]["method"] == "maw", "nothing was chosen by the other one"
    session.analyse.narrow_block(1, 40, "vow")
    assert "chosen_by" not in edits(session)["prune_neurons"]
    for block in range(4):
        session.analyse.narrow_block(block, 80, "maw")
    assert edits(session) == {}


def test_groups_that_a_method_chose_were_chosen_by_hand_from_then_on(bench: Workbench) -> None:
    session = on(bench, "smollm")
    model = session.view().model
    assert model is not None
    session.edit.take(
        model.recipe(
            {"op": "prune_kv_groups", "removed": {"0": "1", "2": "0"}, "chosen_by": {"method": "magnitude_heads"}}
        )
    )
    session.edit.switch_heads(2, [0])
    assert steps(session) == 1 and "chosen_by" in edits(session)["prune_kv_groups"], "nothing has changed"
    session.edit.switch_heads(2, [])
    assert edits(session)["prune_kv_groups"] == {"op": "prune_kv_groups", "removed": {"0": "1"}}


def test_query_heads_go_where_every_group_keeps_the_same_number(bench: Workbench) -> None:
    session = on(bench, "smollm")
    session.edit.switch_heads(0, [], [0, 4, 8])
    assert spec(session.view(), 0).query_heads == (1, 2, 3, 5, 6, 7)
    session.edit.switch_heads(0, [1], [0, 4, 8])
    assert spec(session.view(), 0).query_heads == (1, 2, 6, 7), "heads of a group that goes are no edit of their own"
    before = session.view().history
    with pytest.raises(RecipeError, match="same number of query heads"):
        session.edit.switch_heads(0, [], [0])
    with pytest.raises(RecipeError, match="remove_attention"):
        session.edit.switch_heads(0, [0, 1, 2])
    with pytest.raises(RecipeError, match="out of range"):
        session.edit.switch_heads(0, [3])
    assert session.view().history == before


@pytest.mark.parametrize(
    ("act", "words"),
    [
        (lambda session: session.edit.switch_heads(9, []), "no block 9"),
        (lambda session: session.edit.switch_heads(-1, []), "no block -1"),
        (lambda session: session.analyse.narrow_block(4, 10, "maw"), "no block 4"),
        (lambda session: session.analyse.narrow_block(0, 0, "maw"), "1 to 80"),
        (lambda session: session.analyse.narrow_block(0, 81, "maw"), "1 to 80"),
        (lambda session: session.analyse.narrow_block(0, 40, "minitron_heads"), "no method"),
        (lambda session: session.analyse.narrow_block(1, 40, "maw"), "MLP of block 1 is removed"),
        (lambda session: session.analyse.narrow_block(2, 40, "maw"), "MLP of block 2 is removed"),
        (lambda session: session.edit.switch_heads(2, [0]), "attention of block 2 is removed"),
    ],
)
def test_what_makes_no_sense_is_refused_and_changes_nothing(bench: Workbench, act: Any, words: str) -> None:
    session = on(bench, "llama")
    session.edit.switch([2], [], [1])
    before = session.view().history
    with pytest.raises(InputError, match=words):
        act(session)
    assert session.view().history == before


def test_merged_heads_are_not_removed_besides(bench: Workbench) -> None:
    session = on(bench, "llama")
    model = session.view().model
    assert model is not None
    session.edit.take(model.recipe(MergeKvHeads(blocks=(0,), kv_heads=1)))
    with pytest.raises(RecipeError, match="merge_kv_heads"):
        session.edit.switch_heads(0, [1])
    session.edit.switch_heads(1, [1])
    assert spec(session.view(), 1).kv_heads == (0,)


def test_widths_of_several_blocks_wait_for_one_analysis(bench: Workbench) -> None:
    session = on(bench, "llama")
    job = session.analyse.narrow_block(0, 40, "cfsp_fine")
    assert job is not None
    session.analyse.narrow_block(1, 30, "cfsp_fine")
    session.analyse.narrow_block(0, 20, "cfsp_fine")
    idle(session)
    view = measured(session)
    assert view.analyse.pending_widths == {} and view.analyse.statistics is not None
    assert [len(spec(view, block).neurons) for block in range(4)] == [20, 30, 80, 80]


def test_a_waiting_width_is_shown_and_dropped_with_its_analysis(
    bench: Workbench, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = on(bench, "llama")
    measured(session)
    go = slow_analysis(session, monkeypatch)
    session.analyse.narrow_block(2, 33, "cfsp_fine")
    session.analyse.narrow_block(1, 80, "cfsp_fine")
    view = session.view()
    assert view.analyse.pending_widths == {2: 33} and view.analyse.pending_ratio is None
    session.analyse.narrow("cfsp_fine", 1.0)
    assert session.view().analyse.pending_widths == {} and session.view().analyse.pending_ratio == 1.0
    session.analyse.narrow_block(2, 33, "cfsp_fine")
    session.cancel()
    view = idle(session)
    go.set()
    assert view.analyse.pending_widths == {} and view.analyse.pending_ratio is None and edits(session) == {}


def test_a_part_that_comes_back_is_as_narrow_as_it_was(bench: Workbench) -> None:
    session = on(bench, "llama")
    session.analyse.narrow_block(0, 40, "maw")
    session.edit.switch_heads(0, [1])
    session.edit.switch([0], [], [])
    session.edit.switch([], [], [])
    assert len(spec(session.view(), 0).neurons) == 40 and spec(session.view(), 0).kv_heads == (0,)


def test_a_healing_does_not_outlive_other_heads(bench: Workbench) -> None:
    model = open_model("llama")
    heal = {"op": "heal", "steps": 1, "text": {"source": "x", "fingerprint": "y", "window": 8, "windows": 4}}
    choices = Choices.of(model.recipe(RemoveMlp(blocks=(1,))).with_edits(heal))
    assert [edit.op for edit in choices.without_heads(0, [], []).others] == ["heal"]
    assert choices.without_heads(0, [1], []).others == ()
