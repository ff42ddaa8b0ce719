"""What the page shows of a session's view: every number labelled, nothing unescaped, nothing out of date unmarked."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from functools import cache

import pytest

from analysis.text import TextError
from surgery.common.jobs import Job
from surgery.evaluation.estimate import Estimate
from surgery.fit.fit import fit
from surgery.recipe.base import ChosenBy
from surgery.recipe.edits import PruneNeurons, RemoveAttention, RemoveBlocks
from surgery.recipe.recipe import Recipe
from surgery.recipe.texts import TextChoice
from surgery.session.analyse import AnalyseView
from surgery.session.compare import Tried
from surgery.session.fit import FitView
from surgery.session.heal import HealView
from surgery.session.history import History
from surgery.session.measure import MeasureView
from surgery.session.state import Target
from surgery.session.view import View
from surgery.structure.structure import dense
from surgery.workbench.open_model import OpenModel
from surgery.workbench.workbench import Workbench
from tests.sessions import changed
from tests.tiny_workbench import open_model
from ui import inputs
from ui.presenters import charts
from ui.presenters import map_widget as map_model
from ui.presenters import recipe as recipe_words
from ui.presenters import status as presenters
from ui.presenters.fit import fit_table
from ui.presenters.text import Html, bytes_text, count_text, number_text
from ui.presenters.tiles import damage, tiles

ESTIMATE = Estimate(
    perplexity=41.2934,
    nll=3.72,
    standard_error=6.94,
    nll_standard_error=0.1,
    dense_perplexity=33.193,
    difference=0.218,
    difference_standard_error=0.022,
    windows=4,
    of_windows=4,
    tokens=1020,
    seconds=1.0,
)


@cache
def _model() -> OpenModel:
    return open_model()


@cache
def _bench() -> Workbench:
    return Workbench()


def view(*edits: object, **changes: object) -> View:
    """A view of the tiny model with some edits; anything can be changed, see `changed`."""
    model, device, target = _model(), _bench().devices.get(Target().device), Target()
    recipe = model.recipe(*edits)
    structure, whole = model.resolve(recipe), dense(model.architecture)
    history = History.start(model.recipe())
    made = View(
        version=1,
        model=model,
        history=history.add(recipe),
        structure=structure,
        dense=whole,
        device=device,
        measure=MeasureView(ESTIMATE, measured=True),
        analyse=AnalyseView(),
        suggest=None,
        scan=None,
        build=None,
        heal=HealView(),
        ship=None,
        fit=FitView(
            fit(structure, device, target.context, target.type), fit(whole, device, target.context, target.type)
        ),
        read=None,
        compare=Tried(),
        locked=(),
        job=None,
        working=False,
        queue=0,
        can_cancel=False,
        error="",
        text=TextChoice(),
        target=target,
    )
    shown = changed(made, **changes)
    return replace(shown, working=shown.job is not None and not shown.job.over)


def nothing() -> View:
    """Before a model is open."""
    empty = dict.fromkeys(("model", "history", "structure", "dense", "fit_now", "fit_dense", "measure_estimate"))
    return view(**empty, measure_measured=False)


def tile(shown: View, name: str) -> str:
    tag = rf'<(div|section) class="ms-(tile|fit) [^"]*" data-tile="{name}".*?(</div></div>|</section>)'
    found = re.search(tag, tiles(shown))
    assert found is not None
    return found[0]


def job(state: str = "running", **changes: object) -> Job:
    made = Job("1", "Analysing", "heavy", state)  # type: ignore[arg-type]
    for name, value in changes.items():
        setattr(made, name, value)
    return made


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 B"), (999, "999 B"), (1000, "1 kB"), (269_030_016, "269.0 MB"), (7.4e9, "7.4 GB"), (3e12, "3000.0 GB"),
     (-2_500_000, "-2.5 MB")],
)  # fmt: skip
def test_sizes(count: float, text: str) -> None:
    assert bytes_text(count) == text


@pytest.mark.parametrize(("count", "text"), [(950, "950"), (134_515_008, "134.5 M"), (7_241_732_096, "7.24 B")])
def test_counts(count: int, text: str) -> None:
    assert count_text(count) == text


@pytest.mark.parametrize(
    ("value", "text"), [(33.1931, "33.193"), (1234.5, "1,234.500"), (2.5e7, "2.50e+07"), (math.inf, "inf")]
)
def test_perplexities(value: float, text: str) -> None:
    assert number_text(value) == text


def test_text_is_escaped_for_html_and_for_templates() -> None:
    assert Html.escape("<b>${x} {{y}} `z`</b>") == (
        "&lt;b&gt;&#36;&#123;x&#125; &#123;&#123;y&#125;&#125; &#96;z&#96;&lt;/b&gt;"
    )
    hostile = "<img src=x onerror=alert(1)> ${alert(1)} {{alert}}"
    for shown in (
        presenters.status(view(error=hostile)),
        presenters.status(view(job=job("failed", error=hostile))),
        presenters.status(view(job=job(message=hostile, progress=0.5))),
        tiles(view(measure_error=hostile)),
        recipe_words.removed_text(view(PruneNeurons(removed={0: (1,)}, chosen_by=ChosenBy(method=hostile[:100])))),
    ):
        assert "<img" not in shown and "${" not in shown and "{{" not in shown and "&lt;img" in shown


def test_every_tile_says_what_its_number_is() -> None:
    shown = view(RemoveBlocks(blocks=(1,)))
    assert "arithmetic" in tile(shown, "parameters")
    assert "measured on 1,020 tokens" in tile(shown, "perplexity")
    assert "arithmetic" in tile(shown, "file")
    assert all("estimated" in tile(shown, name) for name in ("memory", "speed", "fit"))
    assert shown.device.name in tile(shown, "fit")
    assert "41.293 ± 6.94" in tile(shown, "perplexity")
    assert "dense 33.193; loss +0.218 ± 0.022 nats" in tile(shown, "perplexity")


def test_a_number_that_is_out_of_date_is_marked() -> None:
    old = view(measure_measured=False, measure_measuring=True)
    assert 'data-state="stale"' in tile(old, "perplexity") and "out of date, measuring" in tile(old, "perplexity")
    assert "out of date" in tile(view(measure_measured=False), "perplexity")
    part = replace(ESTIMATE, windows=1, tokens=255)
    running = tile(view(measure_measuring=True, measure_estimate=part), "perplexity")
    assert 'data-state="stale"' in running and "window 1 of 4" in running
    assert "stopped: measured on 1 of 4 windows" in tile(view(measure_estimate=part), "perplexity")
    assert 'data-state="current"' in tile(view(), "perplexity")
    assert "measuring" in tile(
        view(measure_estimate=None, measure_measured=False, measure_measuring=True), "perplexity"
    )


def test_an_overflowing_perplexity_is_shown_as_such() -> None:
    wild = replace(ESTIMATE, perplexity=math.inf, nll=900.0, standard_error=math.inf, difference=896.0)
    shown = tile(view(measure_estimate=wild), "perplexity")
    assert ">inf<" in shown and "± inf" not in shown


def test_a_failed_measurement_says_why() -> None:
    shown = tile(view(measure_error="There is not enough memory."), "perplexity")
    assert "There is not enough memory." in shown and "not measured" in shown and 'data-state="failed"' in shown


def test_what_does_not_fit_says_how_much_is_missing() -> None:
    small = _bench().devices.get("esp32-s3-n16r8")
    structure = dense(_model().architecture)
    whole = fit(structure, small, 2**20, "F32")
    shown = tile(view(device=small, fit_now=whole), "fit")
    assert not whole.fits and "Does not fit" in shown and "missing" in shown and 'data-state="bad"' in shown


def test_the_bar_is_to_scale_and_its_parts_are_named() -> None:
    shown = view(RemoveBlocks(blocks=(1,)))
    assert shown.fit.now is not None
    bar = tile(shown, "fit")
    widths = [float(width) for width in re.findall(r"width:([\d.]+)%", bar)]
    now = shown.fit.now
    sizes = [size for size in (now.weights_bytes, now.kv_cache_bytes, now.activation_bytes,
                               now.overhead_bytes) if size]  # fmt: skip
    assert widths == [pytest.approx(max(100 * size / shown.fit.now.capacity_bytes, 0.4), abs=0.01) for size in sizes]
    assert all(bytes_text(size) in bar for size in sizes) and "ms-fit-end" not in bar
    small = _bench().devices.get("esp32-s3-n16r8")
    over = fit(dense(_model().architecture), small, 2**20, "F32")
    end = re.search(r"left:([\d.]+)%", tile(view(device=small, fit_now=over), "fit"))
    assert end is not None and float(end[1]) == pytest.approx(100 * over.capacity_bytes / over.needed_bytes, abs=0.01)


@pytest.mark.parametrize(
    ("now", "block"),
    [({"blocks": [3], "attention": [], "mlp": []}, 3), ({"blocks": [], "attention": [0], "mlp": [0]}, 0),
     ({"blocks": [1, 2], "attention": [], "mlp": []}, None), ({"blocks": [], "attention": [], "mlp": []}, None)],
)  # fmt: skip
def test_the_block_that_a_click_changed(now: dict[str, list[int]], block: int | None) -> None:
    assert map_model.changed_block({"blocks": [], "attention": [], "mlp": []}, now) == block


@pytest.mark.parametrize(
    ("nats", "words"),
    [(-0.1, "no difference"), (0.02, "no difference"), (0.05, "hardly"), (0.2, "noticeable"), (0.5, "suffers"),
     (3.0, "breaks"), (math.inf, "breaks")],
)  # fmt: skip
def test_losses_in_plain_words(nats: float, words: str) -> None:
    assert words in damage(nats)


def test_before_a_model_is_open_everything_can_be_drawn() -> None:
    empty = nothing()
    assert tiles(empty).count('data-state="stale"') == 5
    assert "No model is open" in presenters.status(empty)
    assert fit_table(empty) == recipe_words.removed_text(empty) == ""
    assert map_model.block_map_model(empty)["blocks"] == 0
    assert map_model.decisions(empty) == {"blocks": [], "attention": [], "mlp": []}
    assert map_model.ratios(empty) is None
    assert "before a model is open" in charts.chart_note(empty, Html())


def test_the_fit_table_adds_up_and_labels_every_row() -> None:
    shown = view()
    table = fit_table(shown)
    assert shown.fit.now is not None
    for words in (bytes_text(shown.fit.now.needed_bytes), bytes_text(shown.fit.now.capacity_bytes)):
        assert words in table
    rows = re.findall(r"<tr.*?</tr>", table)
    assert len(rows) == len(shown.fit.now.weights) + 5
    assert all(re.search(r'class="ms-kind">(arithmetic|estimated|from the device file)<', row) for row in rows)
    assert "upper bounds, estimated" in table


def test_errors_are_alerts_and_progress_is_a_progress_bar() -> None:
    assert 'role="alert">Paste some text first.' in presenters.status(view(error="Paste some text first."))
    running = presenters.status(view(job=job(progress=0.42, message="Block 3", started=0.0)))
    assert 'role="progressbar" aria-valuenow="42"' in running and "Block 3" in running and "alert" not in running
    assert "waiting, 2 before it" in presenters.status(view(job=job("queued"), queue=2))
    assert "starting" in presenters.status(view(job=job("queued")))
    assert 'role="alert"' in presenters.status(view(job=job("failed", error="No.")))
    cancelled = presenters.status(view(job=job("cancelled", error="Cancelled.")))
    assert "Analysing was cancelled" in cancelled and "alert" not in cancelled


def test_the_status_names_the_next_step() -> None:
    assert "Press Analyse" in presenters.status(view())
    assert "tiny: llama, 4 blocks" in presenters.status(view())
    assert presenters.next_step(view()) != presenters.next_step(nothing())


def test_the_map_shows_decisions_and_kept_shares() -> None:
    shown = view(RemoveBlocks(blocks=(3,)), RemoveAttention(blocks=(1,)), PruneNeurons(removed={0: tuple(range(40))}))
    assert map_model.decisions(shown) == {"blocks": [3], "attention": [1], "mlp": []}
    model = map_model.block_map_model(shown)
    assert model["width"] == [0.5, 1.0, 1.0, 1.0] and model["heads"] == [1.0] * 4
    assert model["analysed"] is False and model["block"] == [None] * 4


def test_the_words_below_the_map_count_what_is_left() -> None:
    assert "4 blocks kept, 0 removed; expansion ratio 111.1%." in recipe_words.removed_text(view())
    origin = ChosenBy(method="cfsp_fine")
    narrow = view(PruneNeurons(removed=dict.fromkeys(range(4), tuple(range(40))), chosen_by=origin))
    assert "expansion ratio 55.6%, neurons chosen by CFSP fine-grained." in recipe_words.removed_text(narrow)
    assert "2 different ones" in recipe_words.removed_text(view(PruneNeurons(removed={0: (1,)})))


def test_the_slider_shows_the_ratio_that_was_asked_for_if_it_is_the_one_in_force() -> None:
    def narrowed(removed: int, **budget: float) -> View:
        origin = ChosenBy(method="maw", budget=budget)  # type: ignore[arg-type]
        return view(PruneNeurons(removed=dict.fromkeys(range(4), tuple(range(removed))), chosen_by=origin))

    assert map_model.ratios(view()) == (112, 112)
    assert map_model.ratios(view(analyse_pending_ratio=0.6)) == (60, 112)
    assert map_model.ratios(narrowed(40)) == (56, 112)
    assert map_model.ratios(narrowed(40, expansion_ratio=0.5, divisor=1)) == (56, 112), "that would be another width"
    assert map_model.ratios(narrowed(48, expansion_ratio=0.5, divisor=16)) == (50, 112)
    assert map_model.ratios(narrowed(48, expansion_ratio=0.46, divisor=32)) == (46, 112), "rounded to the divisor"
    assert map_model.ratios(narrowed(40, expansion_ratio=0.5, divisor=0)) == (56, 112)
    assert map_model.ratios(narrowed(40, expansion_ratio="x" * 50)) == (56, 112)  # type: ignore[arg-type]


def test_a_screen_reader_is_told_what_changes_and_no_numbers_that_tick() -> None:
    assert "Press Analyse" in presenters.spoken(view())
    told = {presenters.spoken(view(job=job(progress=share / 50, message=f"Block {share}"))) for share in range(50)}
    assert told == {f"Analysing, {quarter}%" for quarter in (0, 25, 50, 75)}
    assert presenters.spoken(view(job=job("queued"), queue=2)) == "Analysing: waiting, 2 before it"
    assert presenters.spoken(view(job=job("cancelled"))) == "Analysing was cancelled; start again."
    for failed in (view(error="It failed."), view(job=job("failed", error="It failed."))):
        assert presenters.spoken(failed) == "" and 'role="alert"' in presenters.status(failed)
    assert 'role="status"' not in presenters.status(view(job=job()))
    done = view(measure_estimate=replace(ESTIMATE, windows=ESTIMATE.of_windows), measure_measured=True)
    assert presenters.spoken(done).startswith(f"Perplexity {number_text(ESTIMATE.perplexity)}. ")
    assert "Perplexity" not in presenters.spoken(changed(done, measure_measured=False))


def test_charts_before_the_analysis_are_a_sentence() -> None:
    for name in charts.NAMES:
        figure = charts.figure(name, view(), "cfsp_fine", "entropy")
        assert figure is None
    assert "press Analyse" in charts.chart_note(view(), Html())
    assert "when the analysis is done" in charts.chart_note(view(job=job()), Html())
    assert charts.chart_note(view(), Html("<table>")) == "<table>"


def test_scores_of_the_weights_alone_can_be_drawn_at_once() -> None:
    assert charts.figure("neurons", view(), "maw", "entropy") is not None
    assert charts.key("neurons", view(), "maw", "entropy") != charts.key("neurons", view(), "l2", "entropy")
    assert charts.key("neurons", view(), "maw", "entropy") == charts.key("neurons", view(), "maw", "distance")


def test_a_drawn_chart_of_blocks_follows_the_decisions() -> None:
    removed = view(RemoveBlocks(blocks=(1,)))
    assert charts.key("blocks", view(), "maw", "x") != charts.key("blocks", removed, "maw", "x")
    assert charts.key("heads", view(), "maw", "x") == charts.key("heads", removed, "maw", "x")


@pytest.mark.parametrize(
    "kept",
    [None, 7, [], "x", {}, {"source": 3, "recipe": 5, "job": []}, {"source": "", "recipe": {"schema": "other"}},
     {"source": "x" * 999, "recipe": {"edits": [[[[]]]]}}],
)  # fmt: skip
def test_a_browser_that_remembers_nonsense_opens_the_default_model(kept: object) -> None:
    assert inputs.remembered(kept) == ("default", None, None, None)


def test_what_is_kept_can_be_remembered() -> None:
    shown = view(RemoveBlocks(blocks=(1,)), job=job())
    source, revision, recipe, running = inputs.remembered(inputs.to_keep(shown))
    assert (source, revision, running) == ("tiny", None, "1")
    assert shown.history is not None and recipe == shown.history.current
    assert inputs.to_keep(view(job=job("done")))["job"] is None


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        (("pasted", "", None, 256, 4), "Paste some text"),
        (("pasted", " \n", None, 256, 4), "Paste some text"),
        (("pasted", "x" * (2**20 + 1), None, 256, 4), "upload it"),
        (("file", "", None, 256, 4), "Upload a text file"),
        (("/etc/passwd", "", None, 256, 4), "Choose a text"),
        ((None, "", None, 256, 4), "Choose a text"),
        (("embedded", "", None, 1, 4), "Tokens a window.* from 2"),
        (("embedded", "", None, None, 4), "Tokens a window.* from 2"),
        (("embedded", "", None, float("inf"), 4), "Tokens a window.* from 2"),
        (("embedded", "", None, float("nan"), 4), "Tokens a window.* from 2"),
        (("embedded", "", None, 16.5, 4), "Tokens a window.* from 2"),
        (("embedded", "", None, 256, 0), "Windows.* from 1"),
        (("embedded", "", None, 2**16, 3), "at most"),
    ],
)
def test_texts_that_make_no_sense_are_refused(fields: tuple, said: str) -> None:
    with pytest.raises((TextError, ValueError), match=said):
        inputs.text_choice(*fields)


def test_texts_and_targets_that_make_sense() -> None:
    assert inputs.text_choice("embedded", "", None, 256, 4) == TextChoice("embedded", 256, 4, shorten=True)
    assert inputs.text_choice("pasted", "words", None, 64, 1) == TextChoice("pasted", 64, 1, content="words")
    assert inputs.text_choice("file", "", "/tmp/a.txt", 64, 1) == TextChoice("/tmp/a.txt", 64, 1)
    assert inputs.text_choice("hub:a/b", "", None, 64, 1).source == "hub:a/b"
    assert inputs.target("x", 512, "F16") == Target("x", 512, "F16")
    for context in (None, 0, -1, 2**31 + 1, 0.5, float("inf"), float("nan")):
        with pytest.raises(ValueError, match="context"):
            inputs.target("x", context, "F16")


def test_the_slider_at_its_maximum_asks_for_everything() -> None:
    assert inputs.ratio(200, 267) == 2.0 and inputs.ratio(267, 267) > 1000 and inputs.ratio(300, 267) > 1000
    for wrong in (0, -5, math.inf, math.nan):
        with pytest.raises(ValueError, match="expansion ratio"):
            inputs.ratio(wrong, 267)


def test_a_recipe_of_this_model_names_it() -> None:
    assert isinstance(_model().recipe(), Recipe) and _model().recipe().model.fingerprint
