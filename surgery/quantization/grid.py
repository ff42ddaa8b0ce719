"""Integer grids for weights: scales and zero points by groups of a row, codes, and what they read back as.

What is stored is the "pack-quantized" format of compressed-tensors: signed codes, one scale (and one zero point) for
each group of neighbouring inputs. The scales are rounded to the type they are stored in before any weight is, so what
is measured live is what reloads.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch

from surgery.errors import InputError

SMALLEST_GROUP = 8
"""Weights in the smallest group that a recipe may ask for."""


@dataclass(frozen=True)
class Grid:
    """Which integers a weight may take, and how many neighbours of a row share a scale."""

    bits: int
    group_size: int | None = None
    """Inputs that share a scale; None: the whole row."""
    symmetric: bool = True
    """Around zero; else each group has a zero point, and its range is from its least to its largest weight."""
    scale_type: torch.dtype = torch.float16
    """In which the scales are stored."""

    @property
    def lowest(self) -> int:
        """The least code."""
        return -(2 ** (self.bits - 1))

    @property
    def highest(self) -> int:
        """The largest code."""
        return 2 ** (self.bits - 1) - 1

    def width(self, inputs: int, name: str = "The weight") -> int:
        """Inputs that share a scale in rows of a length.

        Raises:
            InputError: the groups do not divide the row, which the format cannot express.
        """
        check_groups({name: inputs}, self.group_size)
        return self.group_size or inputs

    def fit(self, weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Scale and zero point, (..., 1) each and float64, of groups of weights (..., inputs).

        Zero itself is on every grid. A symmetric grid reaches from -max to max in 2^bits - 1 steps, so that the codes
        at its ends are half a step off; a group of zeros has the scale 1.
        """
        low, high = weight.amin(dim=-1, keepdim=True).clamp(max=0), weight.amax(dim=-1, keepdim=True).clamp(min=0)
        steps = self.highest - self.lowest
        span = 2 * torch.maximum(-low, high) if self.symmetric else high - low
        scale = (span / steps).to(self.scale_type).double()
        scale = torch.where(scale == 0, 1.0, scale)
        if self.symmetric:
            return scale, torch.zeros_like(scale)
        return scale, (self.lowest - low / scale).round().clamp(self.lowest, self.highest)

    def encode(self, weight: torch.Tensor, scale: torch.Tensor, zero: torch.Tensor) -> torch.Tensor:
        """The codes of the nearest grid points, float64."""
        return (weight / scale + zero).round().clamp(self.lowest, self.highest)

    def bytes(self, outputs: int, inputs: int) -> int:
        """Bytes of all tensors that a weight is stored in; codes and zero points are packed into 32-bit words."""
        groups = inputs // self.width(inputs)
        words = outputs * -(-inputs * self.bits // 32)
        if not self.symmetric:
            words += groups * -(-outputs * self.bits // 32)
        return 4 * words + outputs * groups * self.scale_type.itemsize + 2 * 8  # and the shape, two int64


@dataclass(frozen=True)
class Packed:
    """A weight in integers: a `Codec` that gives back what it stores, whatever it is applied to."""

    key: str
    grid: Grid
    codes: torch.Tensor = field(compare=False, repr=False)
    """(outputs, inputs), int8."""
    scales: torch.Tensor = field(compare=False, repr=False)
    """(outputs, groups), in the grid's scale type."""
    zeros: torch.Tensor = field(compare=False, repr=False)
    """(outputs, groups), int8; all 0 where the grid is symmetric."""

    @classmethod
    def of(cls, grid: Grid, codes: torch.Tensor, scales: torch.Tensor, zeros: torch.Tensor) -> Packed:
        """From codes (outputs, inputs), scales and zero points (outputs, groups), of any types that hold them."""
        codes, zeros = codes.to(torch.int8).contiguous(), zeros.to(torch.int8).contiguous()
        scales = scales.to(grid.scale_type).contiguous()
        digest = hashlib.sha256(f"{grid}{tuple(codes.shape)}".encode())
        for tensor in (codes, scales.view(torch.int16 if scales.itemsize == 2 else torch.int32), zeros):
            digest.update(tensor.numpy().tobytes())
        return cls(digest.hexdigest()[:16], grid, codes, scales, zeros)

    def apply(self, weight: torch.Tensor) -> torch.Tensor:
        """The stored weight (outputs, inputs), in the type and on the device of the given one."""
        if weight.shape != self.codes.shape:
            raise ValueError(f"a weight {tuple(self.codes.shape)} is stored, and {tuple(weight.shape)} is asked for")
        # Multiplied out in the scales' own type, as transformers does while it loads.
        steps = self.codes.unflatten(1, (self.scales.shape[1], -1)).short() - self.zeros.short()[..., None]
        return (steps.to(self.scales.dtype) * self.scales[..., None]).flatten(1).to(weight.device, weight.dtype)

    @property
    def bytes(self) -> int:
        """Bytes of the tensors that it is stored in."""
        return self.grid.bytes(*self.codes.shape)


def check_groups(rows: Mapping[str, int], size: int | None) -> None:
    """Refuse groups that do not divide every row, with the sizes that do.

    Args:
        rows: weights in a row, by the linear's name.
        size: of a group; None for whole rows, which is always possible.

    Raises:
        InputError: a row is not divided.
    """
    name = next((name for name, inputs in rows.items() if size is not None and inputs % size), None)
    if name is None:
        return
    common = math.gcd(*rows.values())
    divisors = ", ".join(str(step) for step in range(SMALLEST_GROUP, min(common, 256) + 1) if common % step == 0)
    advice = f"a group size of {divisors}, or none for whole rows" if divisors else "none, for whole rows"
    raise InputError(f"{name} has rows of {rows[name]} weights, which groups of {size} do not divide: choose {advice}.")


def scale_type_for(dtype: torch.dtype) -> torch.dtype:
    """The two-byte type in which the scales of a model of that type are stored without a loss when it is loaded."""
    return torch.bfloat16 if dtype == torch.bfloat16 else torch.float16


def round_to_nearest(weight: torch.Tensor, grid: Grid, name: str = "The weight") -> Packed:
    """A weight (outputs, inputs) rounded to the nearest points of its own grid.

    Raises:
        InputError: the groups do not divide the rows.
    """
    groups = weight.detach().double().cpu().unflatten(1, (-1, grid.width(weight.shape[1], name)))
    scale, zero = grid.fit(groups)
    return Packed.of(grid, grid.encode(groups, scale, zero).flatten(1), scale[..., 0], zero[..., 0])
