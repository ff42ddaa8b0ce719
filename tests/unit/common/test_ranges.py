"""Compact index sets: what they stand for, their round trip, and what is refused."""

from __future__ import annotations

import random

import pytest

from surgery.common.ranges import (
    check_blocks,
    format_ranges,
    format_runs,
    length,
    parse_blocks,
    parse_ranges,
    runs,
)
from surgery.errors import InputError


@pytest.mark.parametrize(
    ("text", "indices"),
    [
        ("0", (0,)),
        ("3-7,12", (3, 4, 5, 6, 7, 12)),
        ("13-14", (13, 14)),
        ("20,22", (20, 22)),
        ("5-5", (5,)),
        ("3 - 5, 9", (3, 4, 5, 9)),
        ("0-1,2-3", (0, 1, 2, 3)),
    ],
)
def test_a_range_stands_for_its_indices(text: str, indices: tuple[int, ...]) -> None:
    assert parse_ranges(text) == indices
    assert length(text) == len(indices)


@pytest.mark.parametrize(
    ("indices", "text"),
    [([3, 4, 5, 6, 7, 12], "3-7,12"), ([2], "2"), ([1, 2], "1-2"), ([7, 3, 3, 5], "3,5,7"), ([], "")],
)
def test_the_compact_form_is_the_shortest(indices: list[int], text: str) -> None:
    assert format_ranges(indices) == text


def test_random_sets_survive_the_round_trip() -> None:
    source = random.Random(20)
    for _ in range(500):
        bound = source.choice([2, 10, 100, 5000])
        chosen = sorted(source.sample(range(bound), source.randint(1, bound)))
        text = format_ranges(chosen)
        assert parse_ranges(text) == tuple(chosen)
        assert format_ranges(parse_ranges(text)) == text
        assert length(text) == len(chosen)


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        ",",
        "1,,2",
        "a",
        "-1",
        "1-",
        "-",
        "1-2-3",
        "0x3",
        "1.5",
        "1e3",
        "3\n",
        "1 2",
        "1;2",
        "٣",
        "³",
        "+1",
        "1_0",
    ],
)
def test_what_is_not_a_range_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="not a range"):
        parse_ranges(text)


@pytest.mark.parametrize("text", ["3,3", "4,3", "5-3", "3-5,4", "3-5,5", "0-3,2-6"])
def test_repeats_and_other_orders_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="ascending"):
        parse_ranges(text)


@pytest.mark.parametrize("text", ["0-999999999", "0-9999999", "9999999", "0-" + "9" * 5000, "9" * 5000])
def test_huge_ranges_are_refused_at_once(text: str) -> None:
    with pytest.raises(ValueError) as caught:
        parse_ranges(text)
    assert len(str(caught.value)) < 200


@pytest.mark.parametrize(
    ("order", "found", "words"),
    [
        ([], [], []),
        ([5], [(5, 5)], ["5"]),
        ([0, 1, 2, 2, 3, 5], [(0, 2), (2, 3), (5, 5)], ["0-2", "2-3", "5"]),
        ([3, 2, 1], [(3, 3), (2, 2), (1, 1)], ["3", "2", "1"]),
    ],
)
def test_an_order_is_cut_into_runs(order: list[int], found: list[tuple[int, int]], words: list[str]) -> None:
    assert runs(order) == runs(iter(order)) == found
    assert format_runs(order) == words


def test_blocks_are_a_range_or_none() -> None:
    assert parse_blocks("3,5-7") == (3, 5, 6, 7) and parse_blocks("  ") == ()
    with pytest.raises(InputError, match=r"These are no blocks: .*'3,1'.*ascending.*\.$"):
        parse_blocks("3,1")


@pytest.mark.parametrize("blocks", [(4,), (0, 9), (-1,)])
def test_blocks_that_are_not_there_are_refused_in_the_callers_words(blocks: tuple[int, ...]) -> None:
    check_blocks((), 0, "")
    check_blocks((0, 3), 4, "")
    with pytest.raises(InputError, match=r"^Only the blocks 0 to 3 can be locked\.$"):
        check_blocks(blocks, 4, "Only the blocks 0 to {last} can be locked.")
