"""The registry of importance methods: the page, the command line and the benchmarks list it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn

from analysis.errors import InputError
from analysis.gradients.collect import Gradients
from analysis.importance import blocks as depth
from analysis.importance import channels as hidden
from analysis.importance import heads, neurons, similarity
from analysis.importance.predictions import (
    predicted_attention,
    predicted_blocks,
    predicted_heads,
    predicted_mlp,
    predicted_neurons,
)
from analysis.importance.random import random_scores
from analysis.model.modules import shallow_copy
from analysis.model.runner import Runner
from analysis.seeds import generator_for
from analysis.statistics.collect import Statistics

Kind = Literal["blocks", "attention", "mlp", "heads", "neurons", "hidden"]
Input = Literal["weights", "statistics", "gradients", "random"]


@dataclass(frozen=True)
class Method:
    """One importance method.

    `function` takes what `takes` names, in that order, as its kind provides it:

    - `weights`: the block's `MlpWeights` (neurons) or `AttentionWeights` (heads); the runner (blocks);
    - `statistics`: the block's `NeuronMoments` (neurons) or `HeadMoments` (heads); `Similarities` (blocks, attention,
      mlp); the whole `Statistics` (hidden);
    - `gradients`: the block's `BlockGradients` (neurons, heads); the whole `Gradients` (blocks, attention, mlp);
    - `random`: the number of scores and a generator.
    """

    name: str
    kind: Kind
    title: str
    source: str
    function: Callable[..., torch.Tensor]
    takes: tuple[Input, ...]

    @property
    def needs_statistics(self) -> bool:
        """Whether it needs the analysis of a text."""
        return "statistics" in self.takes

    @property
    def needs_gradients(self) -> bool:
        """Whether it needs the gradients on a text."""
        return "gradients" in self.takes

    @property
    def needs_text(self) -> bool:
        """Whether it needs a text, for either."""
        return self.needs_statistics or self.needs_gradients

    @property
    def needs_seed(self) -> bool:
        """Whether its scores depend on the seed."""
        return "random" in self.takes


WEIGHTS: tuple[Input, ...] = ("weights",)
STATISTICS: tuple[Input, ...] = ("statistics",)
BOTH: tuple[Input, ...] = ("weights", "statistics")
GRADIENTS: tuple[Input, ...] = ("gradients",)
RANDOM: tuple[Input, ...] = ("random",)

SHORTENED = "Shortened LLaMA, arXiv 2402.02834"
SUBLAYERS = "arXiv 2407.15516"
PRUNER = "LLM-Pruner, arXiv 2305.11627"
MINITRON = "Minitron, arXiv 2407.14679"
LI = "Li et al. 2017, arXiv 1608.08710"
EXPANSION = "Taylor expansion with the empirical Fisher"
CONTROL = "control"

Row = tuple[str, str, str, Callable[..., torch.Tensor], tuple[Input, ...]]


def _of(kind: Kind, *rows: Row) -> tuple[Method, ...]:
    """The methods of a kind: name, title, source, function and what it takes, one a row."""
    return tuple(Method(name, kind, title, source, call, takes) for name, title, source, call, takes in rows)


METHODS: tuple[Method, ...] = (
    *_of(
        "blocks",
        ("block_influence", "Block influence", "ShortGPT, arXiv 2403.03853", similarity.block_influence, STATISTICS),
        ("angular_distance", "Angular distance of a run", "arXiv 2403.17887", similarity.angular_distance, STATISTICS),
        ("taylor_blocks", "Taylor", SHORTENED, depth.taylor_blocks, GRADIENTS),
        ("predicted_blocks", "Predicted loss (second order)", EXPANSION, predicted_blocks, GRADIENTS),
        ("magnitude_blocks", "Magnitude", SHORTENED, depth.magnitude_blocks, WEIGHTS),
        ("random_blocks", "Random (control)", CONTROL, random_scores, RANDOM),
    ),
    *_of(
        "attention",
        ("attention_influence", "Attention influence", SUBLAYERS, similarity.attention_influence, STATISTICS),
        ("taylor_attention", "Taylor, attention", f"after {SHORTENED}", depth.taylor_attention, GRADIENTS),
        ("predicted_attention", "Predicted loss, attention (second order)", EXPANSION, predicted_attention, GRADIENTS),
        ("random_attention", "Random attention (control)", CONTROL, random_scores, RANDOM),
    ),
    *_of(
        "mlp",
        ("mlp_influence", "MLP influence", SUBLAYERS, similarity.mlp_influence, STATISTICS),
        ("taylor_mlp", "Taylor, MLP", f"after {SHORTENED}", depth.taylor_mlp, GRADIENTS),
        ("predicted_mlp", "Predicted loss, MLP (second order)", EXPANSION, predicted_mlp, GRADIENTS),
        ("random_mlp", "Random MLP (control)", CONTROL, random_scores, RANDOM),
    ),
    *_of(
        "heads",
        ("minitron_heads", "Minitron heads", MINITRON, heads.minitron_heads, STATISTICS),
        ("michel", "Head importance (Michel)", "Michel et al. 2019, arXiv 1905.10650", heads.michel, GRADIENTS),
        ("taylor_heads", "Taylor, heads", f"after {PRUNER}", heads.taylor_heads, GRADIENTS),
        ("predicted_heads", "Predicted loss, heads (second order)", EXPANSION, predicted_heads, GRADIENTS),
        ("magnitude_heads", "Magnitude, heads", f"after {LI}", heads.magnitude_heads, WEIGHTS),
        ("random_heads", "Random heads (control)", CONTROL, random_scores, RANDOM),
    ),
    *_of(
        "neurons",
        ("maw", "Maximum absolute weight (MAW)", "Martra 2024; OptiPFair", neurons.maw, WEIGHTS),
        ("vow", "Variance of weights (VOW)", "OptiPFair", neurons.vow, WEIGHTS),
        ("pon", "Product of norms (PON)", "OptiPFair", neurons.pon, WEIGHTS),
        ("l2", "L2 norms", "OptiPFair", neurons.l2, WEIGHTS),
        ("hybrid", "Hybrid (weights and activations)", "OptiPFair, after CFSP", neurons.hybrid, BOTH),
        ("wanda_structured", "Wanda, structured", "after Wanda, arXiv 2306.11695", neurons.wanda_structured, BOTH),
        ("minitron", "Minitron activations", MINITRON, neurons.minitron, BOTH),
        ("cfsp_fine", "CFSP fine-grained", "CFSP, arXiv 2409.13199", neurons.cfsp_fine, BOTH),
        ("flap", "Fluctuation (FLAP)", "FLAP, arXiv 2312.11983", neurons.flap, BOTH),
        ("taylor_first", "Taylor, first order", PRUNER, neurons.taylor_first, GRADIENTS),
        ("taylor_vectorized", "Taylor, vector-wise", PRUNER, neurons.taylor_vectorized, GRADIENTS),
        ("taylor_second", "Taylor, second order", PRUNER, neurons.taylor_second, GRADIENTS),
        ("taylor_mixed", "Taylor, mixed", PRUNER, neurons.taylor_mixed, GRADIENTS),
        ("predicted_neurons", "Predicted loss, neurons (second order)", EXPANSION, predicted_neurons, GRADIENTS),
        ("random_neurons", "Random neurons (control)", CONTROL, random_scores, RANDOM),
    ),
    *_of(
        "hidden",
        ("minitron_hidden", "Minitron channels", MINITRON, hidden.minitron_hidden, STATISTICS),
        ("random_hidden", "Random channels (control)", CONTROL, random_scores, RANDOM),
    ),
)


@dataclass(frozen=True)
class Evidence:
    """What scores are made of: the model, what is known of it on one text, and the seed of random scores."""

    runner: Runner
    statistics: Statistics | None = None
    gradients: Gradients | None = None
    seed: int = 0


@dataclass(frozen=True)
class _Units:
    """Where the units of a kind are in a block."""

    part: str
    """The sublayer's attribute of a `Block`."""
    name: str
    count: Callable[[Any], int]
    weights_of: Callable[[nn.Module, Any], Any]


UNITS = {
    "neurons": _Units("mlp", "MLP", lambda mlp: mlp.width, neurons.weights_of),
    "heads": _Units("attention", "attention", lambda attention: attention.query_heads, heads.weights_of),
}
"""By kind; the kind is also the attribute of a block's statistics."""


def method(name: str, kind: Kind | None = None) -> Method:
    """The method of that name, of that kind if given. Raises InputError: unknown; the message lists the names."""
    known = [entry for entry in METHODS if kind is None or entry.kind == kind]
    for entry in known:
        if entry.name == name:
            return entry
    raise InputError(
        f"There is no method {name!r}{f' for {kind}' if kind else ''}: use one of "
        f"{', '.join(entry.name for entry in known)}."
    )


def score_units(entry: Method, evidence: Evidence, block: int) -> torch.Tensor:
    """Scores of one block's neurons or query heads, by the method's kind: float32 on the CPU, (units,).

    Raises:
        InputError: the evidence lacks what the method needs, or the block has no such units.
    """
    units, source = UNITS[entry.kind], evidence.runner.architecture.blocks[block]
    part = getattr(source, units.part)
    if part is None:
        raise InputError(f"Block {block} has no {units.name} to score.")
    module = evidence.runner.blocks[block]
    return _scores(
        entry,
        evidence,
        block=block,
        count=units.count(part),
        weights=lambda: units.weights_of(shallow_copy(module), part),  # the copy has offloaded weights too
        statistics=lambda statistics: getattr(statistics.blocks[block], entry.kind),
        gradients=lambda gradients: gradients.blocks[block],
    )


def score_blocks(entry: Method, evidence: Evidence) -> torch.Tensor:
    """Scores of the blocks, or of their attentions or MLPs, by the method's kind: float32 on the CPU, (blocks,).

    Raises:
        InputError: the evidence lacks what the method needs.
    """
    return _scores(
        entry,
        evidence,
        count=len(evidence.runner.blocks),
        weights=lambda: evidence.runner,
        statistics=lambda statistics: statistics.similarities,
        gradients=lambda gradients: gradients,
    )


def score_hidden(entry: Method, evidence: Evidence) -> torch.Tensor:
    """Scores of the channels of the residual stream, float32 on the CPU, (hidden,).

    Raises:
        InputError: the evidence lacks what the method needs.
    """
    return _scores(
        entry,
        evidence,
        count=evidence.runner.architecture.hidden_size,
        weights=lambda: evidence.runner,
        statistics=lambda statistics: statistics,
        gradients=lambda gradients: gradients,
    )


def _scores(
    entry: Method,
    evidence: Evidence,
    count: int,
    weights: Callable[[], Any],
    statistics: Callable[[Statistics], Any],
    gradients: Callable[[Gradients], Any],
    block: int = 0,
) -> torch.Tensor:
    """Call the method's function with what it takes, each fetched only then."""
    arguments: list[Any] = []
    for name in entry.takes:
        if name == "weights":
            arguments.append(weights())
        elif name == "statistics":
            arguments.append(statistics(_analysed(entry, evidence)))
        elif name == "gradients":
            arguments.append(gradients(_differentiated(entry, evidence)))
        else:
            arguments += [count, generator_for(evidence.seed, entry.kind, block)]
    with torch.inference_mode():
        return entry.function(*arguments).cpu()


def _analysed(entry: Method, evidence: Evidence) -> Statistics:
    if evidence.statistics is None or evidence.statistics.tokens == 0:
        raise InputError(f"The method {entry.name!r} needs text: run the analysis first.")
    return evidence.statistics


def _differentiated(entry: Method, evidence: Evidence) -> Gradients:
    if evidence.gradients is None:
        raise InputError(f"The method {entry.name!r} needs gradients: run the analysis with gradients first.")
    return evidence.gradients
