"""The block detail's check of what a browser posts, and the files it is made of."""

import re

import gradio as gr
import pytest

from ui.widgets.block_detail import BlockDetail, clean, no_block


def test_a_clean_value_is_unchanged_and_others_are_sorted() -> None:
    value = {"block": 3, "groups": [0, 2], "heads": [4], "width": 12}
    assert clean(value) == value
    assert clean({"block": 0, "groups": [2, 0, 2], "heads": [5, 4, 5], "width": 0}) == {
        "block": 0,
        "groups": [0, 2],
        "heads": [4, 5],
        "width": 0,
    }
    assert clean(no_block()) == no_block()


@pytest.mark.parametrize(
    "value",
    [
        None,
        "",
        [],
        {},
        {"block": 1, "groups": [], "heads": []},
        {"block": 1, "groups": [], "heads": [], "width": 1, "more": 1},
        {"block": "1", "groups": [], "heads": [], "width": 1},
        {"block": True, "groups": [], "heads": [], "width": 1},
        {"block": -1, "groups": [], "heads": [], "width": 1},
        {"block": 1, "groups": None, "heads": [], "width": 1},
        {"block": 1, "groups": "12", "heads": [], "width": 1},
        {"block": 1, "groups": [1.0], "heads": [], "width": 1},
        {"block": 1, "groups": [], "heads": [[1]], "width": 1},
        {"block": 1, "groups": [], "heads": [False], "width": 1},
        {"block": 1, "groups": [], "heads": list(range(2**16 + 1)), "width": 1},
        {"block": 1, "groups": [], "heads": [], "width": None},
        {"block": 1, "groups": [], "heads": [], "width": 1.5},
        {"block": 1, "groups": [], "heads": [], "width": float("nan")},
        {"block": 1, "groups": [], "heads": [], "width": 10**30},
    ],
)
def test_anything_malformed_is_refused_in_one_sentence(value: object) -> None:
    with pytest.raises(gr.Error) as caught:
        clean(value)
    assert re.fullmatch(r"[A-Z][^.]*\.", caught.value.message)


def test_the_model_is_a_prop_and_only_a_prop() -> None:
    config = BlockDetail(model={"block": 4}).get_config()
    assert config["props"] == {"model": {"block": 4}} and config["value"] == no_block() and "model" not in config
    assert BlockDetail().preprocess(None) == BlockDetail().postprocess(None) == no_block()


def test_the_template_interpolates_nothing_and_fetches_nothing() -> None:
    config = BlockDetail().get_config()
    for kind in ("html_template", "css_template", "js_on_load"):
        assert config[kind]
        assert "${" not in config[kind] and "{{" not in config[kind]
        assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)", config[kind])
    assert not re.search(r"[\"']model[\"']", config["js_on_load"]), "gr.HTML would take it for an event"
