"""The report of a session: everything is in it, nothing runs, nothing is fetched."""

from __future__ import annotations

import re
from datetime import datetime
from html.parser import HTMLParser

from surgery.recipe.texts import TextChoice
from surgery.session.session import Session
from tests.sessions import changed, measured
from ui.presenters.report import report

WHEN = datetime(2026, 1, 2, 3, 4)
FAMILY = "llama"


def test_it_holds_recipe_numbers_protocol_and_lines(session: Session) -> None:
    session.edit.switch([1], [0], [])
    view = measured(session)
    shown = report(view, WHEN)
    assert view.measure.estimate is not None and view.fit.now is not None
    for words in (
        f"{view.measure.estimate.perplexity:,.3f}", "3 windows of 16 tokens", "remove_blocks", "2026-01-02 03:04",
        "python -m surgery evaluate", "to spare", "arithmetic", "estimated",
    ):  # fmt: skip
        assert words in shown, words


def test_nothing_runs_and_nothing_is_fetched(session: Session) -> None:
    hostile = "<script>alert(1)</script>"
    view = changed(measured(session), text=TextChoice("pasted", 16, 3, content=hostile), measure_error=hostile)
    shown = report(view, WHEN)
    assert "<script" not in shown and "default-src 'none'" in shown
    assert not re.findall(r"""(?:src|href)\s*=|url\(|@import|\son\w+=""", shown)


def test_its_tags_are_balanced(session: Session) -> None:
    session.edit.switch([1], [], [])
    open_tags: list[str] = []

    class Balance(HTMLParser):
        def handle_starttag(self, tag: str, attrs: object) -> None:
            if tag != "meta":
                open_tags.append(tag)

        def handle_startendtag(self, tag: str, attrs: object) -> None:
            """Nothing is open behind it."""

        def handle_endtag(self, tag: str) -> None:
            assert open_tags.pop() == tag

    Balance().feed(report(measured(session), WHEN))
    assert open_tags == []
