"""Memory of many sessions on one server: ten may take at most 1.25 times the memory of one.

    python -m benchmarks.sessions [--sessions 10] [--browser | --narrowed] [--out F]

Each session opens the embedded model, analyses it, is cut differently from all others and is measured. Memory is the
resident one of this process, which is the server, and its proportional share (PSS); the browser runs in processes of
its own. With `--browser` the sessions are tabs of as many Chromium profiles; without, the same sessions are worked
headless. At the end all tabs are closed, and what is left is measured.
"""

from __future__ import annotations

import argparse
import gc
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import psutil

from benchmarks import measuring
from surgery.session.session import Session
from surgery.session.view import View
from surgery.workbench.workbench import Workbench
from ui.tabs import Sessions

GOAL = 1.25
LONG = 300.0
"""Seconds that a step may take."""
Close = Callable[[], None]
Work = Callable[[int], Close]
"""Opens, analyses, cuts and measures session number n, and returns what closes it."""


def cut(number: int) -> list[int]:
    """The blocks that a session removes: no two sessions the same."""
    return [2 + 2 * number, 3 + 2 * number]


def memory() -> dict[str, int]:
    """Bytes of this process: resident, and its proportional share where the system tells it."""
    gc.collect()
    found = psutil.Process().memory_full_info()
    return {"rss": found.rss, "pss": getattr(found, "pss", found.rss)}


def wait_until(reached: Callable[[], bool]) -> None:
    """Until something is so.

    Raises:
        TimeoutError: it is not within `LONG` seconds.
    """
    end = time.monotonic() + LONG
    while not reached():
        if time.monotonic() > end:
            raise TimeoutError("A session did not get there.")
        time.sleep(0.02)


@contextmanager
def headless(sessions: Sessions, narrowed: bool = False) -> Iterator[Work]:
    """Sessions that are worked by their methods; with `narrowed` each has MLPs of a width of its own as well."""

    def measured(view: View) -> bool:
        found = view.measure
        return found.measured and not found.measuring and found.estimate is not None and found.estimate.complete

    def work(number: int) -> Close:
        identity = sessions.new()
        tab = sessions.get(identity)
        assert tab is not None
        session: Session = tab.session
        session.edit.open("default")
        wait_until(lambda: measured(session.view()))
        session.analyse.start().wait(LONG)
        session.edit.switch(cut(number), [], [])
        wait_until(lambda: measured(session.view()))
        if narrowed:
            session.analyse.narrow("maw", 2.5 - 0.1 * number, 32)
            wait_until(lambda: measured(session.view()))
        return lambda: sessions.free(identity)

    yield work


@contextmanager
def in_browser(sessions: Sessions) -> Iterator[Work]:
    """Sessions that are tabs of browser profiles, on the page served by this process."""
    from tests.interface.driving import analyse, opened, part, wait_measured
    from tests.interface.serving import chromium, served

    with served(sessions) as address, chromium() as browser:

        def work(number: int) -> Close:
            context = browser.new_context(viewport={"width": 1280, "height": 900})
            context.set_default_timeout(LONG * 1000)
            page = opened(context, address)
            analyse(page)
            for count, block in enumerate(cut(number), 1):
                part(page, block).click()
                wait_measured(page, f"{30 - count} blocks kept")
            return context.close

        yield work


def benchmark(options: argparse.Namespace) -> dict[str, Any]:
    """All measurements, as JSON values."""
    bench = Workbench()
    sessions = Sessions(bench, grace=0.5)
    steps: list[dict[str, Any]] = []

    def note(what: str) -> None:
        steps.append({"after": what, "sessions": len(sessions), **memory()})

    note("start")
    with ExitStack() as stack:
        kept = in_browser(sessions) if options.browser else headless(sessions, options.narrowed)
        work = stack.enter_context(kept)
        closers = []
        for number in range(options.sessions):
            closers.append(work(number))
            note(f"session {number + 1}")
        for close in closers:
            close()
        wait_until(lambda: len(sessions) == 0)
        note("all closed")
    bench.jobs.close()
    by_name = {step["after"]: step for step in steps}
    one, many = by_name["session 1"], by_name[f"session {options.sessions}"]
    return {
        "machine": measuring.machine(),
        "options": {"sessions": options.sessions, "browser": options.browser, "narrowed": options.narrowed},
        "ratio": {kind: many[kind] / one[kind] for kind in ("rss", "pss")},
        "goal": GOAL,
        "left_over_one": {kind: by_name["all closed"][kind] / one[kind] for kind in ("rss", "pss")},
        "steps": steps,
    }


def show(result: dict[str, Any]) -> None:
    """Print the table."""
    one = next(step for step in result["steps"] if step["after"] == "session 1")
    measuring.table(
        [
            {
                "after": step["after"],
                "open sessions": step["sessions"],
                "RSS (MiB)": round(step["rss"] / measuring.MEGABYTE),
                "PSS (MiB)": round(step["pss"] / measuring.MEGABYTE),
                "of one session": step["rss"] / one["rss"],
            }
            for step in result["steps"]
        ],
        "Memory of the server's process",
    )
    ratio = max(result["ratio"].values())
    print(f"{result['options']['sessions']} sessions take {ratio:.3f} times the memory of one (goal: {GOAL}).")


def main() -> int:
    """Run the command; 1 when the goal is missed."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.sessions", description=__doc__.split("\n")[0])
    parser.add_argument("--sessions", type=int, default=10, choices=range(2, 14), metavar="2..13")
    parser.add_argument("--browser", action="store_true", help="a real server and as many browser profiles")
    parser.add_argument("--narrowed", action="store_true", help="narrow every session's MLPs as well (headless)")
    parser.add_argument("--out", type=Path, default=None, help="JSON; benchmarks/results/sessions.json if absent")
    options = parser.parse_args()
    result = benchmark(options)
    show(result)
    measuring.write("sessions", result, options.out)
    return 0 if max(result["ratio"].values()) <= GOAL else 1


if __name__ == "__main__":
    sys.exit(main())
