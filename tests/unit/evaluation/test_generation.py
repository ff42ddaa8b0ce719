"""Generation: the model that writes is the model that is measured, and the same seed draws the same."""

from __future__ import annotations

import math
import time
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from jinja2 import TemplateError

from surgery.checkpoints.build import build_model, readable_model
from surgery.errors import InputError
from surgery.evaluation.generation import LONGEST_PROMPT, Writer, draw, prompt_ids, side_by_side
from surgery.evaluation.sampling import Sampling
from surgery.workbench.open_model import OpenModel
from tests.tiny_models import FAMILIES
from tests.tiny_workbench import open_model

CUT = ({"op": "remove_blocks", "blocks": "2"}, {"op": "prune_neurons", "removed": {"1": "0-15"}})
OTHERS: dict[str, tuple[dict[str, Any], ...]] = {
    "no first attention": ({"op": "remove_attention", "blocks": "0"},),
    "no attention": ({"op": "remove_attention", "blocks": "0-3"},),
    "sublayers": ({"op": "remove_mlp", "blocks": "0"}, {"op": "remove_attention", "blocks": "1"}),
    "arranged": ({"op": "arrange_blocks", "order": [3, 1, 1, 0]},),
    "groups": ({"op": "prune_kv_groups", "removed": {"0": "0"}},),
    "channels": ({"op": "prune_hidden", "removed": "9,17"},),
}
"""Where a cache could go wrong: its length is that of the first block, and its entries go by the block's number."""
STORED = ({"op": "quantize", "format": "gguf", "type": "Q4_0"},)
IDS = torch.tensor([[5, 9, 3, 7]])


class Letters:
    """A tokenizer of numbers: all that a writer needs."""

    eos_token_id = 10**6
    chat_template = None

    def decode(self, ids: list[int], skip_special_tokens: bool) -> str:
        return " ".join(map(str, ids))

    def __call__(self, text: str, add_special_tokens: bool) -> dict[str, list[int]]:
        return {"input_ids": [ord(letter) for letter in text]}


def reader(opened: OpenModel, *edits: dict[str, Any]) -> Any:
    structure = opened.complete(opened.resolve(opened.recipe().with_edits(*edits))).structure
    return structure, readable_model(opened.loaded.model, opened.architecture, structure)


def written(model: Any, **settings: Any) -> list[int]:
    writer = Writer(model, Letters(), IDS, Sampling(**{"tokens": 12, **settings}))
    while writer.step():
        pass
    return writer.ids


@pytest.mark.parametrize("family", FAMILIES)
def test_the_cut_model_writes_what_the_built_one_generates(family: str) -> None:
    opened = open_model(family)
    structure, model = reader(opened, *CUT)
    built = build_model(opened.loaded.model, opened.architecture, structure).model
    built.generation_config.eos_token_id = model.generation_config.eos_token_id = 10**6
    expected = built.generate(IDS, do_sample=False, max_new_tokens=12, pad_token_id=0)[0, 4:].tolist()
    assert written(model) == expected
    ids = IDS
    for _ in range(12):  # without a cache
        ids = torch.cat([ids, model(input_ids=ids, use_cache=False).logits[:, -1:].argmax(-1)], dim=1)
    assert ids[0, 4:].tolist() == expected


@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma2", "gemma3", "phi3", "gpt2"])
@pytest.mark.parametrize("edits", OTHERS.values(), ids=OTHERS)
def test_with_a_cache_it_writes_what_is_measured_without(family: str, edits: tuple[dict[str, Any], ...]) -> None:
    opened = open_model(family)
    if family == "gpt2" and edits == OTHERS["channels"]:
        with pytest.raises(InputError, match="prune_hidden"):
            reader(opened, *edits)
        return
    structure, model = reader(opened, *edits)
    ids = IDS
    for _ in range(12):  # past the sliding windows
        last = opened.evaluator.logits(structure, ids, torch.tensor([ids.shape[1] - 1]))
        ids = torch.cat([ids, last.argmax(-1)], dim=1)
    assert written(model) == ids[0, IDS.shape[1] :].tolist()


@pytest.mark.parametrize("family", ["llama_tied", "qwen2"])
@pytest.mark.parametrize("edits", [STORED, (*CUT, *STORED)])
def test_logits_are_those_that_are_measured(family: str, edits: tuple[dict[str, Any], ...]) -> None:
    opened = open_model(family)
    structure, model = reader(opened, *edits)
    live = opened.evaluator.logits(structure, IDS, torch.arange(IDS.shape[1]))
    with torch.inference_mode():
        torch.testing.assert_close(model(input_ids=IDS).logits.float(), live, atol=2e-5, rtol=1e-4)
    plain = opened.evaluator.logits(structure.floating, IDS, torch.arange(IDS.shape[1]))
    assert (plain - live).abs().max() > 1e-3


def test_untouched_weights_are_shared() -> None:
    opened = open_model("llama")
    _, model = reader(opened, *CUT)
    own = {tensor.data_ptr() for tensor in opened.loaded.model.state_dict().values()}
    shared = [name for name, tensor in model.state_dict().items() if tensor.data_ptr() in own]
    assert any("layers.0." in name for name in shared) and any("embed" in name for name in shared)


def test_the_same_seed_gives_the_same_text_and_another_one_another() -> None:
    model = open_model("llama").loaded.model
    drawn = [written(model, temperature=1.0, seed=seed) for seed in (1, 1, 2)]
    assert drawn[0] == drawn[1] != drawn[2]


def test_draws_follow_the_probabilities_of_the_nucleus() -> None:
    logits = torch.tensor([0.5, 0.3, 0.15, 0.05]).log()
    generator = torch.Generator().manual_seed(0)
    sampling = Sampling(temperature=1.0, top_p=0.9)
    counts = torch.zeros(4)
    for _ in range(4000):
        counts[draw(logits, sampling, generator)] += 1
    expected = torch.tensor([0.5, 0.3, 0.15, 0.0]) / 0.95
    for place in range(4):
        spread = 4 * math.sqrt(max(float(expected[place]), 1e-9) / 4000)
        assert abs(float(counts[place]) / 4000 - float(expected[place])) <= spread
    assert draw(logits, Sampling(), generator) == 0
    assert {draw(logits, Sampling(temperature=1.0, top_p=0.01), generator) for _ in range(50)} == {0}


def test_both_write_in_turn_until_the_last_has_ended() -> None:
    model = open_model("llama").loaded.model
    short, long = (Writer(model, Letters(), IDS, Sampling(tokens=count)) for count in (2, 5))
    seen = [tuple(answer.tokens for answer in answers) for answers in side_by_side((short, long), lambda: None)]
    assert seen == [(1, 1), (2, 2), (2, 3), (2, 4), (2, 5)] and long.answer.speed > 0


def test_an_end_mark_ends_an_answer() -> None:
    model = open_model("llama").loaded.model
    second = written(model)[1]
    model.generation_config.eos_token_id = second
    writer = Writer(model, Letters(), IDS, Sampling(tokens=12))
    while writer.step():
        pass
    assert writer.answer.ended and second not in writer.ids


@pytest.mark.parametrize(
    ("prompt", "chat", "words"),
    [("  ", False, "Write a prompt"), ("x" * (LONGEST_PROMPT + 1), False, "longer than"),
     ("hello", True, "no chat template")],
)  # fmt: skip
def test_prompts_that_cannot_be_read_are_one_sentence(prompt: str, chat: bool, words: str) -> None:
    with pytest.raises(InputError, match=words):
        prompt_ids(Letters(), prompt, chat)


def test_a_chat_template_that_refuses_is_one_sentence() -> None:
    class Refusing(Letters):
        chat_template = "{{ raise_exception('no') }}"

        def apply_chat_template(self, turns: list[dict[str, str]], **options: bool) -> str:
            raise TemplateError("A system turn comes first")

    with pytest.raises(InputError, match=r"refuses this prompt \(A system turn comes first\)"):
        prompt_ids(Refusing(), "hello", True)


def test_waiting_for_the_weights_is_not_the_speed_of_a_model() -> None:
    class Busy(nullcontext[None]):
        def __enter__(self) -> None:
            time.sleep(0.5)

    writer = Writer(open_model("llama").loaded.model, Letters(), IDS, Sampling(tokens=2), Busy())
    begun = time.perf_counter()
    while writer.step():
        pass
    assert time.perf_counter() - begun - writer.answer.seconds >= 1


@pytest.mark.parametrize(
    "settings", [{"tokens": 0}, {"tokens": 10**6}, {"temperature": -1.0}, {"top_p": 0.0}, {"seed": -1}]
)
def test_settings_out_of_range_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(InputError):
        Sampling(**settings)


def test_a_prompt_that_is_longer_than_the_model_is_refused() -> None:
    model = open_model("llama").loaded.model
    with pytest.raises(InputError, match="shorten it"):
        Writer(model, Letters(), torch.zeros(1, model.config.max_position_embeddings, dtype=torch.long), Sampling())
