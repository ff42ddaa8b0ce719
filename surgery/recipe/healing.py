"""The edit that heals."""

from __future__ import annotations

from typing import Literal

from pydantic import ConfigDict, Field, model_validator

from surgery.common.ranges import Indices
from surgery.recipe.base import TextReference, _Edit, _Frozen
from surgery.recipe.storage import Quantize

Divergence = Literal["kl", "reverse_kl", "skew_kl", "skew_reverse_kl", "contrastive"]
Precision = Literal["float32", "bfloat16"]
Role = Literal["query", "key", "value", "output", "gate", "up", "down"]


class Distillation(_Frozen):
    """How a student learns from the dense model's predictions: a weighted sum (see `surgery.training.losses`)."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    divergence: Divergence = "kl"
    """kl, reverse_kl, skew_kl, skew_reverse_kl or contrastive."""
    temperature: float = Field(default=1.0, gt=0, le=100)
    """Divides the logits of both models."""
    skew: float = Field(default=0.1, ge=0, lt=1)
    """Share of the distribution that is mixed into the other one, in the skewed divergences."""
    balance: float = Field(default=1.0, ge=0, le=2)
    """Of `contrastive`: (2 - balance) on the teacher's continuations, balance on the student's."""
    weight: float = Field(default=1.0, gt=0, le=1e3)
    """Weight of the divergence."""
    cross_entropy: float = Field(default=0.0, ge=0, le=1e3)
    """Weight of the text's cross-entropy beside the divergence."""
    features: float = Field(default=0.0, ge=0, le=1e3)
    """Weight of the cosine distance between the states that leave each block and those that leave its source block."""
    top_k: int | None = Field(default=None, ge=1, le=2**16)
    """Largest teacher probabilities that are kept on disk, so that the teacher runs once; if absent, its states are."""

    @model_validator(mode="after")
    def _possible(self) -> Distillation:
        if self.divergence == "contrastive" and self.top_k is not None:
            raise ValueError("contrastive distillation sees every continuation once: leave top_k out")
        return self


class HealResult(_Frozen):
    """What a healing reached: identity of the trained tensors, the step of the best state, held-out perplexities (None
    where one overflows)."""

    adapter: str = Field(min_length=1, max_length=64)
    step: int = Field(ge=0)
    before: float | None = Field(default=None, allow_inf_nan=False)
    after: float | None = Field(default=None, allow_inf_nan=False)


class Heal(_Edit):
    """Train low-rank matrices beside linears that stay (or the linears themselves), on a text of its own."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    op: Literal["heal"] = "heal"
    method: Literal["lora", "distill"] = "lora"
    """The loss: lora (cross-entropy of the text) or distill (the dense model's predictions)."""
    train: Literal["lora", "dora", "weights"] = "lora"
    """lora, dora or weights."""
    text: TextReference
    answers_only: bool = False
    """Learn from the answers of conversations alone."""
    where: Literal["all", "around"] = "around"
    """`around`: blocks that are narrowed, and the neighbours of removed ones."""
    blocks: Indices | None = None
    """Instead of `where`: blocks of the source model."""
    linears: tuple[Role, ...] | None = Field(default=None, min_length=1, max_length=7, strict=False)
    """Roles that are trained; all when None."""
    rank: int = Field(default=8, ge=1, le=4096)
    """Of the low-rank matrices."""
    rank_by: Literal["uniform", "coarse_importance"] = "uniform"
    """Over the blocks: uniform or coarse_importance (CFSP)."""
    alpha: float = Field(default=16.0, gt=0, le=1e5)
    """The low-rank product is scaled by alpha over rank. The command line takes twice the rank if absent."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Of the inputs of the low-rank matrices."""
    learning_rate: float = Field(default=2e-4, gt=0, le=10)
    """The largest, after the warm-up."""
    warm_up: float = Field(default=0.1, ge=0, le=1)
    """Share of the steps in which the learning rate rises; from there it falls along a cosine to 0."""
    weight_decay: float = Field(default=0.0, ge=0, le=10)
    clip: float | None = Field(default=1.0, gt=0)
    """Largest norm of the gradient of all trained tensors together."""
    steps: int = Field(ge=1, le=10**7)
    batch: int = Field(default=1, ge=1, le=2**16)
    """Windows in a step."""
    micro_batch: int = Field(default=1, ge=1, le=2**12)
    """Windows that go through the blocks together."""
    checkpointing: bool = False
    """Compute the inside of blocks again in the backward pass instead of keeping it."""
    held_out: int = Field(default=2, ge=1, le=2**12)
    """Windows from the end of the text that are kept aside, to decide which state is the best one."""
    evaluate_every: int = Field(default=10, ge=1)
    """Steps between held-out measurements."""
    patience: int | None = Field(default=None, ge=1)
    """Held-out measurements without a better state that end the training."""
    precision: Precision = "float32"
    """Of the factors in the products of linears while training; sums, states and adapters are float32."""
    seed: int = Field(default=0, ge=0, lt=2**31)
    distillation: Distillation | None = None
    base: Quantize | None = None
    """Train over weights that are quantised like this (as QLoRA does)."""
    result: HealResult | None = None

    @model_validator(mode="after")
    def _possible(self) -> Heal:
        if (self.method == "distill") != (self.distillation is not None):
            raise ValueError("method distill goes with `distillation`, and lora with none")
        if self.train == "weights" and (self.rank_by != "uniform" or self.dropout or self.base is not None):
            raise ValueError("rank_by, dropout and base are of low-rank matrices, not of trained weights")
        if self.dropout and self.precision != "float32":
            raise ValueError("dropout goes with precision float32")
        if self.text.windows <= self.held_out:
            raise ValueError("the text has no more windows than are held out: take more windows or hold out fewer")
        return self
