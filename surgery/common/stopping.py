"""Signals: SIGINT and SIGTERM end a program at once, with the exit code of the contract and nothing half-written."""

from __future__ import annotations

import atexit
import os
import signal
import sys
import threading
from contextlib import suppress
from types import FrameType

import psutil

LONGEST = 1.0
"""Seconds that tidying up may take."""


def end_on_signals() -> None:
    """Let SIGINT end this process with the exit code 130 and SIGTERM with 143, whatever its threads are doing.

    Results are renamed into place when they are complete, so there is nothing to wait for: only temporary folders are
    deleted, and child processes ended. Called by programs, never by the library.
    """
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _end)


def _end(number: int, _: FrameType | None) -> None:
    for one in (signal.SIGINT, signal.SIGTERM):
        signal.signal(one, signal.SIG_IGN)
    guard = threading.Timer(LONGEST, os._exit, (128 + number,))
    guard.daemon = True
    guard.start()
    shows_cursor = "\x1b[?25h" if sys.__stderr__ is not None and sys.__stderr__.isatty() else ""
    with suppress(OSError):
        os.write(2, f"{shows_cursor}Cancelled.\n".encode())
    with suppress(psutil.Error):
        for child in psutil.Process().children(recursive=True):
            child.kill()
    atexit._run_exitfuncs()  # temporary folders are among them; `sys.exit` would first wait for every thread
    os._exit(128 + number)
