"""What the browser tests record of the controls that they work."""

from __future__ import annotations

from typing import Any
from urllib.parse import quote

import pytest

from tests.interface.worked import Record

pytestmark = pytest.mark.slow
FIELD = '<div id="{0}"><label>{0}</label><input aria-label="{0}"></div>'
LIST = '<div id="{0}"><input aria-label="{0}"><ul><li role="option">{0} option</li></ul></div>'
PAGE = (
    '<main><button id="pressed">Pressed</button><button id="passed">Passed</button>'
    '<button id="off" disabled>Off</button><button id="component-7">No name</button>'
    '<div id="point"><svg><g role="button" tabindex="0"><text y="9">Point</text></g></svg></div>'
    '<div id="tool"><button id="tool-button">Tool</button></div>'
    '<div id="group"><button class="label-wrap">Group</button>' + FIELD.format("inside") + "</div>"
    f"{FIELD.format('filled')}{FIELD.format('focused')}{LIST.format('picked')}{LIST.format('opened')}"
    '<div id="ticked"><label>Tick<input type="checkbox"></label></div><div id="file"><input type="file"></div></main>'
)
FIELDS = ("filled", "focused", "picked", "opened", "ticked", "file", "group", "inside", "tool", "point")
CONFIG: dict[str, Any] = {
    "dependencies": [],
    "components": [{"id": number, "type": "textbox", "props": {"elem_id": name}} for number, name in enumerate(FIELDS)],
}


def test_only_what_was_worked_is_recorded(browser: Any) -> None:
    record = Record()
    context = browser.new_context()
    record.watch(context, CONFIG)
    page = context.new_page()
    page.goto(f"data:text/html,{quote(PAGE)}")
    page.click("#pressed")
    page.hover("#passed")
    page.click("#off", force=True)
    page.click("#component-7")
    page.get_by_role("button", name="Tool").click()
    page.locator("g").press("Enter")
    page.get_by_label("filled").fill("words")
    page.get_by_label("focused").click()
    page.get_by_text("focused").click()
    page.get_by_text("picked option").click()
    page.get_by_label("opened").click()
    page.get_by_text("Tick").click()
    page.locator("#file input").set_input_files({"name": "a.txt", "mimeType": "text/plain", "buffer": b"a"})
    page.evaluate("document.querySelector('#inside input').dispatchEvent(new Event('input', {bubbles: true}))")
    page.evaluate("document.querySelector('#passed').click()")
    context.close()
    assert record.controls == {*FIELDS, "pressed", "passed", "off", "tool"}
    assert record.worked == {"pressed", "filled", "picked", "ticked", "file", "tool", "point"}
