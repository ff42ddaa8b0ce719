"""The registry of importance methods: the page, the command line and the benchmarks list it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch

from analysis.errors import InputError
from analysis.gradients.collect import Gradients
from analysis.importance import blocks as depth
from analysis.importance import channels as hidden
from analysis.importance import heads, neurons, predictions, similarity
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

    def listed(self) -> dict[str, Any]:
        """What `methods` prints."""
        return {
            "name": self.name,
            "kind": self.kind,
            "title": self.title,
            "source": self.source,
            "needs_gradients": self.needs_gradients,
            "needs_text": self.needs_text,
        }


WEIGHTS: tuple[Input, ...] = ("weights",)
STATISTICS: tuple[Input, ...] = ("statistics",)
BOTH: tuple[Input, ...] = ("weights", "statistics")
GRADIENTS: tuple[Input, ...] = ("gradients",)
RANDOM: tuple[Input, ...] = ("random",)

SHORTENED = "Shortened LLaMA, arXiv 2402.02834"
PRUNER = "LLM-Pruner, arXiv 2305.11627"
MINITRON = "Minitron, arXiv 2407.14679"
EXPANSION = "Taylor expansion with the empirical Fisher"
CONTROL = "control"

METHODS: tuple[Method, ...] = (
    Method(
        "block_influence",
        "blocks",
        "Block influence",
        "ShortGPT, arXiv 2403.03853",
        similarity.block_influence,
        STATISTICS,
    ),
    Method(
        "angular_distance",
        "blocks",
        "Angular distance of a run",
        "arXiv 2403.17887",
        similarity.angular_distance,
        STATISTICS,
    ),
    Method("taylor_blocks", "blocks", "Taylor", SHORTENED, depth.taylor_blocks, GRADIENTS),
    Method(
        "predicted_blocks",
        "blocks",
        "Predicted loss (second order)",
        EXPANSION,
        predictions.predicted_blocks,
        GRADIENTS,
    ),
    Method("magnitude_blocks", "blocks", "Magnitude", SHORTENED, depth.magnitude_blocks, WEIGHTS),
    Method("random_blocks", "blocks", "Random (control)", CONTROL, random_scores, RANDOM),
    Method(
        "attention_influence",
        "attention",
        "Attention influence",
        "arXiv 2407.15516",
        similarity.attention_influence,
        STATISTICS,
    ),
    Method(
        "taylor_attention", "attention", "Taylor, attention", f"after {SHORTENED}", depth.taylor_attention, GRADIENTS
    ),
    Method(
        "predicted_attention",
        "attention",
        "Predicted loss, attention (second order)",
        EXPANSION,
        predictions.predicted_attention,
        GRADIENTS,
    ),
    Method("random_attention", "attention", "Random attention (control)", CONTROL, random_scores, RANDOM),
    Method("mlp_influence", "mlp", "MLP influence", "arXiv 2407.15516", similarity.mlp_influence, STATISTICS),
    Method("taylor_mlp", "mlp", "Taylor, MLP", f"after {SHORTENED}", depth.taylor_mlp, GRADIENTS),
    Method(
        "predicted_mlp", "mlp", "Predicted loss, MLP (second order)", EXPANSION, predictions.predicted_mlp, GRADIENTS
    ),
    Method("random_mlp", "mlp", "Random MLP (control)", CONTROL, random_scores, RANDOM),
    Method("minitron_heads", "heads", "Minitron heads", MINITRON, heads.minitron_heads, STATISTICS),
    Method(
        "michel", "heads", "Head importance (Michel)", "Michel et al. 2019, arXiv 1905.10650", heads.michel, GRADIENTS
    ),
    Method("taylor_heads", "heads", "Taylor, heads", f"after {PRUNER}", heads.taylor_heads, GRADIENTS),
    Method(
        "predicted_heads",
        "heads",
        "Predicted loss, heads (second order)",
        EXPANSION,
        predictions.predicted_heads,
        GRADIENTS,
    ),
    Method(
        "magnitude_heads",
        "heads",
        "Magnitude, heads",
        "after Li et al. 2017, arXiv 1608.08710",
        heads.magnitude_heads,
        WEIGHTS,
    ),
    Method("random_heads", "heads", "Random heads (control)", CONTROL, random_scores, RANDOM),
    Method("maw", "neurons", "Maximum absolute weight (MAW)", "Martra 2024; OptiPFair", neurons.maw, WEIGHTS),
    Method("vow", "neurons", "Variance of weights (VOW)", "OptiPFair", neurons.vow, WEIGHTS),
    Method("pon", "neurons", "Product of norms (PON)", "OptiPFair", neurons.pon, WEIGHTS),
    Method("l2", "neurons", "L2 norms", "OptiPFair", neurons.l2, WEIGHTS),
    Method("hybrid", "neurons", "Hybrid (weights and activations)", "OptiPFair, after CFSP", neurons.hybrid, BOTH),
    Method(
        "wanda_structured",
        "neurons",
        "Wanda, structured",
        "after Wanda, arXiv 2306.11695",
        neurons.wanda_structured,
        BOTH,
    ),
    Method("minitron", "neurons", "Minitron activations", MINITRON, neurons.minitron, BOTH),
    Method("cfsp_fine", "neurons", "CFSP fine-grained", "CFSP, arXiv 2409.13199", neurons.cfsp_fine, BOTH),
    Method("flap", "neurons", "Fluctuation (FLAP)", "FLAP, arXiv 2312.11983", neurons.flap, BOTH),
    Method("taylor_first", "neurons", "Taylor, first order", PRUNER, neurons.taylor_first, GRADIENTS),
    Method("taylor_vectorized", "neurons", "Taylor, vector-wise", PRUNER, neurons.taylor_vectorized, GRADIENTS),
    Method("taylor_second", "neurons", "Taylor, second order", PRUNER, neurons.taylor_second, GRADIENTS),
    Method("taylor_mixed", "neurons", "Taylor, mixed", PRUNER, neurons.taylor_mixed, GRADIENTS),
    Method(
        "predicted_neurons",
        "neurons",
        "Predicted loss, neurons (second order)",
        EXPANSION,
        predictions.predicted_neurons,
        GRADIENTS,
    ),
    Method("random_neurons", "neurons", "Random neurons (control)", CONTROL, random_scores, RANDOM),
    Method("minitron_hidden", "hidden", "Minitron channels", MINITRON, hidden.minitron_hidden, STATISTICS),
    Method("random_hidden", "hidden", "Random channels (control)", CONTROL, random_scores, RANDOM),
)


@dataclass(frozen=True)
class Evidence:
    """What scores are made of: the model, what is known of it on one text, and the seed of random scores."""

    runner: Runner
    statistics: Statistics | None = None
    gradients: Gradients | None = None
    seed: int = 0


def method(name: str, kind: Kind | None = None) -> Method:
    """The method of that name, of that kind if given.

    Raises:
        InputError: unknown; the message lists the names.
    """
    known = [entry for entry in METHODS if kind is None or entry.kind == kind]
    for entry in known:
        if entry.name == name:
            return entry
    raise InputError(
        f"There is no method {name!r}{f' for {kind}' if kind else ''}: use one of "
        f"{', '.join(entry.name for entry in known)}."
    )


def score_neurons(entry: Method, evidence: Evidence, block: int) -> torch.Tensor:
    """Scores of one block's neurons, float32 on the CPU, (neurons,).

    Raises:
        InputError: the evidence lacks what the method needs, or the block has no MLP.
    """
    mlp = evidence.runner.architecture.blocks[block].mlp
    if mlp is None:
        raise InputError(f"Block {block} has no MLP to score.")
    module = evidence.runner.blocks[block]
    return _scores(
        entry,
        evidence,
        block=block,
        count=mlp.width,
        weights=lambda: neurons.weights_of(shallow_copy(module), mlp),  # the copy has offloaded weights too
        statistics=lambda statistics: statistics.blocks[block].neurons,
        gradients=lambda gradients: gradients.blocks[block],
    )


def score_heads(entry: Method, evidence: Evidence, block: int) -> torch.Tensor:
    """Scores of one block's query heads, float32 on the CPU, (query heads,).

    Raises:
        InputError: the evidence lacks what the method needs, or the block has no attention.
    """
    attention = evidence.runner.architecture.blocks[block].attention
    if attention is None:
        raise InputError(f"Block {block} has no attention to score.")
    module = evidence.runner.blocks[block]
    return _scores(
        entry,
        evidence,
        block=block,
        count=attention.query_heads,
        weights=lambda: heads.weights_of(shallow_copy(module), attention),
        statistics=lambda statistics: statistics.blocks[block].heads,
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
