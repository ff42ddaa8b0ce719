"""The panels of the page: what each may update is declared, and its buttons follow what can be done."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import gradio as gr
import orjson
import pytest
from gradio.routes import ORJSONResponse

from surgery.recipe.edits import RemoveBlocks
from surgery.session.session import Session
from surgery.session.suggest import Suggestion
from surgery.session.view import View
from surgery.workbench.workbench import Workbench
from tests.unit.presenters.test_presenters import job, nothing, view
from ui.page import PANELS
from ui.panel import Panel
from ui.presenters.text import Html
from ui.tabs import Tab


@pytest.fixture(scope="module")
def panels() -> list[Panel]:
    """All panels, by themselves."""
    made = [panel(Workbench()) for panel, _ in PANELS]
    with gr.Blocks():
        for panel in made:
            panel.fields()
    return made


def sent(panels: list[Panel], shown: View) -> dict[str, Any]:
    """What every panel sends of a view to a new tab, by the id of the component."""
    tab = Tab(Session(Workbench()))
    return {
        one.component.elem_id: one.sent()
        for panel in panels
        for one in panel.values(tab, shown)
        if tab.changed(one.component, one.value, one.hand)
    }


def pressable(panels: list[Panel], shown: View) -> dict[str, bool]:
    """The buttons that can be pressed, and those that cannot."""
    return {
        name: update["interactive"]
        for name, update in sent(panels, shown).items()
        if isinstance(update, dict) and isinstance(update.get("interactive"), bool)
    }


@pytest.mark.parametrize("shown", [nothing(), view(), view(RemoveBlocks(blocks=(1,)), job=job())])
def test_a_panel_sends_only_what_it_declares(panels: list[Panel], shown: View) -> None:
    for panel in panels:
        tab = Tab(Session(Workbench()))
        yielded = [one for one in panel.values(tab, shown) if tab.changed(one.component, one.value, one.hand)]
        assert {one.component for one in yielded} <= set(panel.outputs)
        assert {one.component for one in yielded if one.hand is not None} <= set(panel.moved) <= set(panel.outputs)
        assert not any(tab.changed(one.component, one.value, one.hand) for one in panel.values(tab, shown)), (
            "nothing has changed"
        )


def test_no_component_belongs_to_two_panels(panels: list[Panel]) -> None:
    outputs = [component for panel in panels for component in panel.outputs]
    assert len(outputs) == len(set(outputs))


def test_what_is_sent_is_not_what_is_remembered(panels: list[Panel]) -> None:
    tab = Tab(Session(Workbench()))
    for panel in panels:
        for one in panel.values(tab, view()):
            if tab.changed(one.component, one.value, one.hand) and isinstance(update := one.sent(), dict):
                update.clear()  # as Gradio does
                assert one.hand is not None or tab.sent[one.component], one.component.elem_id


def test_gradio_sends_html_as_it_is(panels: list[Panel]) -> None:
    update = sent(panels, view(RemoveBlocks(blocks=(1,))))
    html = {name: gr.HTML().postprocess(value) for name, value in update.items() if isinstance(value, Html)}
    html |= {name: update[name]["content"] for name in ("tried", "steps")}
    assert {"status", "tiles", "removed", "fit-table", "room", "pinned", "lines", "chart-note"} < html.keys()
    assert all(type(value) is Html for value in html.values())
    read = orjson.loads(ORJSONResponse(html).body)
    assert read == html and all("<" in read[name] for name in ("status", "tiles", "tried", "steps"))


def test_buttons_follow_what_can_be_done(panels: list[Panel]) -> None:
    fresh, edited = pressable(panels, view()), pressable(panels, view(RemoveBlocks(blocks=(1,))))
    assert not fresh["undo"] and not fresh["reset"] and fresh["analyse"] and fresh["export"] and not fresh["cancel"]
    assert edited["undo"] and edited["reset"] and not edited["redo"]
    assert not pressable(panels, view(job=job()))["analyse"]
    assert pressable(panels, view(can_cancel=True))["cancel"]
    assert not any(pressable(panels, nothing()).values())


def test_the_tools_wait_for_a_model_and_for_each_other(panels: list[Panel]) -> None:
    tools = ("suggest", "scan", "build", "make-fit", "read", "ship")
    assert all(pressable(panels, view())[name] for name in tools)
    assert not any(pressable(panels, view(job=job()))[name] for name in tools)
    assert not any(pressable(panels, nothing())[name] for name in tools)


def test_some_buttons_are_there_only_when_they_have_something_to_do(panels: list[Panel]) -> None:
    names = ("suggest-take", "suggest-discard", "heal-adapter", "compute", "compute-quantisation", "fit-take")
    components = {one.elem_id: one for panel in panels for one in panel.outputs}
    assert not any(components[name].visible for name in names), "before anything is sent"
    assert not any(sent(panels, view())[name]["visible"] for name in names)
    shown = view()
    assert shown.history is not None and shown.structure is not None
    recipe = shown.history.current
    suggestion = Suggestion(recipe.key, (), (), recipe, shown.structure, shown.structure)
    suggested = sent(panels, replace(shown, suggest=suggestion))
    assert [suggested[name]["visible"] for name in names] == [True, True, False, False, False, False]
