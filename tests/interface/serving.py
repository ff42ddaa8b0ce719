"""The browser of the interface tests and benchmarks, and a page that is served by this very process."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from playwright.sync_api import sync_playwright

CHROMIUM = shutil.which("chromium") or "/usr/bin/chromium"
ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
FAST_CLEANUP = "GRADIO_IS_E2E_TEST"
"""With it, Gradio frees a closed tab after a second, not after an hour."""


@contextmanager
def chromium() -> Iterator[Any]:
    """A headless browser."""
    with sync_playwright() as started:
        opened = started.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        try:
            yield opened
        finally:
            opened.close()


@contextmanager
def served(sessions: Any) -> Iterator[str]:
    """The address of a page over these sessions, served by threads of this process."""
    os.environ |= {FAST_CLEANUP: "1", "GRADIO_ANALYTICS_ENABLED": "False"}
    from ui.page import build  # gradio reads the environment
    from ui.theme import launch_arguments

    page = build(sessions).queue(default_concurrency_limit=16)
    _, address, _ = page.launch(
        server_name="127.0.0.1", prevent_thread_lock=True, quiet=True, inbrowser=False, **launch_arguments()
    )
    try:
        yield address
    finally:
        page.close()
