"""The page: which panel stands where."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from itertools import groupby
from typing import Any

import gradio as gr

from surgery.workbench.workbench import Workbench
from ui.api.endpoints import Elsewhere, add_api
from ui.handlers import Handlers
from ui.panel import Panel
from ui.panels.block_map import BlockMap
from ui.panels.charts import Charts
from ui.panels.compare import Compare
from ui.panels.compensate import Compensate
from ui.panels.detail import Detail
from ui.panels.fit import Fit
from ui.panels.heal import Heal
from ui.panels.keep import Keep
from ui.panels.narrowing import Narrowing
from ui.panels.numbers import Numbers
from ui.panels.quantise import Quantise
from ui.panels.read import Read
from ui.panels.setup import Setup
from ui.panels.ship import Ship
from ui.panels.status import Status
from ui.panels.suggest import Suggest
from ui.panels.toolbar import Toolbar
from ui.presenters.guide import BUTTON
from ui.presenters.text import Html
from ui.tabs import Sessions
from ui.theme import PLAIN
from ui.widgets.guide import guide

TITLE = "Model Surgery"
CARD, TOOLS, LOOK = "map-card", "tools", "look"
TAB_PREFIX = {TOOLS: "tool", LOOK: "look"}
"""The rows of tabs, and how the ids of their tabs begin."""
PANELS: tuple[tuple[type[Panel], str], ...] = (
    (Status, ""),
    (Setup, ""),
    (Numbers, ""),
    (Toolbar, ""),
    (BlockMap, CARD),
    (Detail, CARD),
    (Narrowing, ""),
    (Suggest, TOOLS),
    (Compensate, TOOLS),
    (Heal, TOOLS),
    (Quantise, TOOLS),
    (Ship, TOOLS),
    (Compare, LOOK),
    (Read, LOOK),
    (Keep, LOOK),
    (Charts, ""),
    (Fit, ""),
)
"""The panels from top to bottom, and the card or the row of tabs that each stands in."""


def build(sessions: Sessions | None = None, elsewhere: Elsewhere | None = None) -> gr.Blocks:
    """The page, over these sessions or over a workbench of its own; for `elsewhere` see `add_api`."""
    sessions = Sessions(Workbench()) if sessions is None else sessions  # one without tabs is false
    placed = [(panel(sessions.bench), place) for panel, place in PANELS]
    handlers = Handlers(sessions, [panel for panel, _ in placed])
    with gr.Blocks(title=TITLE, analytics_enabled=False) as page:
        handlers.fields()
        head = Html(
            "<header class='ms-head'><h1>{}</h1>{}"
            "<p>Switch parts of a language model off and watch what it costs.</p></header>"
        )
        gr.HTML(head.format(TITLE, BUTTON), **PLAIN)
        guide()
        for place, group in groupby(placed, key=lambda one: one[1]):
            with _frame(place):
                for panel, _ in group:
                    with _tab(panel, place):
                        panel.fields()
        add_api(sessions.bench, elsewhere)  # before the page's own handlers, which would take the names
        handlers.connect(page)
    return page


def _frame(place: str) -> AbstractContextManager[Any]:
    """What the panels of a place stand in together."""
    if place == CARD:
        return gr.Column(elem_id=place)
    return gr.Tabs(elem_id=place) if place in TAB_PREFIX else nullcontext()


def _tab(panel: Panel, place: str) -> AbstractContextManager[Any]:
    """The panel's own tab, in a row of tabs."""
    if place not in TAB_PREFIX:
        return nullcontext()
    name = panel.title.lower()
    return gr.Tab(panel.title, id=name, elem_id=f"{TAB_PREFIX[place]}-{name}")
