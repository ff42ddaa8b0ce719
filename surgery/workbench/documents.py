"""The JSON documents of the command line's contract, made from results."""

from __future__ import annotations

import math
from typing import Any

import torch

from analysis.importance import registry, similarity
from analysis.importance.predictions import predicted_changes, rank_correlation
from analysis.importance.registry import Evidence, Kind, Method
from analysis.text import Windows
from surgery.evaluation.estimate import Estimate
from surgery.evaluation.scan import Scan
from surgery.recipe.recipe import Recipe
from surgery.structure.structure import Structure
from surgery.workbench.open_model import OpenModel


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
    source, dtype = model.architecture, model.loaded.dtype
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
        "bytes": {str(dtype).removeprefix("torch."): source.parameters * dtype.itemsize},
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
        **({"skipped_rows": windows.skipped} if windows.skipped else {}),
        "spread": windows.spread,
        "bos": "every window" if windows.bos else "none",
    }


def analysis(model: OpenModel, windows: Windows, evidence: Evidence, seconds: float) -> dict[str, Any]:
    """What one pass over a text shows of blocks and heads; `score_document` has the rest.

    `predicted` is null without gradients; NaN (a statistic that a model does not have) is null too.

    Args:
        evidence: its statistics, and gradients where they were gathered.
    """
    statistics = evidence.statistics
    assert statistics is not None
    heads: dict[str, list[Any]] = {}
    for block in statistics.blocks:
        means = block.heads.means() if block.heads else {}
        for name in ("entropy", "distance", "first_token", "previous_token", "output_norm", "group_similarity"):
            heads.setdefault(name, []).append(means.get(name, torch.zeros(0)))
    heads |= {method.name: _head_scores(method, evidence) for method in _usable("heads", evidence)}
    similarities = statistics.similarities
    return {
        "model": model.reference.model_dump(exclude_none=True),
        "text": text_document(windows),
        "similarity": {
            "block_influence": plain(similarity.block_influence(similarities)),
            "attention": plain(similarity.attention_influence(similarities)),
            "mlp": plain(similarity.mlp_influence(similarities)),
            "angular_distance": plain(similarity.angular_triangle(similarities)),
            "angular_distance_last_token": plain(similarity.angular_triangle(similarities, last_token=True)),
        },
        "heads": plain(heads),
        "predicted": _prediction_document(evidence),
        "tokens": statistics.tokens,
        "seconds": seconds,
    }


def _prediction_document(evidence: Evidence) -> dict[str, Any] | None:
    """Predicted changes of the mean loss in nats, by order; neurons are in `score_document`."""
    if evidence.gradients is None:
        return None
    found = predicted_changes(evidence.gradients)
    return {
        order: {part: plain(getattr(changes, part)) for part in ("blocks", "attention", "mlp", "kv_groups")}
        for order, changes in (("first", found.first), ("second", found.second))
    }


def measured_document(found: Scan, evidence: Evidence) -> dict[str, Any]:
    """What removing each part costs, in nats, beside what was predicted, with the rank correlation of the two.

    `rank_correlation.<order>.<part>` is Spearman's; empty without gradients.
    """
    measured = {part: [row and row.difference for row in rows] for part, rows in found.removals.items()}
    correlations: dict[str, dict[str, float]] = {}
    if evidence.gradients is not None:
        predictions = predicted_changes(evidence.gradients)
        for order, changes in (("first", predictions.first), ("second", predictions.second)):
            correlations[order] = {}
            for part, rows in measured.items():
                there = [index for index, value in enumerate(rows) if value is not None]
                values = torch.tensor([rows[index] for index in there], dtype=torch.float64)
                correlations[order][part] = rank_correlation(getattr(changes, part)[there], values)
    return {"measured": plain(measured), "rank_correlation": plain(correlations)}


def score_document(model: OpenModel, windows: Windows, evidence: Evidence) -> dict[str, Any]:
    """What the file of `analyze` adds: scores of every method that the evidence allows.

    `neurons.<method>` is blocks x neurons, empty for a block without an MLP; `scores.<kind>.<method>` has the blocks,
    attentions, MLPs and hidden channels; `predicted_neurons.<order>` is blocks x neurons.
    """
    count = len(model.architecture.blocks)
    neurons: dict[str, Any] = {}
    for method in _usable("neurons", evidence):
        scores = model.neuron_scores(method, windows, evidence.seed)
        neurons[method.name] = [plain(scores[index]) if index in scores else [] for index in range(count)]
    kinds: tuple[Kind, ...] = ("blocks", "attention", "mlp")
    found: dict[str, Any] = {
        kind: {method.name: plain(registry.score_blocks(method, evidence)) for method in _usable(kind, evidence)}
        for kind in kinds
    }
    found["hidden"] = {
        method.name: plain(registry.score_hidden(method, evidence)) for method in _usable("hidden", evidence)
    }
    document: dict[str, Any] = {"neurons": neurons, "scores": found}
    if evidence.gradients is not None:
        changes = predicted_changes(evidence.gradients)
        document["predicted_neurons"] = {"first": plain(changes.first.neurons), "second": plain(changes.second.neurons)}
    return document


def _usable(kind: Kind, evidence: Evidence) -> list[Method]:
    """The methods of a kind that need nothing more than there is."""
    return [
        method
        for method in registry.METHODS
        if method.kind == kind and (evidence.gradients is not None or not method.needs_gradients)
    ]


def _head_scores(method: Method, evidence: Evidence) -> list[torch.Tensor]:
    """Scores by block, empty for a block without attention."""
    return [
        registry.score_units(method, evidence, block.index) if block.attention else torch.zeros(0)
        for block in evidence.runner.architecture.blocks
    ]


def evaluation(
    model: OpenModel, structure: Structure, windows: Windows, estimate: Estimate, recipe: Recipe | None
) -> dict[str, Any]:
    """What `evaluate` prints. Losses in nats per token; `standard_error` is the perplexity's."""
    from surgery.fit.weight_types import TYPES, weights_by_class

    document = {
        **estimate.document(),
        "window": windows.length,
        "bos": "every window" if windows.bos else "none",
        "join": "two line feeds between rows",
        "text": text_document(windows),
        "dtype": next(iter(model.architecture.bytes_by_dtype)),
        "parameters": structure.parameters,
        "bytes": sum(weights_by_class(structure, TYPES["safetensors-F32"]).values()),
        "model": model.reference.model_dump(exclude_none=True),
        "recipe": recipe.key if recipe else None,
    }
    document.pop("of_windows")
    return document
