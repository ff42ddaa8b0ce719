"""The registry of importance methods: the page, the command line and the benchmarks list it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch

from analysis import heads, neurons, similarity
from analysis.errors import InputError
from analysis.execution import Runner
from analysis.statistics import Statistics

Kind = Literal["blocks", "attention", "mlp", "heads", "neurons"]


@dataclass(frozen=True)
class Method:
    """One importance method.

    `function` takes what its kind provides: neurons (weights[, moments]); heads (moments); the rest (similarities).
    """

    name: str
    kind: Kind
    title: str
    source: str
    function: Callable[..., torch.Tensor]
    needs_text: bool
    needs_gradients: bool = False

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


METHODS: tuple[Method, ...] = (
    Method(
        "block_influence", "blocks", "Block influence", "ShortGPT, arXiv 2403.03853", similarity.block_influence, True
    ),
    Method(
        "angular_distance", "blocks", "Angular distance of a run", "arXiv 2403.17887", similarity.angular_distance, True
    ),
    Method(
        "attention_influence",
        "attention",
        "Attention influence",
        "arXiv 2407.15516",
        similarity.attention_influence,
        True,
    ),
    Method("mlp_influence", "mlp", "MLP influence", "arXiv 2407.15516", similarity.mlp_influence, True),
    Method("minitron_heads", "heads", "Minitron heads", "Minitron, arXiv 2407.14679", heads.minitron_heads, True),
    Method("maw", "neurons", "Maximum absolute weight (MAW)", "Martra 2024; OptiPFair", neurons.maw, False),
    Method("vow", "neurons", "Variance of weights (VOW)", "OptiPFair", neurons.vow, False),
    Method("pon", "neurons", "Product of norms (PON)", "OptiPFair", neurons.pon, False),
    Method("l2", "neurons", "L2 norms", "OptiPFair", neurons.l2, False),
    Method("hybrid", "neurons", "Hybrid (weights and activations)", "OptiPFair, after CFSP", neurons.hybrid, True),
    Method(
        "wanda_structured",
        "neurons",
        "Wanda, structured",
        "after Wanda, arXiv 2306.11695",
        neurons.wanda_structured,
        True,
    ),
    Method("minitron", "neurons", "Minitron activations", "Minitron, arXiv 2407.14679", neurons.minitron, True),
    Method("cfsp_fine", "neurons", "CFSP fine-grained", "CFSP, arXiv 2409.13199", neurons.cfsp_fine, True),
)


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


def score_neurons(entry: Method, runner: Runner, statistics: Statistics | None, block: int) -> torch.Tensor:
    """Scores of one block's neurons, float32 on the CPU, (neurons,).

    Raises:
        InputError: the method needs an analysis, or the block has no MLP.
    """
    mlp = runner.architecture.blocks[block].mlp
    if mlp is None:
        raise InputError(f"Block {block} has no MLP to score.")
    arguments: list[Any] = [neurons.weights_of(runner.blocks[block], mlp)]
    if entry.needs_text:
        arguments.append(_analysed(entry, statistics).blocks[block].neurons)
    with torch.inference_mode():
        return entry.function(*arguments).cpu()


def score_heads(entry: Method, statistics: Statistics | None, block: int) -> torch.Tensor:
    """Scores of one block's query heads, float32, (query heads,)."""
    moments = _analysed(entry, statistics).blocks[block].heads
    if moments is None:
        raise InputError(f"Block {block} has no attention to score.")
    return entry.function(moments)


def score_blocks(entry: Method, statistics: Statistics | None) -> torch.Tensor:
    """Scores of the blocks, or of their attentions or MLPs, by the method's kind: float32, (blocks,)."""
    return entry.function(_analysed(entry, statistics).similarities)


def _analysed(entry: Method, statistics: Statistics | None) -> Statistics:
    if statistics is None or statistics.tokens == 0:
        raise InputError(f"The method {entry.name!r} needs text: run the analysis first.")
    return statistics
