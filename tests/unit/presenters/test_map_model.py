"""What the block map shows: colours that were chosen, groups in miniature, locks, and what a suggestion would take."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from surgery.errors import InputError
from surgery.recipe.edits import PruneKvGroups, PruneNeurons, RemoveAttention, RemoveBlocks
from surgery.session.session import Session
from surgery.session.view import View
from surgery.workbench.workbench import Workbench
from tests.sessions import idle, measured, opened
from tests.tiny_workbench import open_model
from tests.unit.presenters.test_presenters import view
from ui import inputs
from ui.presenters.map_widget import COLOURS, block_map_model, ratios


def scanned(predicted: bool = True) -> Any:
    """A scan of blocks and attentions only, and predictions of everything."""
    rows = {kind: [SimpleNamespace(difference=0.1 * block) for block in range(3)] for kind in ("blocks", "attention")}
    rows["attention"].append(None)  # type: ignore[arg-type]
    rows["blocks"].append(SimpleNamespace(difference=-0.5))
    second = SimpleNamespace(blocks=torch.ones(4), attention=torch.zeros(4), mlp=torch.tensor([1, float("nan"), 3, 4]))
    return SimpleNamespace(
        scan=SimpleNamespace(removals=rows), predicted=SimpleNamespace(second=second) if predicted else None
    )


def test_a_measure_that_is_not_known_colours_nothing() -> None:
    for _, name in COLOURS:
        model = block_map_model(view(), name)
        assert model["measure"] == name
        assert model["block"] == model["attention"] == model["mlp"] == [None] * 4
    assert block_map_model(view(), "another")["measure"] == "influence"


def test_the_map_is_coloured_by_what_was_measured_and_predicted() -> None:
    model = block_map_model(view(scan=scanned()), "measured loss")
    assert model["block"] == pytest.approx([0, 0.1, 0.2, -0.5])
    assert model["attention"] == [0, pytest.approx(0.1), pytest.approx(0.2), None] and model["mlp"] == [None] * 4
    model = block_map_model(view(scan=scanned()), "predicted loss")
    assert model["block"] == [1.0] * 4 and model["mlp"] == [1, None, 3, 4]
    assert block_map_model(view(scan=scanned(predicted=False)), "predicted loss")["mlp"] == [None] * 4


def test_kv_groups_are_shown_one_by_one() -> None:
    attention = open_model().architecture.blocks[0].attention
    assert attention is not None and attention.kv_heads > 1
    model = block_map_model(view(PruneKvGroups(removed={2: (1,)})))
    whole = [True] * attention.kv_heads
    assert model["groups"] == [whole, whole, [index != 1 for index in range(attention.kv_heads)], whole]


def test_a_suggestion_is_marked_where_it_takes_something() -> None:
    before = view(RemoveAttention(blocks=(1,)))
    after = view(
        RemoveBlocks(blocks=(3,)), RemoveAttention(blocks=(0, 1)), PruneNeurons(removed={2: (0,)})
    )  # fmt: skip
    assert block_map_model(before)["going"]["blocks"] == []
    marked = block_map_model(view(RemoveAttention(blocks=(1,)), suggest=SimpleNamespace(structure=after.structure)))
    assert marked["going"] == {
        "blocks": [3], "attention": [0], "mlp": [], "narrower_attention": [], "narrower_mlp": [2]
    }  # fmt: skip


def test_locks_are_shown_and_kept_by_the_browser() -> None:
    shown = view(locked=(0, 3))
    assert block_map_model(shown)["locked"] == [0, 3] == inputs.to_keep(shown)["locked"]
    assert inputs.locked(inputs.to_keep(shown)) == (0, 3)
    for hostile in (None, {}, {"locked": "0"}, {"locked": [True, -1, "2", 1.0, {}]}):
        assert inputs.locked(hostile) == ()


def test_a_range_of_blocks_is_read_and_refused() -> None:
    assert inputs.blocks(" ", view()) is None and inputs.blocks("All", view()) is None
    assert inputs.blocks("1-2", view()) == (1, 2)
    for text in ("4", "x", "2-1", "-1", "1;2"):
        with pytest.raises(InputError):
            inputs.blocks(text, view())


@pytest.fixture
def session() -> Any:
    bench = Workbench()
    yield opened(bench, open_model(), windows=2)
    bench.jobs.close()


def widths(shown: View) -> list[int]:
    assert shown.structure is not None
    return [len(spec.neurons) for spec in shown.structure.blocks]


def test_a_range_of_blocks_is_narrowed_and_the_others_stay(session: Session) -> None:
    session.analyse.narrow("maw", 0.5, blocks=(1, 2))
    assert widths(measured(session)) == [80, 36, 36, 80]
    assert ratios(session.view(), (1, 2)) == (50, 112) and ratios(session.view()) == (112, 112)
    session.analyse.narrow("maw", 0.25, blocks=(2, 3))
    assert widths(session.view()) == [80, 36, 18, 18]
    session.edit.switch([3], [], [])
    session.analyse.narrow("maw", 99.0, blocks=(1, 2, 3))
    assert widths(session.view()) == [80, 80, 80]
    with pytest.raises(InputError, match="None of these blocks"):
        session.analyse.narrow("maw", 0.5, blocks=(3,))


def test_a_range_waits_for_its_analysis(session: Session) -> None:
    assert session.analyse.narrow("cfsp_fine", 0.5, blocks=(0,)) is not None
    shown = session.view()
    assert shown.analyse.pending_ratio == 0.5 or shown.analyse.statistics is not None
    assert shown.analyse.pending_widths == {}
    idle(session)
    assert widths(measured(session)) == [36, 80, 80, 80]


def test_locks_come_back_with_the_model(session: Session) -> None:
    session.edit.remember_locked((2, 9))
    session.edit.adopt(open_model())
    assert session.view().locked == (2,)
    session.edit.adopt(open_model())
    assert session.view().locked == (), "another model has blocks of its own"
