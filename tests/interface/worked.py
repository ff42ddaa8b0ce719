"""A pytest plugin that records which controls of the page the browser tests work, over all processes of a run.

Every profile of a test reports the events that reach the page. With `--every-control` the run fails where a control
that a tab was offered got no event in any test.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest

FIELDS = {"textbox", "number", "slider", "dropdown", "checkbox", "checkboxgroup", "radio", "file"}
PRESSED = {"button", "uploadbutton", "downloadbutton", "accordion", "tabitem"}
BY_HAND = {"input", "click", "select", "submit", "change"}
"""Events by which any other component shows that people work it."""

SCRIPT = """(() => {
  const told = new Set();
  const pressed = {
    click: "button, a, summary, [role=button]", keydown: "[role=button]:not(button)", pointerdown: "[role=option]",
  };
  const name = node => node.id.replace(/-button$/, "");
  const tell = event => {
    const node = event.composedPath()[0];
    if (!(node instanceof Element)) return;
    const field = node.matches("input, textarea");
    if (field !== (event.type === "input" || event.type === "change")) return;
    if (!event.isTrusted && node.type !== "file") return;
    if (event.type === "keydown" && event.key !== "Enter" && event.key !== " ") return;
    if (!field && !node.closest(pressed[event.type])) return;
    const path = [];
    for (let one = node; one; one = one.parentElement) if (one.id) path.push(name(one));
    if (!path.length || told.has(path[0])) return;
    told.add(path[0]);
    window.controlWorked(path, [...document.querySelectorAll("main button[id]")].map(name));
  };
  for (const kind of ["input", "change", ...Object.keys(pressed)]) addEventListener(kind, tell, true);
})();"""


@dataclass
class Record:
    """What the pages offered, and what of it was worked; components by their element ids."""

    controls: set[str] = field(default_factory=set)
    worked: set[str] = field(default_factory=set)

    def watch(self, context: Any, config: dict[str, Any]) -> None:
        """Record what happens in a browser context whose pages have this configuration."""
        self.controls |= controls(config)

        def event(_: Any, path: list[str], buttons: list[str]) -> None:
            self.controls.update(name for name in buttons if not name.startswith("component-"))
            self.worked.update([name for name in path if name in self.controls][:1])

        context.expose_binding("controlWorked", event)
        context.add_init_script(SCRIPT)

    def add(self, controls: list[str], worked: list[str]) -> None:
        """Add the record of another process."""
        self.controls.update(controls)
        self.worked.update(worked)

    def complaint(self) -> str:
        """What is wrong with the record, or nothing."""
        if not self.controls:
            return "No browser test opened the page."
        missing = ", ".join(sorted(self.controls - self.worked))
        return f"No browser test has worked these controls: {missing}." if missing else ""


def controls(config: dict[str, Any]) -> set[str]:
    """Element ids of the components that people can work, from a page's Gradio configuration."""
    events: dict[int, set[str]] = {}
    for dependency in config["dependencies"]:
        for target, event in dependency["targets"]:
            events.setdefault(target, set()).add(event)
    found = set()
    for component in config["components"]:
        kind, settings = component["type"], component["props"]
        read_only = kind == "textbox" and settings.get("interactive") is False
        carrier = settings.get("visible") == "hidden"
        by_hand = kind in FIELDS | PRESSED or events.get(component["id"], set()) & BY_HAND
        if settings.get("elem_id") and by_hand and not read_only and not carrier:
            found.add(settings["elem_id"])
    return found


RECORD = pytest.StashKey[Record]()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--every-control", action="store_true", help="fail where no browser test has worked a control")


def pytest_configure(config: pytest.Config) -> None:
    config.stash[RECORD] = Record()


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """Take over what another process of the run has recorded."""
    node.config.stash[RECORD].add(**getattr(node, "workeroutput", {}).get("controls", {"controls": [], "worked": []}))


@pytest.hookimpl(tryfirst=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    """Hand the record over, or check it: the check counts as one more test."""
    record = session.config.stash[RECORD]
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput["controls"] = {
            "controls": sorted(record.controls), "worked": sorted(record.worked),
        }  # fmt: skip
    elif session.config.getoption("every_control"):
        complaint = record.complaint()
        place = ("tests/interface/worked.py", None, "every control is worked")
        report = pytest.TestReport(
            nodeid="::".join((place[0], "every_control_is_worked")), location=place, keywords={},
            outcome="failed" if complaint else "passed", longrepr=complaint or None, when="call",
        )  # fmt: skip
        session.config.hook.pytest_runtest_logreport(report=report)
        if complaint:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED
