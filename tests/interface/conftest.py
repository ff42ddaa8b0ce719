"""A server that runs the real page on the embedded model, and a browser; every test has a profile of its own."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from surgery.models import embedded
from tests.interface.driving import ROOT, opened
from tests.interface.serving import CHROMIUM, FAST_CLEANUP, chromium
from tests.interface.worked import RECORD

PATIENCE = 120_000
"""Milliseconds that a wait may take: other processes may be using the cores."""
CONTEXTS = pytest.StashKey[list[Any]]()
HARMLESS = re.compile(r"AbortError|Connection errored out|ERR_ABORTED|net::ERR_")
"""What the browser's console says of streams that a reload cuts."""


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a running page. A session that is closed is freed after a second, not after an hour.

    It measures on one window, so that a number takes a quarter of the usual time.
    """
    embedded.directory()  # the first start of all downloads and converts, which is not what is tested here
    with running(ROOT / "app.py", tmp_path_factory.mktemp("server"), {"MODEL_SURGERY_WINDOWS": "1"}) as (address, _):
        yield address


@contextmanager
def running(
    script: Path, folder: Path, settings: Mapping[str, str] | None = None
) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    """A script that serves the page in a process of its own: its address, and the process."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    address = f"http://127.0.0.1:{port}/"
    log, temporary = folder / "log.txt", folder / "gradio"
    environment = {
        **os.environ,
        "GRADIO_SERVER_PORT": str(port),
        "GRADIO_SERVER_NAME": "127.0.0.1",
        "GRADIO_ANALYTICS_ENABLED": "False",
        FAST_CLEANUP: "1",
        "GRADIO_TEMP_DIR": str(temporary),
        "HF_HUB_OFFLINE": "1",
        "PYTHONUNBUFFERED": "1",
        **(settings or {}),
    }
    with log.open("w") as output:
        process = subprocess.Popen(
            [sys.executable, str(script)], cwd=ROOT, env=environment, stdout=output, stderr=subprocess.STDOUT,
            start_new_session=True,
        )  # fmt: skip
    try:
        end = time.monotonic() + PATIENCE / 1000
        while True:
            try:
                urllib.request.urlopen(address, timeout=5).close()
                break
            except OSError:
                if process.poll() is not None or time.monotonic() > end:
                    raise RuntimeError(f"The page did not start:\n{log.read_text()}") from None
                time.sleep(0.1)
        yield address, process
    finally:
        process.terminate()
        process.wait(20)
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # processes that it had forked, as a ZeroGPU Space does
        shutil.rmtree(temporary, ignore_errors=True)  # built models
    assert "Traceback" not in log.read_text(), log.read_text()[-4000:]


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    assert Path(CHROMIUM).exists(), "chromium is missing: `make chromium` installs it"
    with chromium() as opened:
        yield opened


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Where a test failed, say what its pages showed: the failure alone often is only a wait that was in vain."""
    report = yield
    if report.when == "call" and report.failed:
        for number, context in enumerate(item.stash.get(CONTEXTS, [])):
            for page in context.pages:
                report.sections.append((f"Page of profile {number}, {page.url}", _shown(page)))
    return report


def _shown(page: Any) -> str:
    """A page's words, or why there are none."""
    try:
        return page.locator("body").inner_text(timeout=5000)
    except Exception as error:
        return f"It does not answer: {error}"


@pytest.fixture(scope="session")
def page_config(server: str) -> dict[str, Any]:
    """Gradio's configuration of the served page: its components and their events."""
    with urllib.request.urlopen(f"{server}config") as answer:
        return json.load(answer)


@pytest.fixture
def profile(
    request: pytest.FixtureRequest, browser: Any, server: str, page_config: dict[str, Any]
) -> Iterator[Callable[..., Any]]:
    """Makes browser profiles (users). In the end nobody may have seen an error or asked any other computer."""
    wrong: list[str] = []
    contexts = request.node.stash[CONTEXTS] = []

    def watch(page: Any) -> None:
        page.on("pageerror", lambda error: wrong.append(f"page error: {error}"))
        page.on(
            "console",
            lambda message: (
                wrong.append(f"console: {message.text}")
                if message.type == "error" and not HARMLESS.search(message.text)
                else None
            ),
        )
        page.on(
            "request",
            lambda request: (
                None
                if request.url.startswith((server, "data:", "blob:"))
                else wrong.append(f"outside request: {request.url}")
            ),
        )

    def make(**options: Any) -> Any:
        context = browser.new_context(**{"viewport": {"width": 1280, "height": 900}, "base_url": server, **options})
        context.set_default_timeout(PATIENCE)
        context.on("page", watch)
        request.config.stash[RECORD].watch(context, page_config)
        contexts.append(context)
        return context

    yield make
    for context in contexts:
        context.close()
    assert not wrong, "\n".join(wrong)


@pytest.fixture
def page(profile: Callable[..., Any]) -> Any:
    """The page, opened by a new user, with the dense model measured."""
    return opened(profile())
