"""The solver of GPTQ and SparseGPT: change a weight column by column, and let the columns that follow make up for it.

Both minimise |W X - W' X|^2 over the inputs X of a calibration text. Sources: Optimal Brain Compression (2208.11580),
Eq. 3; GPTQ (2210.17323), sections 3 and 4; SparseGPT (2301.00774), section 3.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import torch

from surgery.quantization.grid import Grid, Packed

BLOCK = 128
"""Columns after which the errors so far are passed on to all columns that follow."""
DAMPING = 0.01
"""Of the mean diagonal of H, added to the diagonal."""
Choose = Callable[[int, torch.Tensor], torch.Tensor]
"""Given a column's index and the weight as it is now, (outputs, inputs), the column's new value (outputs,).

All columns of the present block are up to date, and at the start of a block all that follow are too.
"""


def hessian(covariance: torch.Tensor, tokens: int) -> torch.Tensor:
    """H = 2 X X^T / n from the sum of x x^T over n tokens, float64."""
    return 2 * covariance.double() / max(tokens, 1)


def inverse_factor(h: torch.Tensor, damping: float = DAMPING) -> torch.Tensor:
    """U, upper triangular with H^-1 = U^T U, of the damped H: row i holds what GPTQ's step i needs (Algorithm 1).

    A dead input (one that is always zero) is given the mean diagonal: the others learn nothing from its error, and its
    own weights are rounded to nearest, as nothing says that they will never be used. The published code zeroes them.
    """
    h = h.clone()
    diagonal = h.diagonal()
    alive = diagonal > 0
    mean = float(diagonal[alive].mean()) if bool(alive.any()) else 1.0
    diagonal[~alive] = mean
    diagonal += damping * mean
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(h))
    return torch.linalg.cholesky(inverse, upper=True)


def solve(
    weight: torch.Tensor, factor: torch.Tensor, choose: Choose, blocks: Iterable[tuple[int, int]] | None = None
) -> torch.Tensor:
    """Change the columns from first to last, each one's error being spread over those that follow.

    Args:
        weight: (outputs, inputs).
        factor: U of `inverse_factor`, (inputs, inputs).
        choose: gives the new value of each column.
        blocks: half-open ranges of columns that are worked on together; runs of `BLOCK` when None.

    Returns:
        The columns that were chosen, (outputs, inputs), float64.
    """
    rows = weight.T.double().contiguous()  # inputs first: a column of the weight is one run of memory
    made = torch.empty_like(rows)
    for start, end in blocks or spans(len(rows), len(rows)):
        errors = torch.empty_like(rows[start:end])
        for column in range(start, end):
            made[column] = choose(column, rows.T)
            error = (rows[column] - made[column]) / factor[column, column]
            rows[column + 1 : end].addr_(factor[column, column + 1 : end], error, alpha=-1)
            errors[column - start] = error
        rows[end:] -= factor[start:end, end:].T @ errors
    return made.T.contiguous()


def spans(inputs: int, group: int) -> Iterator[tuple[int, int]]:
    """Blocks of at most `BLOCK` columns in which no group of columns begins before all its columns are up to date:
    several whole groups together, or parts of one."""
    step = BLOCK // group * group
    for start in range(0, inputs, step or group):
        end = min(start + (step or group), inputs)
        yield from ((first, min(first + BLOCK, end)) for first in range(start, end, BLOCK))


def gptq(
    weight: torch.Tensor, h: torch.Tensor, grid: Grid, act_order: bool = False, name: str = "The weight"
) -> Packed:
    """A weight on an integer grid, its rounding errors made up for by the columns that follow.

    A group's grid is fitted to its weights when its first column's turn comes, with the errors so far. With
    `act_order` the columns take their turns by falling diagonal of H, and all grids are fitted beforehand, so that the
    stored groups stay runs of neighbours (compressed-tensors calls that the order "weight").

    Args:
        weight: (outputs, inputs).
        h: of `hessian`, (inputs, inputs).

    Raises:
        InputError: the groups do not divide the rows.
    """
    weight = weight.detach().double().cpu()
    inputs = weight.shape[1]
    width = grid.width(inputs, name)
    scales, zeros = (part[..., 0] for part in grid.fit(weight.unflatten(1, (-1, width))))
    order = torch.argsort(h.diagonal(), descending=True, stable=True) if act_order else torch.arange(inputs)
    groups = (order // width).tolist()
    codes = torch.empty(inputs, len(weight), dtype=torch.float64)

    def choose(column: int, current: torch.Tensor) -> torch.Tensor:
        group = groups[column]
        if not act_order and column % width == 0:
            fitted = grid.fit(current[:, column : column + width])
            scales[:, group], zeros[:, group] = (part[:, 0] for part in fitted)
        scale, zero = scales[:, group], zeros[:, group]
        codes[column] = code = grid.encode(current[:, column], scale, zero)
        return (code - zero) * scale

    blocks = spans(inputs, inputs if act_order else width)
    solve(weight[:, order], inverse_factor(h[order][:, order]), choose, blocks)
    return Packed.of(grid, codes[torch.argsort(order)].T, scales, zeros)
