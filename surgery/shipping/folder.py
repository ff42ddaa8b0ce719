"""The files of a shipped folder: weights, recipe, card, record, sample, sums."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from threading import Event
from typing import Any

import torch

from surgery.checkpoints.save import RECIPE_FILE
from surgery.common.progress import Report, silent
from surgery.folders.end_tokens import end_tokens_of
from surgery.pruning.recipe_summary import recipe_words
from surgery.recipe.recipe import Recipe
from surgery.recipe.texts import shown_source
from surgery.shipping.checksums import write_sums
from surgery.shipping.llama_run import llama_run
from surgery.shipping.model_card import MODELFILE, model_card
from surgery.shipping.modelfile import modelfile
from surgery.shipping.origin import CARD, origin_of
from surgery.shipping.record import RECORD, Origin, Part, Protocol, Run, Sample, ShipRecord
from surgery.shipping.weights import Shipping, plain, write_weights
from surgery.structure.structure import Structure, dense
from surgery.workbench.open_model import OpenModel

NO_TEMPLATE = "The Modelfile has no TEMPLATE: the chat template is not ChatML, so Ollama completes plain text."


def write_folder(job: Shipping, made: Path, report: Report, stop: Event | None) -> tuple[ShipRecord, tuple[str, ...]]:
    """Every file of the folder, the sums last."""
    documented = job.recipe.model_copy(update={"results": _results(job)})
    parts = write_weights(job, documented, made, report, stop)
    record = _record(job, parts)
    if (file := record.part("gguf")) is not None:
        record = record.model_copy(update={"runs": {"llama.cpp": _run(job, file, made, stop)}})
    notes = tuple(note for part in parts for note in part.notes)
    Sample(
        ids=job.sample.ids,
        positions=job.positions,
        logits={form.kind: form.logits for form in job.forms},
        windows=job.windows.ids.to(torch.int32) if job.options.keep_windows else None,
    ).save(made)
    (made / RECIPE_FILE).write_text(documented.to_json(), "utf-8")
    (made / RECORD).write_text(record.to_json(), "utf-8")
    gguf = record.part("gguf")
    if gguf is not None:
        loaded: Any = job.model.loaded
        said, ends = loaded.model.generation_config, end_tokens_of(loaded.model, loaded.tokenizer)
        context = job.model.gguf_plan(job.forms[-1].structure).layout.context_length
        generation = {} if said is None else said.to_dict()
        text = modelfile(gguf.files[0], loaded.tokenizer, generation, ends, context, gguf.adapter)
        (made / MODELFILE).write_text(text.text, "utf-8")
        notes += () if text.chat else (NO_TEMPLATE,)
    (made / CARD).write_text(model_card(record, documented, gguf is not None), "utf-8")
    for path in made.rglob("*.safetensors"):  # safetensors lets nobody but the owner read them
        shutil.copymode(made / CARD, path)
    report(0.95, "Writing the sums")
    write_sums(made, stop)
    return record, notes


def _run(job: Shipping, part: Part, made: Path, stop: Event | None) -> Run:
    """The GGUF file in llama.cpp, see `llama_run`."""
    structure = job.forms[-1].structure
    return llama_run(structure, job.model.gguf_plan(structure), part, made, job.importance is not None, silent, stop)


def _results(job: Shipping) -> dict[str, Any]:
    """What the recipe says of itself from now on: of its last form, as a page shows it."""
    windows = job.windows
    return job.forms[-1].estimate.document() | {
        "text": shown_source(windows.source),
        "window": windows.length,
        "bos": "every window" if windows.bos else "none",
        "dtype": job.dtype,
    }


def _record(job: Shipping, parts: list[Part]) -> ShipRecord:
    windows, estimate = job.windows, job.forms[0].estimate
    protocol = Protocol(
        text=shown_source(windows.source),
        text_fingerprint=windows.text_fingerprint,
        windows_fingerprint=windows.fingerprint,
        window=windows.length,
        windows=windows.count,
        spread=windows.spread,
        bos=windows.bos,
        tokens=estimate.tokens,
        dtype=job.dtype,
        dense_nll=estimate.nll - estimate.difference,
        dense_perplexity=plain(estimate.dense_perplexity),
        kept=job.options.keep_windows,
    )
    return record_of(
        job.model, job.recipe, job.forms[0].structure, parts, protocol, job.sample.text_fingerprint, job.origin
    )


def record_of(
    model: OpenModel,
    recipe: Recipe,
    structure: Structure,
    parts: Sequence[Part],
    protocol: Protocol | None = None,
    sample_text: str = "",
    origin: Origin | None = None,
) -> ShipRecord:
    """What is known of some forms of a model; of its origin, what is to be had where none is given."""
    source = model.architecture
    return ShipRecord(
        recipe=recipe.key,
        words=recipe_words(recipe, structure, dense(source)),
        origin=origin or origin_of(model.loaded),
        parameters=structure.parameters,
        dense_parameters=source.parameters,
        blocks=len(structure.kept),
        dense_blocks=len(source.blocks),
        dense_bytes=sum(source.bytes_by_dtype.values()),
        protocol=protocol,
        sample_text=sample_text,
        parts=tuple(parts),
    )
