"""The verb `export` of the command line."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from surgery.cli.console import emit, prepare, run_job
from surgery.cli.options import JsonOption, ModelOptions, TrustOption
from surgery.common.files import check_writable, write_atomically
from surgery.common.jobs import Context
from surgery.errors import InputError
from surgery.recipe.recipe import Recipe

if TYPE_CHECKING:
    from surgery.shipping.record import ShipRecord


def export(
    source: Annotated[
        Path, typer.Argument(metavar="DIR", help="A checkpoint folder (or default); for mergekit a recipe file too.")
    ],
    out: Annotated[Path, typer.Option("--out", help="The file to write.")],
    format_name: Annotated[str, typer.Option("--format", help="gguf, mergekit or card.")] = "gguf",
    type_name: Annotated[str, typer.Option("--type", help="F32, F16, Q8_0, Q4_K_M ... for GGUF.")] = "F16",
    model: Annotated[
        str | None, typer.Option("--model", help="The source model, if not where the recipe says; not for GGUF.")
    ] = None,
    trust: TrustOption = False,
    as_json: JsonOption = False,
) -> None:
    """Write a checkpoint for other tools: a GGUF file for llama.cpp, or mergekit's YAML for whole blocks; or a card."""
    if format_name == "gguf":
        emit(_gguf(source, out, type_name), as_json)
    elif format_name == "mergekit":
        emit(_mergekit(source, out, model, trust), as_json)
    elif format_name == "card":
        emit(_card(source, out, model, trust), as_json)
    else:
        raise InputError(f"There is no export format {format_name!r}: choose gguf, mergekit or card.")


def _gguf(source: Path, out: Path, type_name: str) -> dict[str, Any]:
    check_writable(out)
    if source.is_file():
        raise InputError(f"{source.name} is a file and GGUF is made from a checkpoint folder: run `build` first.")
    from surgery.gguf.mixes import check_type
    from surgery.gguf.write import write_gguf
    from surgery.models import embedded
    from surgery.models.from_checkpoint import understood_files
    from surgery.models.loading import DEFAULT
    from surgery.workbench.workbench import Workbench

    check_type(type_name)

    def work(job: Context) -> Any:
        folder = embedded.directory(job.report) if str(source) == DEFAULT else source
        return write_gguf(understood_files(folder), out, type_name, job.report, job.stop)

    made = run_job(Workbench(), "Writing GGUF", work)
    return {
        "path": str(made.path),
        "bytes": made.bytes,
        "format": "gguf",
        "type": made.type_name,
        "architecture": made.architecture,
        "tensors": made.tensors,
        "parameters": made.parameters,
        "notes": list(made.notes),
    }


def _mergekit(source: Path, out: Path, model: str | None, trust: bool) -> dict[str, Any]:
    from surgery.checkpoints.mergekit import mergekit_yaml
    from surgery.checkpoints.save import RECIPE_FILE

    check_writable(out)
    recipe = Recipe.load(source / RECIPE_FILE if source.is_dir() else source)
    _, opened = prepare(ModelOptions.of(recipe, model, trust))
    write_atomically(out, mergekit_yaml(recipe, opened.architecture))
    return {"path": str(out), "bytes": out.stat().st_size, "format": "mergekit"}


def _card(source: Path, out: Path, model: str | None, trust: bool) -> dict[str, Any]:
    """Write the model card of a shipped folder again, or one of a checkpoint that `build` made."""
    from surgery.checkpoints.save import RECIPE_FILE
    from surgery.shipping.model_card import MODELFILE, model_card
    from surgery.shipping.record import RECORD, ShipRecord

    check_writable(out)
    recipe = Recipe.load(source / RECIPE_FILE)
    record = ShipRecord.load(source) if (source / RECORD).is_file() else _built_record(source, recipe, model, trust)
    write_atomically(out, model_card(record, recipe, (source / MODELFILE).is_file()))
    return {"path": str(out), "bytes": out.stat().st_size, "format": "card"}


def _built_record(folder: Path, recipe: Recipe, model: str | None, trust: bool) -> ShipRecord:
    """What is known of a built checkpoint: all but measurements."""
    from surgery.folders.files import CheckpointFiles
    from surgery.shipping.folder import record_of
    from surgery.shipping.record import Part

    files = CheckpointFiles(folder)
    _, opened = prepare(ModelOptions.of(recipe, model, trust))
    weights = tuple(sorted(path.name for path in folder.glob("*.safetensors")))
    part = Part(
        kind="checkpoint",
        files=weights,
        bytes=sum((folder / name).stat().st_size for name in weights),
        type=str(files.config.get("dtype", next(iter(opened.architecture.bytes_by_dtype)))),
        plain="auto_map" not in files.config,
        measured=None,
    )
    return record_of(opened, recipe, opened.resolve(recipe), [part])
