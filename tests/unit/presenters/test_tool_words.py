"""What the page says of suggestions, compensations, scans and builds; which fields go with which method."""

from __future__ import annotations

import math
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from analysis.figures import analysis as figures
from analysis.importance.predictions import Changes, Predictions, rank_correlation
from surgery.compensation.compensator import Compensated, Entry
from surgery.errors import InputError
from surgery.evaluation.scan import Scan
from surgery.pruning import catalogue
from surgery.pruning.budget import AMOUNTS, Budget, Rules
from surgery.pruning.suggest import suggest
from surgery.recipe.base import ChosenBy, TextReference
from surgery.recipe.edits import (
    ArrangeBlocks,
    Compensate,
    MergeKvHeads,
    PruneHeads,
    PruneHidden,
    PruneKvGroups,
    PruneNeurons,
    RemoveBlocks,
)
from surgery.recipe.texts import TextChoice
from surgery.session.scan import Scanned
from surgery.session.view import View
from surgery.shipping.download import Archive
from tests.sessions import changed
from tests.unit.presenters.test_presenters import ESTIMATE, job, tile, view
from ui import inputs
from ui.presenters import charts
from ui.presenters import recipe as recipe_words
from ui.presenters import ship as ship_words
from ui.presenters import status as presenters
from ui.presenters import suggest_form as forms
from ui.presenters.compensate import compensation_text
from ui.presenters.scan import scan_text
from ui.presenters.text import Html, bytes_text

TEXT = TextReference(source="embedded", fingerprint="x", window=16, windows=4)
LOCKS = {"protect_blocks"}  # the map has them, not the form
NARROW = PruneNeurons(removed=dict.fromkeys(range(4), (1, 2)))


def test_the_menu_lists_the_whole_catalogue_by_what_goes() -> None:
    listed = forms.methods()
    assert {name for _, name in listed} == {item.name for item in catalogue.everything()}
    kinds = [words.partition(":")[0] for words, _ in listed]
    assert list(dict.fromkeys(kinds)) == [kind.title for kind in catalogue.KINDS.values()], "each kind in one run"
    assert len({words for words, _ in listed}) == len(listed)


@pytest.mark.parametrize("item", catalogue.everything(), ids=lambda item: item.name)
def test_a_form_has_the_fields_of_its_method_and_makes_what_the_core_takes(item: Any) -> None:
    for unit in catalogue.KINDS[item.kind].budgets:
        form = forms.form(item.name, unit)
        assert form.unit == unit and {key for _, key in form.units} == set(catalogue.KINDS[item.kind].budgets)
        assert form.rules - {"divisor"} == set(catalogue.rules_of(item)) - LOCKS
        assert item.source in form.note
        amounts = {name: amount.value or "64" for name, amount in forms.AMOUNTS.items()}
        budget, rules = inputs.suggestion(item.name, unit, amounts, {})
        assert budget.given() == unit and rules.note(item.name, catalogue.rules_of(item)) is not None
    assert forms.form(item.name, "nonsense").unit == catalogue.KINDS[item.kind].budgets[0]


def test_the_forms_know_every_amount_and_rule() -> None:
    assert set(forms.AMOUNTS) == set(AMOUNTS)
    assert set(forms.RULES) == {rule.name for rule in fields(Rules)} - LOCKS | {"divisor"}
    assert {key for _, key in forms.UNITS} == {"kv_groups", "query_heads"}


def test_a_suggestion_is_read_from_the_fields_that_go_with_it() -> None:
    values = {"protect_first": 1.0, "protect_last": 0, "no_neighbours": True, "seed": 9, "divisor": 8,
              "allocation": "uniform", "sharpness": 13.1, "unit": "query_heads", "keep_candidates": None}  # fmt: skip
    read = inputs.suggestion("block_influence", "blocks", {"blocks": " 3 "}, values)
    assert read == (Budget(blocks=3), Rules(protect_first=1, no_neighbours=True))
    read = inputs.suggestion("cfsp_fine", "expansion_ratio", {"expansion_ratio": "213%"}, values)
    assert read == (Budget(expansion_ratio=2.13, divisor=8), Rules(protect_first=1))
    read = inputs.suggestion("random_heads", "percent", {"percent": "12.5"}, values)
    assert read == (Budget(percent=12.5), Rules(protect_first=1, unit="query_heads", seed=9))
    spread = values | {"allocation": "cfsp", "sharpness": 5}
    assert inputs.suggestion("maw", "params", {"params": "-20%"}, spread)[1].sharpness == 5
    greedy = values | {"keep_candidates": 4, "per_parameter": True}
    read = inputs.suggestion("greedy_sublayers", "blocks", {"blocks": "3"}, greedy)[1]
    assert (read.keep_candidates, read.per_parameter, read.no_neighbours) == (4, True, True)
    assert inputs.suggestion("gqa_mean", "kv_heads", {"kv_heads": "1"}, {})[0] == Budget(kv_heads=1)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        (("nobody", "blocks", {"blocks": "1"}, {}), "no method"),
        (("block_influence", "width", {"width": "1"}, {}), "Choose a budget"),
        (("block_influence", "", {}, {}), "Choose a budget"),
        (("block_influence", "blocks", {"blocks": ""}, {}), "Fill in"),
        (("block_influence", "blocks", {}, {}), "Fill in"),
        (("block_influence", "blocks", {"blocks": "-1"}, {}), "whole number"),
        (("block_influence", "blocks", {"blocks": "1.5"}, {}), "whole number"),
        (("block_influence", "blocks", {"blocks": "٣"}, {}), "whole number"),
        (("block_influence", "blocks", {"blocks": "1" * 5000}, {}), "whole number"),
        (("maw", "percent", {"percent": "many"}, {}), "number of percent"),
        (("maw", "percent", {"percent": "nan"}, {}), "number of percent"),
        (("maw", "percent", {"percent": "1"}, {"divisor": 1.5}), "“Divisor” must be a whole number"),
        (("maw", "percent", {"percent": "1"}, {"divisor": True}), "“Divisor” must be a whole number"),
        (("maw", "percent", {"percent": "1"}, {"protect_first": math.nan}), "whole number"),
        (("maw", "percent", {"percent": "1"}, {"allocation": "nowhere"}), "from the list"),
    ],
)
def test_a_form_that_makes_no_sense_is_refused_in_a_sentence(fields: tuple, said: str) -> None:
    with pytest.raises(InputError, match=said):
        inputs.suggestion(*fields)


def test_the_page_does_not_speak_of_the_command_line() -> None:
    model = view().model
    assert model is not None
    for name, budget, rules in (
        ("gqa_mean", Budget(kv_heads=0), Rules()),
        ("block_influence", Budget(width=1), Rules()),
        ("maw", Budget(percent=10), Rules(same_width=True, allocation="global")),
    ):
        with pytest.raises(InputError) as error:
            suggest(model, name, budget, rules)
        assert "--" in str(error.value)
        assert "--" not in presenters.status(view(error=str(error.value)))
    assert forms.in_page_words("Use --something-else.") == "Use --something-else."


def test_what_the_map_cannot_show_is_said() -> None:
    def words(*edits: object) -> str:
        return recipe_words.removed_text(view(*edits))

    assert "1 KV group removed;" in words(PruneKvGroups(removed={2: (0,)}))
    heads = PruneHeads(removed={0: (0, 3, 6)}, chosen_by=ChosenBy(method="michel"))
    assert "3 query heads removed (by Head importance (Michel));" in words(heads)
    assert "KV heads merged to 1 in 2 blocks (mean);" in words(MergeKvHeads(blocks=(1, 2), kv_heads=1))
    assert "2 of 72 channels removed;" in words(PruneHidden(removed=(0, 1)))
    assert "blocks arranged as 0-1, 1-2, 2-3;" in words(ArrangeBlocks(order=(0, 1, 1, 2, 2, 3)))
    assert "1 removed (by Magnitude);" in words(
        RemoveBlocks(blocks=(1,), chosen_by=ChosenBy(method="magnitude_blocks"))
    )
    how = (Compensate(how="least_squares", text=TEXT), Compensate(how="linear_patch", text=TEXT))
    assert words(NARROW, *how).endswith("; compensated by least squares and linear patch.</p>")
    assert "108.3% to 111.1%, 2 different ones" in words(PruneNeurons(removed={0: (1, 2)}))
    many = words(ArrangeBlocks(order=(0,) * 40)).partition("arranged as ")[2].partition(";")[0]
    assert many.endswith("…") and len(many) < 60
    hostile = "<img src=x onerror=alert(1)>${x}"
    assert "<img" not in words(RemoveBlocks(blocks=(1,), chosen_by=ChosenBy(method=hostile)))


def entry(block: int, part: str, applied: bool, before: float, after: float) -> Entry:
    return Entry(block, part, applied, 0.01 if applied else None, before, after, before, after)


def compensated(*entries: Entry, hows: tuple[str, ...] = ("least_squares",), **changes: object) -> View:
    shown = view(NARROW, *(Compensate(how=how, text=TEXT) for how in hows))  # type: ignore[arg-type]
    assert shown.structure is not None
    found = Compensated(replace(shown.structure, compensations=()), entries)
    return changed(shown, **({"measure_compensated": found} | changes))


def test_what_a_compensation_reached_is_said_in_words() -> None:
    entries = (entry(0, "mlp", True, 0.4, 0.1), entry(1, "mlp", False, 0.2, 0.2), entry(2, "run", True, 0.8, 0.3))
    said = compensation_text(compensated(*entries, hows=("least_squares", "linear_patch")))
    assert "Least squares: applied in 1 of 2 places, where it helps; mean error 30% → 15% of the output." in said
    assert "Linear patch: applied in 1 of 1 place, where it helps; mean error 80% → 30% of the output." in said
    assert "64 tokens of the embedded text" in said and said.count("<tr>") == 4 and "left out" in said
    assert "nothing is narrowed" in compensation_text(compensated())
    assert "no run of removed blocks" in compensation_text(compensated(hows=("linear_patch",)))
    assert "Bias: added in 4 places." in compensation_text(compensated(hows=("bias",)))
    assert compensation_text(view()) == ""


def test_a_compensation_that_is_not_computed_is_said_everywhere() -> None:
    running = compensated(
        measure_compensated=None, measure_compensating=True, measure_measuring=True, measure_measured=False
    )
    assert "out of date, compensating" in tile(running, "perplexity")
    assert "Being computed on 64 tokens" in compensation_text(running)
    missing = compensated(measure_compensated=None, measure_measured=False, job=job("cancelled", title="Compensating"))
    assert missing.uncompensated and not running.uncompensated and not compensated().uncompensated
    assert "its compensation is not computed" in tile(missing, "perplexity")
    assert 'data-state="stale"' in tile(changed(missing, measure_estimate=None), "perplexity")
    assert "the recipe is kept: compute it" in presenters.status(missing)
    assert "not computed" in compensation_text(missing)


def test_a_hostile_source_is_escaped() -> None:
    hostile = TextReference(source="<img src=x>${x}", fingerprint="x", window=16, windows=4)
    shown = view(NARROW, Compensate(how="bias", text=hostile))
    said = compensation_text(changed(shown, measure_compensating=True))
    assert "<img" not in said and "${" not in said


def scanned(predicted: bool = True, text: TextChoice = TextChoice()) -> Scanned:
    rises = {"blocks": [2.0, 0.1, -0.2, 0.3], "mlp": [1.0, None, 0.2, 0.5]}
    rows = {kind: [None if rise is None else replace(ESTIMATE, difference=rise) for rise in found]
            for kind, found in rises.items()}  # fmt: skip
    first = Changes(*(torch.tensor([1.0, 0.2, 0.3, 0.1]) for _ in range(3)), [], [])
    second = Changes(*(torch.tensor([3.0, 0.2, -0.1, 0.5]) for _ in range(3)), [], [])
    model = view().model
    assert model is not None
    scan = Scan(ESTIMATE, rows, 1.0)  # type: ignore[arg-type]
    return Scanned(model.loaded.fingerprint, text, scan, Predictions(first, second) if predicted else None)


def test_predicted_stands_beside_measured_with_the_rank_correlation() -> None:
    said = scan_text(scanned())
    expected = rank_correlation(torch.tensor([1.0, 0.2, 0.3, 0.1]), torch.tensor([2.0, 0.1, -0.2, 0.3]))
    assert f"blocks 1.00 (first order {expected:.2f}), MLPs 1.00 (first order 0.50)" in said
    assert "measured on 1,020 tokens" in said
    assert "predictions are missing" in scan_text(scanned(predicted=False))
    assert scan_text(None) == ""
    figure = charts.figure("predicted", view(scan=scanned()), "maw", "x")
    assert [trace.name for trace in figure.data] == [
        "Block, measured", "Block, predicted", "MLP, measured", "MLP, predicted"
    ]  # fmt: skip
    assert list(figure.data[0].customdata) == [2.0, 0.1, -0.2, 0.3] and list(figure.data[2].x) == [0, 2, 3]
    assert list(figure.data[3].customdata) == pytest.approx([3.0, -0.1, 0.5])
    assert len(charts.figure("predicted", view(scan=scanned(False)), "maw", "x").data) == 2
    assert charts.figure("predicted", view(), "maw", "x") is None
    assert "measure every removal" in charts.chart_note(view(), Html(), "predicted")


def test_the_scale_of_the_chart_keeps_order_and_sign() -> None:
    values = [-3.0, -0.02, 0.0, 0.001, 0.02, 1.0, 8.0]
    figure = figures.predicted_and_measured({"blocks": (list(range(7)), values, values)})
    bent = list(figure.data[0].y)
    assert bent == sorted(bent) and bent[2] == 0 and bent[1] == -bent[4]
    ticks = figure.layout.yaxis
    assert set(zip(ticks.tickvals, ticks.ticktext, strict=True)) >= {(0.0, "0"), (bent[5], "1"), (bent[0], "-3")}


def test_a_drawn_scan_is_drawn_again_when_there_is_another() -> None:
    one, other = scanned(), scanned(False)
    keys = [charts.key("predicted", view(scan=found), "maw", "x") for found in (one, one, other, None)]
    assert keys[0] == keys[1] and keys[0] != keys[2] and keys[3] != keys[0]


def test_scans_of_one_text_are_joined() -> None:
    one = scanned()
    blocks = replace(one, scan=replace(one.scan, removals={"blocks": one.scan.removals["blocks"]}))
    mlp = replace(one, scan=replace(one.scan, removals={"mlp": one.scan.removals["mlp"]}), predicted=None)
    joined = mlp.joined(blocks)
    assert set(joined.scan.removals) == {"blocks", "mlp"} and joined.predicted is blocks.predicted
    assert replace(mlp, text=TextChoice(windows=9)).joined(blocks).scan is mlp.scan


def test_a_build_says_its_size_before_and_what_it_is_afterwards() -> None:
    before = view(RemoveBlocks(blocks=(1,)))
    assert before.structure is not None and before.history is not None
    size = bytes_text(4 * before.structure.parameters)
    assert f"about {size}" in ship_words.build_text(before) and "in float32" in ship_words.build_text(before)
    packed = Archive(Path("/x/tiny-1.zip"), "tiny-1", before.history.current.key, 1_234_567, 5_000_000, True)
    after = replace(before, build=packed)
    assert "Built: 1.2 M parameters, 5.0 MB; transformers loads it as it is." in ship_words.build_text(after)
    assert ship_words.build_download(after)[1] == "Download tiny-1.zip (5.0 MB)" and ship_words.build_download(
        before
    ) == (None, "")
    mixed = replace(before, build=replace(packed, plain=False, recipe="another"))
    assert "trust_remote_code=True" in ship_words.build_text(mixed) and "earlier recipe" in ship_words.build_text(mixed)
    assert size in ship_words.build_text(mixed), "what the recipe in force would be"
