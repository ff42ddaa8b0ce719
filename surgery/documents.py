"""The JSON documents of the command line's contract, made from results."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch

from analysis import registry
from analysis.statistics import Statistics
from analysis.text import Windows
from surgery.live import Estimate
from surgery.recipe import Recipe, write_atomically
from surgery.structure import Structure
from surgery.workbench import OpenModel


def plain(value: Any) -> Any:
    """JSON values: tensors become lists, non-finite numbers null (NaN) or "inf"."""
    if isinstance(value, torch.Tensor):
        return plain(value.tolist())
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None if math.isnan(value) else str(value)
    return value


def inspection(model: OpenModel) -> dict[str, Any]:
    """What `inspect` prints: lists have one entry a block."""
    source = model.architecture
    blocks = source.blocks
    return {
        "model": model.reference.model_dump(exclude_none=True),
        "note": model.loaded.note,
        "family": source.family,
        "blocks": len(blocks),
        "hidden_size": source.hidden_size,
        "vocabulary_size": source.vocabulary_size,
        "context_length": source.context_length,
        "parameters": source.parameters,
        "parameters_by_part": {
            "embeddings": source.embedding_parameters,
            "attention": sum(block.attention.parameters for block in blocks if block.attention),
            "mlp": sum(block.mlp.parameters for block in blocks if block.mlp),
            "block_norms": sum(norm.parameters for block in blocks for norm in block.norms),
            "final_norm": source.final_norm_parameters,
            "head": source.head_parameters,
        },
        "tied": source.tied,
        "intermediate_size": [block.mlp.width if block.mlp else 0 for block in blocks],
        "query_heads": [block.attention.query_heads if block.attention else 0 for block in blocks],
        "kv_heads": [block.attention.kv_heads if block.attention else 0 for block in blocks],
        "head_size": [block.attention.head_size if block.attention else 0 for block in blocks],
        "attention": [block.attention.kind if block.attention else None for block in blocks],
        "activation": [block.mlp.activation if block.mlp else None for block in blocks],
        "gated": [block.mlp.gated if block.mlp else None for block in blocks],
        "expansion_ratio": [block.mlp.expansion_ratio if block.mlp else 0.0 for block in blocks],
        "bytes": source.bytes_by_dtype,
        "editable": {
            "blocks": len(blocks),
            "attention": sum(block.attention is not None for block in blocks),
            "mlp": sum(block.mlp is not None for block in blocks),
            "query_heads_alone": any(b.attention is not None and b.attention.heads_per_group > 1 for b in blocks),
        },
    }


def text_document(windows: Windows) -> dict[str, Any]:
    """Where token windows come from, as recipes and results record it."""
    return {
        "source": windows.source,
        "fingerprint": windows.text_fingerprint,
        "window": windows.length,
        "windows": windows.count,
        "bos": "every window" if windows.bos else "none",
    }


def analysis(model: OpenModel, windows: Windows, statistics: Statistics, seconds: float) -> dict[str, Any]:
    """Every statistic and block score of one pass; neuron scores are added by `neuron_document`."""
    similarity: dict[str, Any] = {
        method.name: registry.score_blocks(method, statistics)
        for method in registry.METHODS
        if method.kind in ("blocks", "attention", "mlp")
    }
    from analysis.similarity import angular_triangle

    heads: dict[str, list[Any]] = {}
    for block in statistics.blocks:
        means = block.heads.means() if block.heads else {}
        for name in ("entropy", "distance", "first_token", "previous_token", "output_norm", "group_similarity"):
            heads.setdefault(name, []).append(means.get(name, torch.zeros(0)))
    for method in registry.METHODS:
        if method.kind == "heads":
            heads[method.name] = [
                registry.score_heads(method, statistics, index) if block.heads else torch.zeros(0)
                for index, block in enumerate(statistics.blocks)
            ]
    return {
        "model": model.reference.model_dump(exclude_none=True),
        "text": text_document(windows),
        "similarity": {
            "block_influence": plain(similarity["block_influence"]),
            "attention": plain(similarity["attention_influence"]),
            "mlp": plain(similarity["mlp_influence"]),
            "angular_distance": plain(angular_triangle(statistics.similarities)),
            "angular_distance_last_token": plain(angular_triangle(statistics.similarities, last_token=True)),
        },
        "heads": plain(heads),
        "tokens": statistics.tokens,
        "seconds": seconds,
    }


def neuron_document(model: OpenModel, windows: Windows, statistics: Statistics) -> dict[str, Any]:
    """Scores of every neuron by every method: lists of blocks x neurons, empty for a block without an MLP."""
    count = len(model.architecture.blocks)
    found: dict[str, Any] = {}
    for method in registry.METHODS:
        if method.kind == "neurons":
            scores = model.neuron_scores(method, statistics, windows.fingerprint)
            found[method.name] = [plain(scores[index]) if index in scores else [] for index in range(count)]
    return found


def evaluation(
    model: OpenModel, structure: Structure, windows: Windows, estimate: Estimate, recipe: Recipe | None
) -> dict[str, Any]:
    """What `evaluate` prints. Losses in nats per token; `standard_error` is the perplexity's."""
    from surgery.memory import TYPES, weights_by_class

    document = {
        **estimate.document(),
        "window": windows.length,
        "bos": "every window" if windows.bos else "none",
        "join": "two line feeds between rows",
        "text": text_document(windows),
        "dtype": next(iter(model.architecture.bytes_by_dtype)),
        "parameters": structure.parameters,
        "bytes": sum(weights_by_class(structure, TYPES["F32"]).values()),
        "model": model.reference.model_dump(exclude_none=True),
        "recipe": recipe.key if recipe else None,
    }
    document.pop("of_windows")
    return document


def write(path: Path, text: str) -> None:
    """Write a result file; never leaves a part of one."""
    write_atomically(path, text)
