"""The verb `quantize` of the command line."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from surgery.cli.console import emit, prepare, run_job
from surgery.cli.options import JsonOption, ModelOptions, RevisionOption, SpreadOption, TextOptions, TrustOption
from surgery.common.files import check_writable, refuse_without_room
from surgery.common.jobs import Context
from surgery.common.progress import part_of
from surgery.errors import InputError
from surgery.formats.table import FORMATS
from surgery.recipe.base import TextReference
from surgery.recipe.storage import Quantize
from surgery.recipe.texts import TextChoice, text_reference

if TYPE_CHECKING:
    from surgery.gguf.write import Exported
    from surgery.workbench.open_model import OpenModel


def quantize(
    source: Annotated[str, typer.Argument(metavar="DIR", help="A checkpoint folder, or default.")],
    out: Annotated[Path, typer.Option("--out", help="The file (gguf) or folder to make.")],
    format_name: Annotated[str, typer.Option("--format", help="gguf, torchao or compressed-tensors.")] = "gguf",
    type_name: Annotated[
        str, typer.Option("--type", help="For gguf Q8_0, Q6_K, Q5_K_M, Q4_K_M, Q3_K_M, IQ4_XS ...; else int8, int4 ...")
    ] = "Q4_K_M",
    imatrix: Annotated[bool, typer.Option("--imatrix", help="Use an importance matrix, for gguf.")] = False,
    method: Annotated[
        str, typer.Option("--method", help="round_to_nearest or gptq, for compressed-tensors.")
    ] = "round_to_nearest",
    group_size: Annotated[
        int | None, typer.Option("--group-size", min=8, help="Weights of a row that share a scale; all if not given.")
    ] = None,
    asymmetric: Annotated[bool, typer.Option("--asymmetric", help="Store zero points too.")] = False,
    act_order: Annotated[bool, typer.Option("--act-order", help="GPTQ: the largest inputs first.")] = False,
    at_once: Annotated[
        bool, typer.Option("--at-once", help="GPTQ: all linears of a block on the unquantised ones.")
    ] = False,
    eora: Annotated[int | None, typer.Option("--eora", min=1, help="Rank of a low-rank repair beside it.")] = None,
    calibration: Annotated[
        str, typer.Option("--calibration", help="The text of importance matrix, GPTQ and repair.")
    ] = "embedded",
    calibration_window: Annotated[
        int | None, typer.Option("--calibration-window", min=2, help="Tokens in a window; 512 if absent.")
    ] = None,
    calibration_windows: Annotated[int, typer.Option("--calibration-windows", min=1, help="Windows of it.")] = 16,
    spread: SpreadOption = False,
    text: TextOptions = TextOptions(),
    revision: RevisionOption = None,
    trust: TrustOption = False,
    as_json: JsonOption = False,
) -> None:
    """Store a checkpoint's weights in fewer bits, and measure what that costs on a text."""
    if format_name not in FORMATS:
        raise InputError(f"There is no format {format_name!r}: choose {', '.join(FORMATS)}.")
    from surgery.cli.quantize_packed import PackedChoice, quantize_checkpoint
    from surgery.gguf.mixes import check_type
    from surgery.models.loading import DEFAULT

    one_file = FORMATS[format_name].one_file
    choice = PackedChoice(format_name, type_name, method, group_size, not asymmetric, act_order, not at_once, eora)
    if one_file:
        check_type(type_name)
        check_writable(out)
        if eora is not None:
            raise InputError("A repair beside a GGUF file is made by `ship`, from a recipe with an eora edit.")
        if source != DEFAULT and not Path(source).is_dir():
            raise InputError(f"{source[:200]!r} is not a checkpoint folder: run `build`, or download the model, first.")
    else:
        choice.check(out)
    bench, opened = prepare(ModelOptions(source, revision, trust))
    chosen = TextChoice(
        calibration, calibration_window or 512, calibration_windows, "calibration", None, spread, not calibration_window
    )
    measured = text.measured()
    if one_file:
        work = _Gguf(opened, _folder(source), out, type_name, chosen if imatrix else None, measured).run
    else:
        work = partial(quantize_checkpoint, opened, choice, chosen, measured, out)
    emit(run_job(bench, "Quantising", work), as_json)


def _folder(source: str) -> Path:
    """Where the checkpoint's files are."""
    from surgery.models import embedded
    from surgery.models.loading import DEFAULT

    return embedded.directory() if source == DEFAULT else Path(source)


@dataclass(frozen=True)
class _Gguf:
    """One quantisation to GGUF: measured as it will be stored, then written."""

    opened: OpenModel
    folder: Path
    out: Path
    type_name: str
    imatrix: TextChoice | None
    measured: TextChoice

    def run(self, job: Context) -> dict[str, Any]:
        reference = text_reference(self.opened.windows(self.imatrix)) if self.imatrix else None
        recipe = self.opened.recipe(Quantize(type=self.type_name, text=reference))
        structure = self.opened.resolve(recipe)
        texts = [self.imatrix] if self.imatrix else []
        predicted = self.opened.gguf_plan(structure).file_bytes(self.type_name, self.folder.name, reference is not None)
        refuse_without_room(self.out.parent, predicted, "Writing GGUF", 0)
        done = self.opened.complete(structure, texts, part_of(job.report, 0.0, 0.3), job.stop).structure
        windows = self.opened.windows(self.measured)
        job.report(0.3, "Measuring")
        estimate = self.opened.evaluator.measure(done, windows, job.stop)
        made = self._write(job, reference, texts)
        return {
            "path": str(made.path),
            "bytes": made.bytes,
            "predicted_bytes": predicted,
            "bits_per_weight": made.bits_per_weight,
            "perplexity": estimate.perplexity,
            "dense_perplexity": estimate.dense_perplexity,
            "format": "gguf",
            "type": made.type_name,
            "importance_matrix": reference.model_dump() if reference else None,
            "text": text_reference(windows).model_dump(),
            "notes": list(made.notes),
        }

    def _write(self, job: Context, reference: TextReference | None, texts: list[TextChoice]) -> Exported:
        from surgery.gguf.write import write_gguf
        from surgery.models.from_checkpoint import understood_files
        from surgery.quantization.gguf_codecs import importance_of

        importance = None
        if reference is not None:
            whole = self.opened.evaluator.dense
            importance = importance_of(whole, self.opened.moments(whole, reference, texts))
        report = part_of(job.report, 0.6, 1.0)
        files = understood_files(self.folder)
        return write_gguf(files, self.out, self.type_name, report, job.stop, importance, self.folder.name)
