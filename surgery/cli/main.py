"""The command line: `python -m surgery VERB ...`. Thin: every verb calls the same functions as the page."""

from __future__ import annotations

import os
import sys
from typing import Any, NoReturn

import typer
from typer.exceptions import TyperException

from surgery.cli.analyze import analyze
from surgery.cli.build import build
from surgery.cli.console import libraries_unheard
from surgery.cli.evaluate import evaluate
from surgery.cli.export import export
from surgery.cli.fit import fit
from surgery.cli.heal import heal
from surgery.cli.inspect import inspect
from surgery.cli.iterate import iterate
from surgery.cli.methods import methods
from surgery.cli.options import flat
from surgery.cli.quantize import quantize
from surgery.cli.read import read
from surgery.cli.scan import scan
from surgery.cli.ship import ship
from surgery.cli.suggest import suggest
from surgery.cli.verify import verify
from surgery.common.failure import sentence_of
from surgery.errors import InputError

VERBS = (
    suggest, scan, build, heal, iterate, export, fit, quantize, read, ship, verify, inspect, analyze, methods, evaluate
)  # fmt: skip
"""The verbs, in the order in which `--help` lists them."""

application = typer.Typer(
    name="surgery", no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None
)
for _verb in VERBS:
    application.command()(flat(_verb))


def main() -> None:
    """Run the command line and exit: 0 done, 2 bad input (one sentence), 130 interrupted, 1 anything else."""
    try:
        with libraries_unheard():
            code = application(standalone_mode=False)
        sys.stdout.flush()  # here an error of the disk can still be told
    except typer.Exit as exit_request:
        code = exit_request.exit_code
    except TyperException as error:
        _fail(_usage(error), 2)
    except (typer.Abort, KeyboardInterrupt):
        _fail("Cancelled.", 130)
    except BrokenPipeError:  # whoever read standard output has seen enough
        _leave(1)
    except Exception as error:
        _fail(sentence_of(error), 2 if isinstance(error, InputError) else 1)
    _leave(code or 0)


def _usage(error: Any) -> str:
    """The sentence of a usage error such as an unknown option."""
    return error.format_message() if hasattr(error, "format_message") else str(error)


def _fail(message: str, code: int) -> NoReturn:
    print(" ".join(message.split()), file=sys.stderr)
    _leave(code)


def _leave(code: int) -> NoReturn:
    try:
        sys.stdout.flush()
    except OSError:  # Python would try again at its end, and say so in its own words
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115  # open until the end
    sys.exit(code)
