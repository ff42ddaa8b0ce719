"""The Quantise panel on the real embedded model: types, importance matrix, packed formats, repair, cancel."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.interface.driving import (
    choose,
    export,
    suggest,
    tile,
    tool,
    value,
    wait_for_message,
    wait_measured,
)
from tests.interface.test_tools import on_little_text, said

pytestmark = pytest.mark.slow


def few_blocks(page: Any, words: str) -> str:
    """A model of four blocks on a little text: quick to quantise in every way. Its perplexity."""
    on_little_text(page, words)
    suggest(page, "26")
    return wait_measured(page, "4 blocks kept, 26 removed")


def current(page: Any) -> list[str]:
    """The cells of the table's marked row."""
    return page.locator("#quantise-table tr[aria-current] td").all_inner_texts()


def test_types_have_exact_sizes_and_measured_perplexities(page: Any, tmp_path: Path) -> None:
    plain = few_blocks(page, "Types. ")
    tool(page, "Quantise")
    assert not page.locator("#quantise-type").is_visible() and page.locator("#quantise-table table").count() == 0
    choose(page, "quantise-format", "GGUF (llama.cpp)")
    mixed = wait_measured(page, "quantised to Q4_K_M")
    assert mixed != plain and current(page)[0] == "Q4_K_M" and current(page)[3] == mixed
    assert page.locator("#quantise-table tbody tr").count() == 21
    said(page, "#quantise-table", f"Unquantised, this recipe has {plain}")
    choose(page, "quantise-type", "Q2_K")
    coarse = wait_measured(page, "quantised to Q2_K")
    page.locator("#quantise-importance input").click()
    weighted = wait_measured(page, "quantised to Q2_K (gguf) with an importance matrix")
    assert len({plain, mixed, coarse, weighted}) == 4 and current(page)[3] == weighted
    page.click("#undo")
    assert wait_measured(page, "quantised to Q2_K (gguf).") == coarse
    assert not page.locator("#quantise-importance input").is_checked() and current(page)[3] == coarse
    edit = export(page, tmp_path / "recipe.json")["edits"][-1]
    assert (edit["op"], edit["format"], edit["type"]) == ("quantize", "gguf", "Q2_K")
    choose(page, "quantise-format", "As they are")
    assert wait_measured(page, "expansion ratio 266.7%.") == plain
    assert page.locator("#quantise-table table").count() == 0


def test_packed_formats_gptq_and_repair(page: Any, tmp_path: Path) -> None:
    plain = few_blocks(page, "Packed. ")
    tool(page, "Quantise")
    found = {plain}
    choose(page, "quantise-format", "compressed-tensors")
    found.add(wait_measured(page, "quantised to int4"))
    choose(page, "quantise-type", "int3")
    found.add(wait_measured(page, "quantised to int3"))
    choose(page, "quantise-group", "32")
    page.wait_for_selector("[data-tile=perplexity][data-state=stale], [data-tile=perplexity][data-state=current]")
    found.add(_other(page, found))
    page.locator("#quantise-symmetric input").click()
    found.add(_other(page, found))
    choose(page, "quantise-method", "GPTQ")
    found.add(wait_measured(page, "by GPTQ"))
    page.locator("#quantise-act-order input").click()
    found.add(_other(page, found))
    choose(page, "quantise-rank", "8")
    found.add(wait_measured(page, "repaired by EoRA of rank 8"))
    assert len(found) == 8, "every choice has its own number"
    edits = export(page, tmp_path / "recipe.json")["edits"]
    assert [edit["op"] for edit in edits] == ["remove_blocks", "quantize", "eora"]
    assert edits[1] | {"text": None} == {
        "op": "quantize", "format": "compressed-tensors", "type": "int3", "method": "gptq", "group_size": 32,
        "symmetric": False, "act_order": True, "true_sequential": True, "text": None,
    }  # fmt: skip
    choose(page, "quantise-format", "torchao (transformers)")
    found.add(wait_measured(page, "(torchao); repaired by EoRA of rank 8"))


def _other(page: Any, found: set[str]) -> str:
    """The perplexity, once it is a current one that has not been seen."""
    page.wait_for_function(
        """found => {
             const tile = document.querySelector('[data-tile=perplexity][data-state=current] .ms-tile-value');
             return tile && !found.includes(tile.innerText.split(' ')[0]);
           }""",
        arg=sorted(found),
    )
    return value(page)


def test_a_quantisation_can_be_cancelled_and_computed(page: Any) -> None:
    on_little_text(page, "Cancelled quantisation. ", 16)
    tool(page, "Quantise")
    choose(page, "quantise-format", "compressed-tensors")
    wait_for_message(page, "Quantising")
    assert "out of date, quantising" in tile(page, "perplexity")
    page.click("#cancel:not([disabled])")
    wait_for_message(page, "The quantisation was cancelled, and the recipe is kept")
    assert "its quantisation is not computed" in tile(page, "perplexity")
    page.click("#compute-quantisation")
    wait_measured(page, "quantised to int4 (compressed-tensors)")
    assert (
        json.loads(page.evaluate("sessionStorage.getItem('model-surgery')"))["recipe"]["edits"][0]["op"] == "quantize"
    )
