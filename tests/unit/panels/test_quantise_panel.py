"""Quantising in a session, and what the Quantise panel shows of it."""

from __future__ import annotations

from typing import Any, get_args

import pytest

from surgery.errors import InputError, RecipeError
from surgery.formats.table import FORMATS
from surgery.recipe.edits import Compensate, PruneNeurons
from surgery.recipe.storage import GgufType, Quantize
from surgery.session.session import Session
from surgery.workbench import workbench
from surgery.workbench.workbench import Workbench
from tests.sessions import measured, opened
from tests.wide_models import open_wide
from ui.presenters import quantise as words


@pytest.fixture
def session(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(workbench, "load", lambda *rest: pytest.fail("nothing is loaded here"))
    bench = Workbench()
    made = opened(bench, open_wide("llama_tied"))
    measured(made)
    yield made
    bench.jobs.close()


def recipe_edits(session: Session) -> tuple[Any, ...]:
    history = session.view().history
    assert history is not None
    return history.current.edits


def test_types_are_measured_and_remembered(session: Session) -> None:
    dense = measured(session).measure.estimate
    session.edit.quantise({"format": "gguf", "type": "Q2_K"})
    view = measured(session)
    assert (
        view.measure.estimate is not None and dense is not None and view.measure.estimate.perplexity != dense.perplexity
    )
    session.edit.quantise({"format": "gguf", "type": "F32"})
    view = measured(session)
    assert view.measure.tried.keys() == {("", False), ("Q2_K", False), ("F32", False)}
    assert (
        view.measure.tried["F32", False]
        == pytest.approx(view.measure.tried["", False])
        != view.measure.tried["Q2_K", False]
    )
    shown = words.table(view)
    assert shown.count("<tr") == 1 + len(get_args(GgufType)) and shown.count('aria-current="true"') == 1
    assert '<tr aria-current="true"><td>F32</td><td>32.00</td>' in shown
    session.edit.switch([1], [], [])
    assert measured(session).measure.tried.keys() == {("F32", False)}  # of another recipe
    session.edit.undo()
    assert measured(session).measure.tried.keys() == {("", False), ("Q2_K", False), ("F32", False)}


def test_sizes_in_the_table_are_those_of_the_plan(session: Session) -> None:
    session.edit.quantise({"format": "gguf", "type": "Q4_K_M"})
    view = measured(session)
    assert view.model is not None and view.structure is not None
    plan = view.model.gguf_plan(view.structure)
    for kind in get_args(GgufType):
        assert f'title="{plan.file_bytes(kind, "llama_tied"):,} bytes"' in words.table(view)


def test_the_mix_is_told_and_rows_that_no_block_fits(session: Session) -> None:
    session.edit.quantise({"format": "gguf", "type": "Q4_K_M"})
    view = measured(session)
    assert "Q4_K_M here: matrices " in words.table(view) and "stay in F16" not in words.table(view)
    assert view.model is not None and view.structure is not None
    found = view.model.gguf_plan(view.structure).mix("Q4_K_M")
    assert sum(found.values()) == 1 + 7 * 3 and found["Q4_K"] > found["Q6_K"] > 0  # embeddings, and seven a block
    session.edit.take(view.model.recipe(PruneNeurons(removed={1: (3,)}), Quantize(type="Q4_K_M")))
    assert "1 of the matrices stay in F16" in words.table(measured(session))


def test_importance_matrix_takes_the_calibration_text(session: Session) -> None:
    session.edit.quantise({"format": "gguf", "type": "IQ4_NL", "importance": True})
    view = measured(session)
    (edit,) = recipe_edits(session)
    assert isinstance(edit, Quantize) and edit.text is not None and edit.text.windows == 4
    assert view.measure.measured and ("IQ4_NL", True) in view.measure.tried
    assert "with the importance matrix" in words.table(view) and words.controls(view)["importance"]


def test_packed_formats_and_repair(session: Session) -> None:
    session.edit.quantise({"format": "compressed-tensors", "type": "int3", "group_size": 64, "method": "gptq"})
    plain = measured(session).measure.estimate
    assert words.table(session.view()) == "" and "GPTQ" in words.words(session.view())
    session.edit.repair(8)
    repaired = measured(session).measure.estimate
    assert [edit.op for edit in recipe_edits(session)] == ["quantize", "eora"]
    assert plain is not None and repaired is not None and repaired.perplexity != plain.perplexity
    assert words.controls(session.view()) | {} == {
        "format": "compressed-tensors", "rank": "8", "type": "int3", "group": "64", "method": "gptq", "symmetric": True,
        "act_order": False,
    }  # fmt: skip
    session.edit.quantise(None)
    assert recipe_edits(session) == () and measured(session).measure.measured


def test_quantisation_stays_behind_other_edits(session: Session) -> None:
    session.edit.quantise({"format": "gguf", "type": "Q8_0"})
    session.edit.compensate({"bias"}, True)
    session.edit.switch([], [0], [])
    assert [edit.op for edit in recipe_edits(session)] == ["remove_attention", "compensate", "quantize"]
    assert isinstance(recipe_edits(session)[1], Compensate) and measured(session).measure.measured


def test_what_cannot_be_is_refused_and_nothing_changes(session: Session) -> None:
    before = recipe_edits(session)
    for wrong in ({"format": "gguf", "type": "int4"}, {"format": "compressed-tensors", "type": "int9"}):
        with pytest.raises(RecipeError, match="has no type"):
            session.edit.quantise(wrong)
    with pytest.raises(InputError, match="nothing to repair"):
        session.edit.repair(8)
    session.edit.quantise({"format": "gguf", "type": "Q8_0"})
    with pytest.raises(RecipeError):
        session.edit.repair(10**6)
    assert before == () and [edit.op for edit in recipe_edits(session)] == ["quantize"]


@pytest.mark.parametrize("format_name", [value for _, value in words.CHOICES])
def test_settings_follow_the_format(format_name: str) -> None:
    values = {
        "type": "Q4_0",
        "importance": True,
        "method": "gptq",
        "group": "64",
        "symmetric": False,
        "act_order": True,
    }
    found = words.settings(format_name, values)
    if format_name == "none":
        assert found is None
    elif format_name == "gguf":
        assert found == {"format": "gguf", "type": "Q4_0", "importance": True}
    elif format_name == "torchao":
        assert found == {"format": "torchao", "type": "int8"}
        assert words.settings("torchao", values | {"type": "int4"}) == {
            "format": "torchao", "type": "int4", "group_size": 64,
        }  # fmt: skip
    else:
        assert found == {
            "format": "compressed-tensors", "type": "int4", "method": "gptq", "group_size": 64, "symmetric": False,
            "act_order": True,
        }  # fmt: skip
    shown = words.shown_controls(format_name, "gptq")
    assert shown["type"] == (format_name != "none") and shown["act_order"] == (format_name == "compressed-tensors")
    assert format_name == "none" or set(FORMATS) >= {format_name}


@pytest.mark.parametrize("wrong", ["-1", "many", "1e3", "9" * 9])
def test_numbers_from_the_browser_are_checked(wrong: str) -> None:
    with pytest.raises(InputError):
        words.whole(wrong)
    with pytest.raises(InputError):
        words.settings("zip", {})
