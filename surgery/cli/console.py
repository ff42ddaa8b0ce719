"""What the verbs of the command line share: a model opened, jobs with progress, and output for people or as JSON."""

from __future__ import annotations

import contextlib
import io
import json
import logging
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from surgery.cli.options import ModelOptions, calibration_texts
from surgery.common.jobs import Context, Job
from surgery.errors import Failed, InputError, VerificationFailed

if TYPE_CHECKING:
    from surgery.compensation.compensator import Compensated
    from surgery.structure.structure import Structure
    from surgery.workbench.open_model import OpenModel
    from surgery.workbench.workbench import Workbench


class Unheard(io.TextIOBase):
    """Takes the place of standard error: what libraries write goes nowhere, and `said` is where this program writes."""

    def __init__(self, said: TextIO) -> None:
        self.said = said

    def write(self, text: str) -> int:
        """Take a library's words."""
        return len(text)


class Notes(logging.Handler):
    """Keeps what the project's own loggers say, each sentence once."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.sentences: dict[str, None] = {}

    def emit(self, record: logging.LogRecord) -> None:
        """Keep a record's sentence."""
        self.sentences[record.getMessage()] = None


@contextlib.contextmanager
def libraries_unheard() -> Iterator[None]:
    """Keep warnings, progress bars and logs of libraries off standard error while a verb runs.

    Notes of our own follow when it has ended; beside a refusal, which is one sentence, they are left out.
    """
    notes, own = Notes(), [logging.getLogger(name) for name in ("analysis", "surgery")]
    for logger in own:
        logger.addHandler(notes)
    try:
        with contextlib.redirect_stderr(Unheard(sys.stderr)):
            yield
    except InputError:
        notes.sentences.clear()
        raise
    finally:
        for logger in own:
            logger.removeHandler(notes)
        for sentence in notes.sentences:
            print(sentence, file=sys.stderr)


def standard_error() -> TextIO:
    """Where this program's own words go."""
    return sys.stderr.said if isinstance(sys.stderr, Unheard) else sys.stderr


def prepare(source: ModelOptions) -> tuple[Workbench, OpenModel]:
    """A workbench with the model open, loaded as a job. Raises InputError: the model cannot be opened."""
    from surgery.workbench.workbench import Workbench

    bench = Workbench()
    return bench, run_job(
        bench, "Loading", lambda job: bench.open(source.model, source.revision, job.report, source.trust)
    )


def complete(
    bench: Workbench, model: OpenModel, structure: Structure, calibration: str | None, recipe: Path | None = None
) -> Compensated:
    """Compute a structure's compensations as a job; a healing's result may lie beside the recipe's file."""
    texts = calibration_texts(calibration)
    results = [recipe.parent] if recipe is not None else []
    return run_job(bench, "Completing", lambda job: model.complete(structure, texts, job.report, job.stop, results))


def run_job(bench: Workbench, title: str, work: Callable[[Context], Any], visible: bool = True) -> Any:
    """Run work as a job, with its progress on standard error.

    Raises:
        InputError: the job's own, when it is one that the person can put right.
        Failed: the job failed otherwise.
    """
    job = bench.jobs.submit(title, work)
    _follow(job, visible)
    if job.state == "done":
        return job.result
    raise (InputError if job.bad_input else Failed)(job.error)


def _follow(job: Job, visible: bool) -> None:
    columns = (TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn())
    console = Console(file=standard_error())
    with Progress(*columns, console=console, transient=True, disable=not (visible and console.is_terminal)) as bar:
        task = bar.add_task(job.title, total=1.0)
        while not job.over:
            job.wait(0.1)
            bar.update(task, completed=job.progress, description=job.message or job.title)


def emit(document: Any, as_json: bool, rows: dict[str, Any] | None = None) -> None:
    """Print a document as JSON, or as a small table for people."""
    if as_json:
        from surgery.workbench import documents

        print(json.dumps(documents.plain(document), ensure_ascii=False, allow_nan=False))
        return
    table = Table(show_header=False, box=None)
    for name, value in (rows if rows is not None else document).items():
        table.add_row(name.replace("_", " "), shown(value))
    Console().print(table)


def shown(value: Any) -> str:
    """A value as people read it."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:,.4f}"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, list) and len(value) > 1 and len({str(item) for item in value}) == 1:
        return f"{shown(value[0])} in each of {len(value)} blocks"
    return str(value)


def unless_failed(found: Any, as_json: bool) -> Any:
    """The result; a failed verification is printed, said in one sentence, and ends the program with 1."""
    if isinstance(found, VerificationFailed):
        if as_json and found.verification is not None:
            emit(found.verification.document(), True)
        print(" ".join(str(found).split()), file=standard_error())
        raise typer.Exit(1)
    return found


def show_verified(document: dict[str, Any], as_json: bool) -> None:
    """Print a shipped or verified folder as JSON, or for people: a table, then what is too wide for one."""
    rows = {key: value for key, value in document.items() if not isinstance(value, (dict, list))}
    emit(document, as_json, rows)
    if as_json:
        return
    for kind, found in document["differences"].items():
        print(
            f"{kind}: perplexity {found['perplexity']:.4f} read back, {found['perplexity_recorded']:.4f} recorded; "
            f"logits differ by at most {found['logits_max_absolute']:.3g}, {found['logits_max_relative']:.3g} of the "
            f"largest (tolerance {found['logits_tolerance']:g})"
        )
    for name, digest in document["sha256"].items():
        print(f"{digest}  {name}")
    for name in document.get("unlisted", []):
        print(f"{name} does not belong to what was shipped")
    for note in document.get("notes", []):
        print(note)
