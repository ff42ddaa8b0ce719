"""The figures show what they were given, with readable axes and nothing that Plotly cannot draw."""

from __future__ import annotations

import json
import math

import pytest
import torch

from analysis.figures import analysis as figures


def _round_trip(figure: object) -> dict:
    return json.loads(figure.to_json())  # type: ignore[attr-defined]


def test_block_influence_marks_what_is_removed() -> None:
    figure = figures.block_influence(torch.tensor([1.0, 0.1, 0.02, 0.3]), removed=[2])
    bar = figure.data[0]
    assert list(bar.y) == pytest.approx([1.0, 0.1, 0.02, 0.3])
    assert list(bar.marker.pattern.shape) == ["", "", "x", ""] and list(bar.customdata)[2] == "removed"
    assert bar.marker.opacity[2] < bar.marker.opacity[0]


def test_logarithmic_axes_have_few_labels_inside_their_range() -> None:
    for values in ([1.0, 0.02], [1e-6, 1.0], [0.5, 0.6], [0.011, 0.012]):
        axis = figures.block_influence(torch.tensor(values)).layout.yaxis
        low, high = axis.range
        assert axis.type == "log" and 1 <= len(axis.tickvals) <= 11
        assert all(low <= math.log10(tick) <= high for tick in axis.tickvals)
        assert len(axis.tickvals) == len(axis.ticktext)
    assert list(figures.block_influence(torch.tensor([1.0, 1e-4])).layout.yaxis.ticktext) == [
        "0.0001", "0.001", "0.01", "0.1", "1"
    ]  # fmt: skip


def test_influences_that_are_not_positive_do_no_harm() -> None:
    figure = figures.block_influence(torch.tensor([0.0, -1e-7, float("nan")]))
    assert figure.layout.yaxis.range[0] < figure.layout.yaxis.range[1]
    _round_trip(figure)


def test_sublayers_are_two_named_lines_told_apart_by_more_than_colour() -> None:
    figure = figures.sublayer_influence(torch.tensor([0.5, 0.1]), torch.tensor([0.4, 0.2]))
    assert [trace.name for trace in figure.data] == ["Attention", "MLP"]
    assert figure.data[0].marker.symbol != figure.data[1].marker.symbol


def test_the_triangle_names_the_runs() -> None:
    nan = float("nan")
    figure = figures.angular_triangle(torch.tensor([[0.1, 0.2, 0.3], [0.1, 0.2, nan], [0.1, nan, nan]]))
    heat = figure.data[0]
    assert heat.customdata[0][1] == "1 block" and heat.customdata[1][0] == "to 1 (2 blocks)"
    assert heat.z[2][0] == pytest.approx(0.3) and heat.z[2][1] is None
    _round_trip(figure)


def test_neuron_colours_are_not_flattened_by_an_outlier() -> None:
    scores = {block: torch.rand(500, generator=torch.Generator().manual_seed(block)) + 0.5 for block in range(10)}
    scores[3][7] = 1e6
    heat = figures.neuron_importance(scores, "Method").data[0]
    cells = [cell for row in heat.z for cell in row]
    assert min(cells) <= heat.zmin < heat.zmax < max(cells)
    assert heat.zmax < 1.5, "the 99th percentile, not the outlier"
    assert max(heat.customdata[-1]) > 100, "the hover text tells the real multiple"


def test_equal_or_zero_scores_can_be_drawn() -> None:
    for values in (torch.ones(16), torch.zeros(16)):
        heat = figures.neuron_importance({0: values, 2: values}, "Method").data[0]
        assert heat.zmin < heat.zmax and list(heat.x) == [0, 2]
        _round_trip(heat)


def test_signed_scores_are_drawn_in_standard_deviations() -> None:
    generator = torch.Generator().manual_seed(0)
    scores = {block: 5 * torch.randn(400, generator=generator) + 3 for block in range(6)}
    figure = figures.neuron_importance(scores, "Method")
    heat = figure.data[0]
    assert -3.5 < heat.zmin < -1.5 and 1.5 < heat.zmax < 3.5 and "deviations" in heat.hovertemplate
    assert heat.customdata[0][0] == pytest.approx(float((scores[0].min() - scores[0].mean()) / scores[0].std()))
    _round_trip(figure)


def test_predictions_are_drawn_beside_measurements() -> None:
    nan = float("nan")
    pairs = {"blocks": ([0, 1, 3], [0.1, -0.4, nan], [0.3, 0.2, 9.0]), "mlp": ([1, 2], None, [float("inf"), 0.0])}
    figure = figures.predicted_and_measured(pairs)
    assert [trace.name for trace in figure.data] == ["Block, measured", "Block, predicted", "MLP, measured"]
    assert list(figure.data[1].x) == [0, 1, 3] and list(figure.data[1].customdata) == [0.1, -0.4, None]
    assert figure.data[1].y[2] is None and figure.data[1].y[1] < 0 < figure.data[1].y[0] < figure.data[0].y[0]
    assert list(figure.data[2].y) == [None, 0.0]
    assert figure.data[0].line.color != figure.data[2].line.color
    _round_trip(figure)
    assert len(figures.predicted_and_measured({}).data) == 0


def test_heads_of_blocks_without_attention_are_blank() -> None:
    figure = figures.head_statistic([torch.tensor([1.0, 2.0]), torch.zeros(0)], "entropy")
    assert [row[1] for row in figure.data[0].z] == [None, None] and figure.data[0].z[1][0] == 2.0
    assert "entropy" in figure.layout.title.text and "entropy" in figure.data[0].hovertemplate


def test_every_figure_is_transparent_and_asks_for_no_font_of_its_own() -> None:
    figure = figures.block_influence(torch.tensor([0.1]))
    assert figure.layout.paper_bgcolor == figure.layout.plot_bgcolor == "rgba(0,0,0,0)"
    assert figure.layout.font.family.startswith("system-ui")
