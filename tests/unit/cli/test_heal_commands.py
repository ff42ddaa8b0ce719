"""The verb `heal`, run as a person runs it, on a tiny checkpoint in a folder."""

import json
import os
import subprocess
import sys
from types import SimpleNamespace

import accelerate
import pytest
import torch
from safetensors.torch import load_file

from surgery.errors import InputError, TextError
from surgery.healing.rounds import budgets
from surgery.pruning.budget import Budget
from surgery.training.data import HealingText, answer_spans, check_apart, documents_of, load_healing_text
from surgery.training.processes import Processes
from tests.tiny_checkpoints import tokenizer
from tests.unit.cli.test_commands import ROOT, folder, run  # noqa: F401

SHORT = ("--window", 16, "--windows", 12, "--learning-rate", 0.003)


@pytest.fixture
def cut(folder, tmp_path, monkeypatch):  # noqa: F811
    """A recipe that removes a block, and the options that heal it on the text beside the model."""
    monkeypatch.setenv("MODEL_SURGERY_CACHE", str(tmp_path / "cache"))
    made = tmp_path / "recipe.json"
    run("suggest", folder, "--method", "block_influence", "--blocks", 1, "--text", folder / "text.txt", "--window", 16,
        "--windows", 3, "--out", made)  # fmt: skip
    return made, ("--text", folder / "text.txt", *SHORT)


def test_heal_evaluate_build(folder, cut, tmp_path):  # noqa: F811
    made, options = cut
    out = tmp_path / "healed"
    found = json.loads(run("heal", made, "--out", out, "--steps", 20, *options, "--where", "all", "--json"))
    assert {"before", "after", "steps", "tokens_per_second", "trainable_parameters"} <= set(found)
    assert found["after"] < found["before"] and found["steps"] == 20
    assert sorted(path.name for path in out.iterdir()) == [
        "adapter_config.json", "adapter_model.safetensors", "recipe.json", "report.json"
    ]  # fmt: skip
    assert len(json.loads((out / "report.json").read_text())["history"]) == 20
    text = ("--text", folder / "text.txt", "--window", 16, "--windows", 3)
    plain = json.loads(run("evaluate", folder, "--recipe", made, *text, "--json"))["perplexity"]
    better = json.loads(run("evaluate", folder, "--recipe", out / "recipe.json", *text, "--json"))["perplexity"]
    assert better < plain
    run("build", out / "recipe.json", "--out", tmp_path / "small", "--json")
    assert json.loads(run("evaluate", tmp_path / "small", *text, "--json"))["perplexity"] == pytest.approx(
        better, rel=1e-4
    )
    again = json.loads(
        run("heal", out / "recipe.json", "--out", tmp_path / "again", "--text", folder / "text.txt", "--json")
    )
    assert again["adapter"] == found["adapter"], "a recipe is healed again to the same result"
    assert "there already" in run("heal", made, "--out", out, "--steps", 2, *options, code=2)


def test_processes_that_do_not_find_each_other_are_refused(cut, tmp_path):
    """Each would take itself for the one that writes."""
    made, options = cut
    for size in ("2", "many"):
        command = [sys.executable, "-m", "surgery", "heal", made, "--out", tmp_path / "out", "--steps", "2", *options]
        done = subprocess.run(
            list(map(str, command)), cwd=ROOT, env=os.environ | {"WORLD_SIZE": size}, capture_output=True, text=True
        )
        assert done.returncode == 2 and done.stderr.startswith("WORLD_SIZE announces"), done.stderr
        assert "torchrun --nproc_per_node 2" in done.stderr and len(done.stderr.splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_fewer_processes_than_announced_are_refused(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(accelerate, "PartialState", lambda cpu: SimpleNamespace(num_processes=1, process_index=0))
    with pytest.raises(InputError, match=r"announces '2' processes, .* \(1 found each other\)"):
        Processes()


def test_minutes_and_presets_say_what_they_will_do(cut, tmp_path):
    made, options = cut
    timed = json.loads(run("heal", made, "--out", tmp_path / "timed", "--minutes", 0.1, *options, "--json"))
    assert timed["steps"] > 1
    assert "one of two-minutes" in run("heal", made, "--out", tmp_path / "x", "--preset", "a-year", *options, code=2)
    assert "how long" in run("heal", made, "--out", tmp_path / "x", *options, code=2)
    both = ("--steps", 3, "--minutes", 1)
    assert "how long" in run("heal", made, "--out", tmp_path / "x", *both, *options, code=2)
    assert not (tmp_path / "x").exists()


def test_the_same_document_is_not_healed_and_evaluated_on(folder, cut, tmp_path):  # noqa: F811
    made, options = cut
    refused = run("heal", made, "--out", tmp_path / "x", "--steps", 2, *options, "--evaluation-text",
                  folder / "text.txt", code=2)  # fmt: skip
    assert "w0 w7 w14" in refused and not (tmp_path / "x").exists()


@pytest.mark.parametrize(
    "more",
    [
        ("--method", "distill", "--top-k", 8, "--temperature", 2, "--cross-entropy", 0.5),
        ("--method", "distill", "--divergence", "contrastive"),
        ("--method", "distill", "--train", "weights", "--features", 0.5),
        ("--train", "dora", "--rank", 3, "--rank-by", "coarse_importance", "--linears", "query,down", "--where", "0-1"),
        ("--batch", 4, "--micro-batch", 2, "--patience", 2, "--evaluate-every", 1, "--checkpointing"),
        ("--base", "Q8_0"),
    ],
)
def test_options_reach_the_training(cut, tmp_path, more):
    made, options = cut
    out = tmp_path / "out"
    found = json.loads(run("heal", made, "--out", out, "--steps", 4, *options, *more, "--json"))
    assert found["steps"] >= 1
    edit = json.loads((out / "recipe.json").read_text())["edits"][-1]
    assert edit["op"] == "heal" and edit["result"]["adapter"] == found["adapter"]
    flat = {**edit, **edit.get("distillation", {})}
    for name, value in zip(more[::2], more[1::2]):
        key = str(name).removeprefix("--").replace("-", "_")
        if key in flat and key not in ("linears", "where", "base"):
            assert flat[key] == value
    assert ("base" in edit) == ("--base" in more) and edit.get("base", {"type": "Q8_0"})["type"] == "Q8_0"
    assert ("weights.safetensors" in {path.name for path in out.iterdir()}) == ("weights" in more)


def test_two_processes_reach_what_one_reaches(cut, tmp_path):
    made, options = cut
    arguments = [*map(str, options), "--steps", "6", "--batch", "4", "--json", "--dropout", "0.1"]
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    launch = [sys.executable, "-m", "accelerate.commands.accelerate_cli", "launch", "--cpu", "--num_processes", "2",
              "--num_machines", "1", "--main_process_port", "0", "--mixed_precision", "no", "--dynamo_backend", "no",
              "-m", "surgery", "heal", str(made), "--out", str(tmp_path / "two"), *arguments]  # fmt: skip
    done = subprocess.run(launch, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-2000:]
    two = json.loads(done.stdout)
    one = json.loads(run("heal", made, "--out", tmp_path / "one", *arguments))
    assert two["after"] == pytest.approx(one["after"], rel=1e-5) and two["steps"] == one["steps"]
    tensors = [load_file(tmp_path / name / "adapter_model.safetensors") for name in ("one", "two")]
    for name, tensor in tensors[0].items():
        torch.testing.assert_close(tensor, tensors[1][name], atol=1e-5, rtol=1e-4)


TEMPLATE = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}</s>{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


def talker(template=TEMPLATE):
    words = tokenizer(size=400)
    words.chat_template = template
    return words


CHAT = [
    {"role": "user", "content": "the cat"},
    {"role": "assistant", "content": "sat on"},
    {"role": "user", "content": "a mat"},
    {"role": "assistant", "content": "it's 42"},
]


def test_answers_are_what_the_template_puts_behind_the_question():
    whole, spans = answer_spans(talker(), CHAT)
    assert [whole[low:high] for low, high in spans] == ["sat on</s>", "it's 42</s>"]
    rewriting = "{% for m in messages %}<{{ m.role }}{{ messages | length }}>{{ m.content }}{% endfor %}"
    with pytest.raises(TextError, match="rewrites earlier messages"):
        answer_spans(talker(rewriting), CHAT)


def test_conversations_are_packed_and_their_answers_learnt(tmp_path):
    path = tmp_path / "chats.jsonl"
    path.write_text("\n".join(json.dumps({"messages": CHAT}) for _ in range(30)))
    words = talker()
    text = load_healing_text(words, str(path), 24, 5, answers_only=True)
    flat, learnt = text.windows.ids.flatten().tolist(), text.learnt.flatten().tolist()
    whole = words(words.apply_chat_template(CHAT, tokenize=False), add_special_tokens=False)["input_ids"]
    assert flat == (whole * 30)[: len(flat)]
    answers = words.decode([token for token, yes in zip(flat, learnt) if yes])
    assert answers.startswith("sat on</s>it's 42</s>sat on</s>") and "cat" not in answers and "mat" not in answers
    everything = load_healing_text(words, str(path), 24, 5)
    assert everything.learnt.all() and len(everything.windows.ids) == 5
    with pytest.raises(TextError, match="tokens"):
        load_healing_text(words, str(path), 2400, 500, answers_only=True)
    path.write_text(json.dumps({"text": "no chat"}))
    with pytest.raises(TextError, match="messages"):
        load_healing_text(words, str(path), 24, 1, answers_only=True)


def test_a_hub_set_is_streamed_no_further_than_needed(monkeypatch):
    read = []

    def load_dataset(name, configuration, split, streaming):
        assert (name, configuration, split, streaming) == ("owner/set", "en", "train", True)
        for number in range(10**6):
            read.append(number)
            yield {
                "text": f"the cat's mat number {number} and the end of the day, it is a document that is long enough"
            }

    monkeypatch.setattr("datasets.load_dataset", load_dataset)
    text = load_healing_text(tokenizer(size=400), "hub:owner/set:en", 32, 6)
    assert text.windows.count == 6 and 3 < len(read) < 200 and len(text.documents) == len(read)


def test_the_same_document_is_found_whatever_its_file(tmp_path):
    line = "A long document about the cat and the mat, which is here to be recognised in any file that it may come in."
    healing = documents_of(f" = Heading = \n\n{line}\n\nshort")
    assert list(healing.values()) == [line[:60]]
    check_apart(healing, f"\n = Heading = \nshort\n{line[:-10]}")
    with pytest.raises(TextError, match=r"1 documents.*A long document about the cat"):
        check_apart(healing, f"before\n{line.upper().replace(' ', '  ')}\nafter")


def test_held_out_windows_are_the_last_ones():
    ids = torch.arange(20).view(5, 4)
    from analysis.text import Windows

    text = HealingText(Windows(ids, "x", "y", False), ids > 2, {})
    training, held_out = text.split(2)
    assert torch.equal(training.windows.ids, ids[:3]) and torch.equal(held_out.windows.ids, ids[3:])
    assert torch.equal(held_out.learnt, ids[3:] > 2)


def test_rounds_cut_heal_and_cut_again(folder, tmp_path, monkeypatch):  # noqa: F811
    monkeypatch.setenv("MODEL_SURGERY_CACHE", str(tmp_path / "cache"))
    text = folder / "text.txt"
    options = ("--calibration", text, "--text", text, "--window", 16, "--windows", 12, "--steps", 5, "--rounds", 2,
               "--calibration-windows", 3)  # fmt: skip
    found = json.loads(run("iterate", folder, "--method", "maw", "--params", "-10%", *options, "--out", tmp_path / "o",
                           "--json"))["rounds"]  # fmt: skip
    whole = json.loads(run("inspect", folder, "--json"))["parameters"]
    assert [entry["parameters"] for entry in found] == pytest.approx([0.95 * whole, 0.9 * whole], rel=0.003)
    second = json.loads((tmp_path / "o" / "round-2" / "healed" / "recipe.json").read_text())
    assert second["model"]["id"] == found[0]["checkpoint"], "the second cut is in the first checkpoint's numbering"
    measured = ("--text", text, "--window", 16, "--windows", 3, "--json")
    last = json.loads(run("evaluate", found[1]["checkpoint"], *measured))
    again = json.loads(run("evaluate", found[0]["checkpoint"], "--recipe", found[1]["recipe"], *measured))
    assert last["perplexity"] == pytest.approx(again["perplexity"], rel=1e-4)
    refused = ("iterate", folder, "--method", "block_influence", "--blocks", 1, *options, "--out", tmp_path / "p")
    assert "fewer rounds" in run(*refused, code=2)
    schedule, texts = tmp_path / "o" / "recipe.json", ("--calibration", text, "--text", text)
    again = json.loads(run("iterate", schedule, *texts, "--out", tmp_path / "q", "--json"))["rounds"]
    assert [entry["after"] for entry in again] == [entry["after"] for entry in found]
    assert (tmp_path / "q" / "recipe.json").read_text() == schedule.read_text()
    assert "leave --rounds out" in run("iterate", schedule, "--rounds", 3, "--out", tmp_path / "r", code=2)
    assert "not the text given" in run("iterate", schedule, "--out", tmp_path / "r", code=2)
    assert "the command iterate" in run("evaluate", folder, "--recipe", schedule, *measured, code=2)
    assert "no schedule" in run("iterate", found[0]["recipe"], "--out", tmp_path / "r", code=2)
    assert "Give --method and --steps" in run("iterate", folder, "--rounds", 2, "--out", tmp_path / "r", code=2)
    document = json.loads(schedule.read_text())
    for change in ({"budget": {"blocks": 2, "colour": 1}}, {"rules": {"seed": "many"}}):
        (tmp_path / "bad.json").write_text(json.dumps(document | {"edits": [document["edits"][0] | change]}))
        assert "schedule" in run("iterate", tmp_path / "bad.json", *texts, "--out", tmp_path / "r", code=2)
    assert not (tmp_path / "r").exists()


def test_budgets_of_rounds():
    assert [budget.blocks for budget in budgets(Budget(blocks=5), 3, 100)] == [1, 2, 2]
    assert [budget.params for budget in budgets(Budget(params="-30%"), 3, 100)] == ["90", "80", "70"]
    with pytest.raises(InputError, match="can be shared"):
        budgets(Budget(width=4), 2, 100)
