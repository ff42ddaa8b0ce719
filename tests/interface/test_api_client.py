"""The endpoints over the network, on the embedded model: two clients at once, each with its own numbers."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from gradio_client import Client

pytestmark = pytest.mark.slow
SMALL = {"window": 64, "windows": 2}


def recipe(block: int) -> dict[str, Any]:
    return {
        "schema": "model-surgery/recipe/1",
        "model": {"id": "default"},
        "edits": [{"op": "remove_blocks", "blocks": str(block)}],
    }


def test_two_clients_get_their_own_numbers(server: str) -> None:
    clients = [Client(server, verbose=False) for _ in range(2)]
    assert clients[0].predict(api_name="/inspect")["blocks"] == 30

    def measure(place: int) -> Any:
        return clients[place].predict(recipe=recipe(5 + place), **SMALL, api_name="/evaluate")

    with ThreadPoolExecutor(2) as pool:
        together = list(pool.map(measure, (0, 1)))
    alone = [measure(0), measure(1)]
    for one, again in zip(together, alone, strict=True):
        assert one["perplexity"] == again["perplexity"] and one["parameters"] == again["parameters"]
    assert together[0]["perplexity"] != together[1]["perplexity"]


def test_a_suggestion_is_a_recipe_that_can_be_measured_and_fitted(server: str) -> None:
    client = Client(server, verbose=False)
    found = client.predict(method="block_influence", blocks=3, **SMALL, api_name="/suggest")
    assert found["schema"] == "model-surgery/recipe/1"
    measured = client.predict(recipe=found, **SMALL, api_name="/evaluate")
    assert len(found["edits"]) == 1 and measured["parameters"] < 134.5e6
    assert measured["perplexity"] > measured["dense_perplexity"] > 1
    fits = client.predict(recipe=found, device="raspberry-pi-5-8gb", type="Q8_0", api_name="/fit")
    assert fits["fits"] is True
    influence = client.predict(**SMALL, api_name="/analyze")["similarity"]["block_influence"]
    assert len(influence) == 30


def test_bad_input_is_one_sentence(server: str) -> None:
    client = Client(server, verbose=False)
    with pytest.raises(Exception, match="no files of its own"):
        client.predict(model="/etc/passwd", api_name="/inspect")
    with pytest.raises(Exception, match="out of range"):
        client.predict(recipe=recipe(99), **SMALL, api_name="/evaluate")
