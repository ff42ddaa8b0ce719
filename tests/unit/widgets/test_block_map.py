"""The block map's check of what a browser posts, and the files it is made of."""

import re

import gradio as gr
import pytest

from ui.widgets.block_map import BlockMap, clean, nothing_removed


def test_a_clean_value_is_unchanged() -> None:
    value = {"blocks": [1, 4], "attention": [0, 2], "mlp": [0, 5]}
    assert clean(value, 6) == value


def test_nothing_removed_is_clean_and_fresh_each_time() -> None:
    assert clean(nothing_removed(), 0) == nothing_removed()
    nothing_removed()["blocks"].append(1)
    assert nothing_removed() == {"blocks": [], "attention": [], "mlp": []}


def test_indices_come_back_unique_and_sorted() -> None:
    value = {"blocks": [3, 1, 3], "attention": [2, 0, 2], "mlp": [5, 4]}
    assert clean(value, 6) == {"blocks": [1, 3], "attention": [0, 2], "mlp": [4, 5]}


def test_parts_of_a_removed_block_are_not_listed() -> None:
    value = {"blocks": [2], "attention": [1, 2], "mlp": [2]}
    assert clean(value, 3) == {"blocks": [2], "attention": [1], "mlp": []}


def test_both_parts_removed_stay_two_parts() -> None:
    value = {"blocks": [], "attention": [1], "mlp": [1]}
    assert clean(value, 3) == value


def test_the_posted_value_is_left_alone() -> None:
    value = {"blocks": [2, 1], "attention": [2], "mlp": []}
    clean(value, 3)
    assert value == {"blocks": [2, 1], "attention": [2], "mlp": []}


@pytest.mark.parametrize(
    "value",
    [
        None,
        "",
        7,
        [],
        {},
        {"blocks": [], "attention": []},
        {"blocks": [], "attention": [], "mlp": [], "heads": []},
        {"blocks": None, "attention": [], "mlp": []},
        {"blocks": "12", "attention": [], "mlp": []},
        {"blocks": {"0": 1}, "attention": [], "mlp": []},
        {"blocks": [True], "attention": [], "mlp": []},
        {"blocks": [], "attention": [1.0], "mlp": []},
        {"blocks": [], "attention": ["1"], "mlp": []},
        {"blocks": [], "attention": [], "mlp": [None]},
        {"blocks": [], "attention": [], "mlp": [[1]]},
        {"blocks": [-1], "attention": [], "mlp": []},
        {"blocks": [6], "attention": [], "mlp": []},
        {"blocks": [], "attention": [6], "mlp": []},
        {"blocks": [], "attention": [], "mlp": [10**30]},
        {"blocks": [], "attention": [], "mlp": [float("nan")]},
    ],
)
def test_anything_malformed_is_refused_in_one_sentence(value: object) -> None:
    with pytest.raises(gr.Error) as caught:
        clean(value, 6)
    assert re.fullmatch(r"[A-Z][^.]*\.", caught.value.message)


def test_a_model_without_blocks_refuses_every_index() -> None:
    with pytest.raises(gr.Error):
        clean({"blocks": [0], "attention": [], "mlp": []}, 0)


def test_the_component_checks_against_its_own_model() -> None:
    widget = BlockMap(model={"blocks": 4})
    posted = {"blocks": [3], "attention": [3, 1], "mlp": []}
    assert widget.preprocess(posted) == {"blocks": [3], "attention": [1], "mlp": []}
    assert widget.preprocess(None) == nothing_removed()
    assert widget.postprocess(None) == nothing_removed()
    with pytest.raises(gr.Error):
        widget.preprocess({"blocks": [4], "attention": [], "mlp": []})


def test_the_model_is_a_prop_and_only_a_prop() -> None:
    config = BlockMap(model={"blocks": 4}).get_config()
    assert config["props"] == {"model": {"blocks": 4}}
    assert config["value"] == nothing_removed()
    assert "model" not in config


def test_the_template_interpolates_nothing_and_fetches_nothing() -> None:
    config = BlockMap().get_config()
    for kind in ("html_template", "css_template", "js_on_load"):
        assert config[kind]
        assert "${" not in config[kind] and "{{" not in config[kind]
        assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)", config[kind])
