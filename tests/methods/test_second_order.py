"""Integer grids and GPTQ's solver, against the definitions written out and against compressed-tensors."""

from __future__ import annotations

import pytest
import torch

from surgery.errors import InputError
from surgery.quantization.gptq import DAMPING, gptq, hessian, inverse_factor, solve, spans
from surgery.quantization.grid import Grid, Packed, round_to_nearest

GRIDS = [
    Grid(bits, group, symmetric) for bits in (2, 3, 4, 8) for group in (None, 16, 48) for symmetric in (True, False)
]


def weight_and_inputs(seed: int, outputs: int = 10, inputs: int = 96, tokens: int = 300) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(inputs, inputs, generator=generator, dtype=torch.float64) * torch.logspace(0, -1.5, inputs)
    x = torch.randn(tokens, inputs, generator=generator, dtype=torch.float64) @ mix.T
    return torch.randn(outputs, inputs, generator=generator), x


def h_of(x: torch.Tensor) -> torch.Tensor:
    return hessian(x.T @ x, len(x))


def error_on(x: torch.Tensor, weight: torch.Tensor, packed: Packed) -> float:
    return float((x @ (weight.double() - packed.apply(weight).double()).T).square().sum())


def obq(weight: torch.Tensor, h: torch.Tensor, grid: Grid, order: list[int], ahead: bool) -> torch.Tensor:
    """GPTQ as optimal brain quantisation, one weight at a time: the inverse of what is left, and no blocks."""
    work = weight.double().clone()
    made = torch.zeros_like(work)
    width = grid.group_size or work.shape[1]
    fixed = {start: grid.fit(work[:, start : start + width]) for start in range(0, work.shape[1], width)}
    damped = h + DAMPING * h.diagonal().mean() * torch.eye(len(h), dtype=torch.float64)
    for step, column in enumerate(order):
        start = column // width * width
        if not ahead and column == start:
            fixed[start] = grid.fit(work[:, start : start + width])
        scale, zero = fixed[start]
        left = order[step:]
        inverse = torch.linalg.inv(damped[left][:, left])
        for row in range(len(work)):
            code = (work[row, column] / scale[row, 0] + zero[row, 0]).round().clamp(grid.lowest, grid.highest)
            made[row, column] = (code - zero[row, 0]) * scale[row, 0]
            miss = (work[row, column] - made[row, column]) / inverse[0, 0]
            for place, other in enumerate(left):
                work[row, other] -= miss * inverse[0, place]
    return made


@pytest.mark.parametrize("group", [None, 16, 48])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("act_order", [True, False])
def test_gptq_is_optimal_brain_quantisation_column_by_column(
    group: int | None, symmetric: bool, act_order: bool
) -> None:
    weight, x = weight_and_inputs(3, outputs=4)
    h = h_of(x)
    grid = Grid(3, group, symmetric)
    order = sorted(range(96), key=lambda column: -float(h[column, column])) if act_order else list(range(96))
    expected = obq(weight, h, grid, order, ahead=act_order)
    made = gptq(weight, h, grid, act_order).apply(weight.double())
    # What is stored is multiplied out in the scales' type, half precision; another code is a third away.
    torch.testing.assert_close(made, expected, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("inputs", [96, 128, 300, 520])
def test_blocks_of_columns_are_only_a_way_to_compute(inputs: int) -> None:
    weight, x = weight_and_inputs(5, inputs=inputs, tokens=900)
    factor = inverse_factor(h_of(x))
    pruned = solve(weight, factor, lambda column, now: now[:, column].round())
    alone = solve(weight, factor, lambda column, now: now[:, column].round(), [(c, c + 1) for c in range(inputs)])
    torch.testing.assert_close(pruned, alone)


@pytest.mark.parametrize(("inputs", "group"), [(96, 96), (576, 64), (1536, 96), (600, 200), (520, 130), (48, 16)])
def test_no_group_begins_inside_a_block_that_does_not_hold_it(inputs: int, group: int) -> None:
    blocks = list(spans(inputs, group))
    assert [column for start, end in blocks for column in range(start, end)] == list(range(inputs))
    assert all(end - start <= 128 for start, end in blocks)
    for first in range(0, inputs, group):
        start, end = next(block for block in blocks if block[0] <= first < block[1])
        assert first == start or first + group <= end


@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_with_inputs_that_know_nothing_of_each_other_gptq_rounds_to_nearest(grid: Grid) -> None:
    weight, _ = weight_and_inputs(1)
    nearest = round_to_nearest(weight, grid)
    for scale in (1.0, 1e-9, 1e9):
        made = gptq(weight, scale * torch.eye(96, dtype=torch.float64), grid)
        assert made == nearest and torch.equal(made.codes, nearest.codes)


@pytest.mark.parametrize("bits", [2, 3, 4])
@pytest.mark.parametrize("act_order", [True, False])
def test_gptq_is_better_than_rounding_on_the_text_it_saw(bits: int, act_order: bool) -> None:
    for seed in range(10):
        weight, x = weight_and_inputs(seed)
        grid = Grid(bits)
        nearest, solved = round_to_nearest(weight, grid), gptq(weight, h_of(x), grid, act_order)
        assert torch.equal(nearest.scales, solved.scales)
        assert error_on(x, weight, solved) < 0.9 * error_on(x, weight, nearest)


def test_dead_inputs_are_rounded_to_nearest_and_disturb_nothing() -> None:
    weight, x = weight_and_inputs(2)
    dead = [0, 17, 95]
    x[:, dead] = 0
    alive = [column for column in range(96) if column not in dead]
    grid = Grid(4, 8)
    made = gptq(weight, h_of(x), grid, act_order=True)
    nearest = round_to_nearest(weight, grid)
    assert torch.equal(made.codes[:, dead], nearest.codes[:, dead])
    factor = inverse_factor(h_of(x))
    torch.testing.assert_close(factor[alive][:, alive], inverse_factor(h_of(x[:, alive])))
    nothing = gptq(weight, torch.zeros(96, 96, dtype=torch.float64), grid)
    assert torch.equal(nothing.codes, nearest.codes)


@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_grids_are_those_of_compressed_tensors(grid: Grid) -> None:
    from compressed_tensors.quantization import QuantizationArgs
    from compressed_tensors.quantization.lifecycle.forward import dequantize, quantize
    from compressed_tensors.quantization.utils import calculate_qparams

    weight, _ = weight_and_inputs(4, outputs=40)
    weight[3, :48] = 0
    strategy = {"strategy": "group", "group_size": grid.group_size} if grid.group_size else {"strategy": "channel"}
    arguments = QuantizationArgs(num_bits=grid.bits, symmetric=grid.symmetric, **strategy)
    made = round_to_nearest(weight, grid)
    groups = weight.unflatten(1, (-1, grid.group_size or 96))
    scales, zeros = calculate_qparams(groups.amin(-1), groups.amax(-1), arguments)
    alive = groups.abs().amax(-1) > 0
    torch.testing.assert_close(made.scales.float()[alive], scales[alive], rtol=2**-11, atol=0)
    assert (made.zeros - zeros)[alive].abs().max() <= (0 if grid.bits < 8 else 1)  # by the rounding of the scale
    codes = quantize(weight, made.scales.float(), made.zeros, arguments, torch.int8)
    assert (codes - made.codes).abs().max() <= 1 and (codes != made.codes).float().mean() < 1e-3  # ties in float32
    back = dequantize(made.codes, made.scales, made.zeros, arguments)
    assert torch.equal(made.apply(weight), back.float())
    step = made.scales.float().repeat_interleave(grid.group_size or 96, dim=1)
    assert bool(((made.apply(weight) - weight).abs() <= 0.51 * step + 1e-3 * weight.abs()).all())


def test_groups_must_divide_a_row_and_the_key_is_the_content() -> None:
    weight, x = weight_and_inputs(6)
    for attempt in (lambda grid: round_to_nearest(weight, grid, "up"), lambda grid: gptq(weight, h_of(x), grid)):
        with pytest.raises(InputError, match=r"96 weights, which groups of 40 do not divide: .* 8, 12, 16, 24, 32, 48"):
            attempt(Grid(4, 40))
    one, again = (round_to_nearest(weight, Grid(4)) for _ in range(2))
    assert one == again and one.key == again.key and hash(one) == hash(again)
    weight[0, 0] += 3
    assert round_to_nearest(weight, Grid(4)).key != one.key
    assert round_to_nearest(weight, Grid(4, scale_type=torch.bfloat16)).key != round_to_nearest(weight, Grid(4)).key
    with pytest.raises(ValueError, match="is stored"):
        one.apply(weight[:5])
