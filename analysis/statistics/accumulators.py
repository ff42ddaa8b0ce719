"""Running statistics that can be merged. Every field is a sum, so merging is adding."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Self

import torch


@dataclass
class Accumulator:
    """Base of all: a dataclass whose fields are float64 tensors, each a sum over tokens or sequences."""

    def merge(self, other: Self) -> None:
        """Add another accumulator of the same shapes."""
        for item in fields(self):
            setattr(self, item.name, getattr(self, item.name) + getattr(other, item.name))

    def state(self) -> dict[str, torch.Tensor]:
        """The fields by name."""
        return {item.name: getattr(self, item.name) for item in fields(self)}


def zeros(*shape: int) -> torch.Tensor:
    """A float64 tensor of zeros on the CPU, an ordinary one even inside inference mode."""
    with torch.inference_mode(False):
        return torch.zeros(shape, dtype=torch.float64)


def total(values: torch.Tensor, *dims: int) -> torch.Tensor:
    """Sum over dimensions, as float64 on the CPU.

    Each term is summed in float32 along the token dimension and in float64 across calls: a sum over one window of
    a few hundred tokens loses nothing that the input's own rounding has not lost.
    """
    return values.sum(dim=dims).double().cpu() if dims else values.double().cpu()


@dataclass
class InputMoments(Accumulator):
    """Input of a linear: sum of squares of each channel (channels,), over `tokens` (scalar)."""

    tokens: torch.Tensor
    sum_squares: torch.Tensor

    @classmethod
    def empty(cls, channels: int) -> InputMoments:
        """Nothing seen yet."""
        return cls(zeros(), zeros(channels))

    def update(self, inputs: torch.Tensor) -> None:
        """Add inputs (windows, tokens, channels)."""
        flat = inputs.reshape(-1, inputs.shape[-1]).float()
        self.tokens += flat.shape[0]
        self.sum_squares += total(flat.square(), 0)

    def mean_square(self) -> torch.Tensor:
        """Second moment of each channel, (channels,)."""
        return self.sum_squares / self.tokens


@dataclass
class NeuronMoments(InputMoments):
    """Activation of each MLP neuron at the input of the down projection; fields are (neurons,) but for counts."""

    sequences: torch.Tensor
    sum: torch.Tensor
    sum_absolute: torch.Tensor
    sequence_squares: torch.Tensor
    """Sum over sequences of (mean over tokens of the absolute activation) squared."""

    @classmethod
    def empty(cls, channels: int) -> NeuronMoments:
        """Nothing seen yet."""
        return cls(zeros(), zeros(channels), zeros(), zeros(channels), zeros(channels), zeros(channels))

    def update(self, inputs: torch.Tensor) -> None:
        """Add activations (windows, tokens, neurons)."""
        super().update(inputs)
        for window in inputs.float():
            absolute = total(window.abs(), 0)
            self.sequences += 1
            self.sum += total(window, 0)
            self.sum_absolute += absolute
            self.sequence_squares += (absolute / window.shape[0]).square()


@dataclass
class ChannelMoments(Accumulator):
    """Output of one norm, by channel of the hidden state."""

    sequences: torch.Tensor
    sequence_squares: torch.Tensor
    """(hidden,) sum over sequences of (mean over tokens of the absolute value) squared."""

    @classmethod
    def empty(cls, channels: int) -> ChannelMoments:
        """Nothing seen yet."""
        return cls(zeros(), zeros(channels))

    def update(self, outputs: torch.Tensor) -> None:
        """Add outputs (windows, tokens, hidden)."""
        means = total(outputs.float().abs(), 1) / outputs.shape[1]
        self.sequences += outputs.shape[0]
        self.sequence_squares += means.square().sum(dim=0)


@dataclass
class HeadMoments(Accumulator):
    """Attention statistics of each query head, (query heads,) but for counts; sums over query tokens."""

    tokens: torch.Tensor
    sequences: torch.Tensor
    entropy: torch.Tensor
    distance: torch.Tensor
    first_token: torch.Tensor
    previous_token: torch.Tensor
    output_norm: torch.Tensor
    output_norm_sequence_squares: torch.Tensor
    """Sum over sequences of (mean over tokens of the output norm) squared."""
    group_similarity: torch.Tensor
    """Sum over tokens of the mean cosine with the other heads of the KV group; NaN for a head that is alone."""

    @classmethod
    def empty(cls, heads: int) -> HeadMoments:
        """Nothing seen yet."""
        return cls(zeros(), zeros(), *(zeros(heads) for _ in range(7)))

    def means(self) -> dict[str, torch.Tensor]:
        """Each statistic as a mean over tokens, (query heads,).

        Entropy in nats; distance in tokens; masses as shares of 1; output norm in the model's own units.
        """
        names = ("entropy", "distance", "first_token", "previous_token", "output_norm", "group_similarity")
        return {name: getattr(self, name) / self.tokens for name in names}


@dataclass
class Similarities(Accumulator):
    """Cosines between states, for L blocks; state l enters block l, state L leaves the last (before the final norm)."""

    tokens: torch.Tensor
    windows: torch.Tensor
    block_cosine: torch.Tensor
    """(L,) sum over tokens of cos(state l, state l + 1)."""
    attention_cosine: torch.Tensor
    """(L,) the same around the attention sublayer, residual included."""
    mlp_cosine: torch.Tensor
    """(L,) the same around the MLP sublayer."""
    angular: torch.Tensor
    """(L + 1, L + 1) sum over tokens of arccos(cos(state i, state j)) / pi."""
    angular_last: torch.Tensor
    """(L + 1, L + 1) the same over the last token of each window only."""

    @classmethod
    def empty(cls, blocks: int) -> Similarities:
        """Nothing seen yet."""
        square = (blocks + 1, blocks + 1)
        return cls(zeros(), zeros(), zeros(blocks), zeros(blocks), zeros(blocks), zeros(*square), zeros(*square))

    def update_states(self, units: torch.Tensor, windows: int) -> None:
        """Add unit-length states (tokens of all windows in order, L + 1, hidden)."""
        cosine = torch.bmm(units, units.transpose(1, 2)).clamp_(-1, 1)
        steps = torch.diagonal(cosine, offset=1, dim1=1, dim2=2)
        angles = torch.arccos(cosine).div_(math.pi)
        angles.diagonal(dim1=1, dim2=2).zero_()
        per_window = units.shape[0] // windows
        self.tokens += units.shape[0]
        self.windows += windows
        self.block_cosine += total(steps, 0)
        self.angular += total(angles, 0)
        self.angular_last += total(angles[per_window - 1 :: per_window], 0)


def unit(states: torch.Tensor) -> torch.Tensor:
    """States scaled to length one along the last dimension, float32."""
    return torch.nn.functional.normalize(states.float(), dim=-1)


def cosine_sum(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """Sum over all tokens of the cosine between two states, float64 scalar."""
    return torch.nn.functional.cosine_similarity(first.float(), second.float(), dim=-1).double().sum().cpu()
