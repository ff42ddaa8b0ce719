"""A chart as a table: the numbers that were drawn, not their places on a scale."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree

import torch

from analysis.figures import analysis as figures
from ui.presenters.chart_table import table


def rows(figure: object, title: str = "Chart") -> list[list[str]]:
    """Head and body of the table, cell by cell."""
    tree = ElementTree.fromstring(table(figure, title))
    region = tree.find("div")
    assert tree.tag == "details" and region is not None and region.attrib["aria-label"] == f"{title} as a table"
    return [["".join(cell.itertext()) for cell in row] for row in tree.iter("tr")]


def test_bars_say_what_is_removed() -> None:
    found = rows(figures.block_influence(torch.tensor([1.0, 0.125]), removed=[1]))
    assert found == [["Block", "Influence (1 - cosine)", "State"], ["0", "1", "kept"], ["1", "0.125", "removed"]]


def test_lines_share_their_places() -> None:
    found = rows(figures.sublayer_influence(torch.tensor([0.5, float("nan")]), torch.tensor([0.25, 2.0])))
    assert found == [["Block", "Attention", "MLP"], ["0", "0.5", "0.25"], ["1", "", "2"]]


def test_numbers_are_those_behind_a_bent_axis() -> None:
    series = {"blocks": ([0, 1], [0.5, -0.25], [0.125, float("inf")]), "mlp": ([1], None, [3.0])}
    found = rows(figures.predicted_and_measured(series))
    assert found[0][0] == "Block" and [words.split(", ")[1] for words in found[0][1:]] == [
        "measured", "predicted", "measured"
    ]  # fmt: skip
    assert found[1:] == [["0", "0.125", "0.5", ""], ["1", "", "-0.25", "3"]]


def test_heat_maps_go_row_by_row() -> None:
    found = rows(figures.head_statistic([torch.tensor([0.5, 0.25]), torch.tensor([2.0])], "entropy"))
    assert found == [["Query head", "Block 0", "Block 1"], ["0", "0.5", "2"], ["1", "0.25", ""]]
    triangle = rows(figures.angular_triangle(torch.tensor([[0.5, 0.25], [0.125, float("nan")]])))
    assert triangle[1:] == [["1", "0.5", "0.125"], ["2", "0.25", ""]]


def test_neurons_are_the_scores_not_their_logarithms() -> None:
    found = rows(figures.neuron_importance({0: torch.tensor([1.0, 2.0, 3.0])}, "Title", steps=3), "Neurons <x>")
    assert found[1:] == [["0", "0.5"], ["50", "1"], ["100", "1.5"]]
