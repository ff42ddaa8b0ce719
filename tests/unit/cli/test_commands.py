"""The command line's contract, run as a person runs it, on a tiny checkpoint in a folder."""

import contextlib
import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from analysis.importance.registry import METHODS
from surgery.cli import main as commands
from tests.tiny_models import VOCAB, build

ROOT = Path(__file__).resolve().parents[3]


def run(*arguments, code=0):
    """Run the command line in this process; standard output, or standard error where it is to fail."""
    out, err = io.StringIO(), io.StringIO()
    with (
        pytest.MonkeyPatch.context() as patch,
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
        pytest.raises(SystemExit) as ended,
    ):
        patch.setattr(sys, "argv", ["surgery", *map(str, arguments)])
        patch.setenv("HF_HUB_OFFLINE", "1")
        patch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
        commands.main()
    assert (ended.value.code or 0) == code, err.getvalue()
    assert "Traceback" not in err.getvalue() and (code == 0 or not out.getvalue())
    return out.getvalue() if code == 0 else err.getvalue().strip()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A tiny Llama checkpoint with a word-level tokenizer, and a text for it."""
    where = tmp_path_factory.mktemp("tiny")
    build("llama").save_pretrained(where)
    words = {f"w{index}": index for index in range(VOCAB)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="w0"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="w0").save_pretrained(where)
    (where / "text.txt").write_text(" ".join(f"w{index * 7 % VOCAB}" for index in range(400)))
    return where


TEXT = ("--window", 16, "--windows", 3)


def test_as_a_program(folder):
    """Run as people and scripts do: JSON alone on standard output, one sentence on standard error, exit codes."""
    environment = os.environ | {"HF_HUB_OFFLINE": "1"}
    program = [sys.executable, "-m", "surgery"]
    good = subprocess.run(
        [*program, "inspect", folder, "--json"], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert good.returncode == 0 and json.loads(good.stdout)["blocks"] == 4
    bad = subprocess.run([*program, "inspect", "/no/such"], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert bad.returncode == 2 and bad.stdout == "" and len(bad.stderr.splitlines()) == 1


def test_inspect(folder):
    found = json.loads(run("inspect", folder, "--json"))
    for key in ("blocks", "hidden_size", "parameters", "intermediate_size", "query_heads", "kv_heads",
                "expansion_ratio", "bytes", "editable"):  # fmt: skip
        assert key in found
    assert found["blocks"] == len(found["intermediate_size"]) == len(found["kv_heads"]) == 4
    assert found["bytes"] == {"float32": 4 * found["parameters"]}


def test_methods():
    found = json.loads(run("methods", "--json"))
    assert {"maw", "vow", "pon", "l2", "hybrid", "wanda_structured", "minitron", "cfsp_fine", "minitron_heads",
            "block_influence", "angular_distance"} <= {entry["name"] for entry in found}  # fmt: skip
    assert all({"name", "kind", "source", "needs_gradients", "needs_text"} <= set(entry) for entry in found)


def test_analyze_writes_everything(folder, tmp_path):
    out = tmp_path / "analysis.json"
    found = json.loads(run("analyze", folder, "--text", folder / "text.txt", *TEXT, "--out", out, "--json"))
    whole = json.loads(out.read_text())
    assert found["tokens"] == 48
    assert len(found["similarity"]["block_influence"]) == len(found["similarity"]["mlp"]) == 4
    assert len(whole["neurons"]["maw"]) == 4 and len(whole["neurons"]["hybrid"][0]) == 80
    assert all(len(row) == 6 for row in found["heads"]["entropy"])
    assert found["predicted"] is None and "taylor_first" not in whole["neurons"]
    written = {name for part in (whole["neurons"], whole["heads"], *whole["scores"].values()) for name in part}
    assert written >= {entry.name for entry in METHODS if not entry.needs_gradients}
    assert not written & {entry.name for entry in METHODS if entry.needs_gradients}


def test_analyze_with_gradients_predicts_every_removal(folder, tmp_path):
    out = tmp_path / "analysis.json"
    arguments = ("analyze", folder, "--text", folder / "text.txt", *TEXT, "--gradients")
    found = json.loads(run(*arguments, "--out", out, "--json"))
    whole = json.loads(out.read_text())
    assert set(found["predicted"]) == set(whole["predicted_neurons"]) == {"first", "second"}
    for order, parts in found["predicted"].items():
        assert {part: len(values) for part, values in parts.items()} == {
            "blocks": 4, "attention": 4, "mlp": 4, "kv_groups": 4
        }  # fmt: skip
        assert [len(groups) for groups in parts["kv_groups"]] == [2] * 4
        assert [len(neurons) for neurons in whole["predicted_neurons"][order]] == [80] * 4
    first, second = found["predicted"]["first"]["blocks"], found["predicted"]["second"]["blocks"]
    assert all(one < two for one, two in zip(first, second, strict=True)), "the Fisher term is positive"
    written = {"neurons": whole["neurons"], "heads": whole["heads"]} | whole["scores"]
    for entry in METHODS:
        assert entry.name in written[entry.kind], "a score of every method"
    assert whole["scores"]["blocks"]["predicted_blocks"] == second
    assert "predicted loss without it" in run(*arguments)


def test_analyze_sets_predictions_beside_measurements(folder):
    text = ("--text", folder / "text.txt", *TEXT)
    found = json.loads(run("analyze", folder, *text, "--gradients", "--measure", "--json"))
    scanned = json.loads(run("scan", folder, *text, "--json"))
    for part in ("blocks", "attention", "mlp"):
        assert found["measured"][part] == scanned["difference"][part]
        order = sorted(range(4), key=lambda block: found["measured"][part][block])
        guess = sorted(range(4), key=lambda block: found["predicted"]["second"][part][block])
        ranks = [[order.index(block) for block in range(4)], [guess.index(block) for block in range(4)]]
        distance = sum((one - other) ** 2 for one, other in zip(*ranks))
        expected = 1 - 6 * distance / (4 * 15)  # Spearman's own formula, no ties
        assert found["rank_correlation"]["second"][part] == pytest.approx(expected)
    assert "Rank correlation" in run("analyze", folder, *text, "--gradients", "--measure")
    assert json.loads(run("analyze", folder, *text, "--measure", "--json"))["rank_correlation"] == {}


def test_build_and_evaluate_with_a_compensation(folder, tmp_path):
    """A recipe with a refit: measured, built, and the built folder measures the same."""
    text = ("--text", folder / "text.txt", *TEXT)
    recipe = tmp_path / "recipe.json"
    run("suggest", folder, "--method", "maw", "--width", 40, "--out", recipe)
    document = json.loads(recipe.read_text())
    fingerprint = json.loads(run("analyze", folder, *text, "--json"))["text"]["fingerprint"]
    named = {"source": "text.txt", "fingerprint": fingerprint, "window": 16, "windows": 8}
    document["edits"] += [{"op": "compensate", "how": "least_squares", "text": named}]
    recipe.write_text(json.dumps(document))
    calibration = ("--calibration", folder / "text.txt")
    found = json.loads(run("evaluate", folder, "--recipe", recipe, *calibration, *text, "--json"))
    assert [entry["block"] for entry in found["compensation"]] == [0, 1, 2, 3]
    assert found["perplexity"] != found["perplexity_without_compensation"]
    built = json.loads(run("build", recipe, "--out", tmp_path / "small", *calibration, "--json"))
    assert built["uniform"] is True and built["parameters"] == found["parameters"]
    assert "model.safetensors" in built["files"] and built["bytes"] > 4 * built["parameters"]
    again = json.loads(run("evaluate", tmp_path / "small", *text, "--json"))
    assert again["perplexity"] == pytest.approx(found["perplexity"], rel=1e-5)
    assert "there already" in run("build", recipe, "--out", tmp_path / "small", *calibration, code=2)
    assert "text.txt" in run("build", recipe, "--out", tmp_path / "other", code=2), "another text must not be used"


def test_suggest_evaluate_and_fit_share_a_recipe(folder, tmp_path):
    out = tmp_path / "recipe.json"
    text = ("--text", folder / "text.txt", *TEXT)
    printed = json.loads(
        run("suggest", folder, "--method", "block_influence", "--blocks", 1, *text, "--out", out, "--json")
    )
    assert printed == json.loads(out.read_text())
    assert printed["edits"][0]["op"] == "remove_blocks"
    plain = json.loads(run("evaluate", folder, *text, "--json"))
    edited = json.loads(run("evaluate", folder, "--recipe", out, *text, "--json"))
    for key in ("perplexity", "nll", "standard_error", "tokens", "window", "windows", "bos", "dtype", "parameters",
                "bytes", "seconds"):  # fmt: skip
        assert key in edited
    assert edited["tokens"] == 45 and edited["windows"] == 3 and edited["window"] == 16
    assert edited["parameters"] < plain["parameters"]
    assert edited["dense_perplexity"] == plain["perplexity"] != edited["perplexity"]
    assert json.loads(run("evaluate", folder, "--recipe", out, *text, "--json"))["perplexity"] == edited["perplexity"]
    fitted = json.loads(
        run("fit", folder, "--recipe", out, "--device", "raspberry-pi-5-8gb", "--context", 64, "--json")
    )
    for key in ("fits", "weights_bytes", "kv_cache_bytes", "activation_bytes", "overhead_bytes", "capacity_bytes",
                "spare_bytes", "decode_tokens_per_second"):  # fmt: skip
        assert key in fitted
    vectors = 3 * 2 * 48 + 48  # a GGUF file keeps the norms in float32
    assert fitted["weights_bytes"] == 2 * edited["parameters"] + 2 * vectors
    assert fitted["kv_type"] == "F16" and "room" not in fitted


def test_fit_counts_what_the_recipe_quantises_and_makes_it_fit(folder, tmp_path):
    recipe = tmp_path / "recipe.json"
    model = {"id": "tiny"}
    edits = [{"op": "quantize", "type": "Q8_0"}]
    recipe.write_text(json.dumps({"schema": "model-surgery/recipe/1", "model": model, "edits": edits}))
    where = ("--device", "raspberry-pi-5-8gb", "--context", 64)
    fitted = json.loads(run("fit", folder, "--recipe", recipe, *where, "--json"))
    assert fitted["type"] == "Q8_0"
    assert json.loads(run("fit", folder, "--recipe", recipe, *where, "--type", "F32", "--json"))["type"] == "F32"
    text = ("--text", folder / "text.txt", "--calibration", folder / "text.txt", "--calibration-windows", 4, *TEXT)
    made = json.loads(run("fit", folder, *where, "--kv-type", "F32", "--make-it-fit", "--limit", 2, *text, "--json"))
    assert made["kv_type"] == "F32" and made["complete"] is True
    assert [option["type"] for option in made["options"]] != [] and len(made["options"]) == 2
    losses = [option["nll"] for option in made["options"]]
    assert losses == sorted(losses) and all(option["spare_bytes"] >= 0 for option in made["options"])
    shown = run("fit", folder, *where, "--make-it-fit", "--limit", 1, *text)
    assert "as it is" in shown and "perplexity" in shown
    small = json.loads((Path(__file__).resolve().parents[3] / "presets/devices/siracusa.json").read_text())
    small["memory_bytes"]["value"], small["weight_store_bytes"]["value"] = 300_000, 1000
    (tmp_path / "small.json").write_text(json.dumps(small | {"id": "small"}))
    lost = json.loads(run("fit", folder, "--device", tmp_path / "small.json", "--context", 64, "--json"))
    assert lost["fits"] is False and lost["room"]["missing_bytes"] > 0 and lost["room"]["words"]


@pytest.mark.parametrize("width", [("--width", 40), ("--expansion-ratio", "100%"), ("--params", "-10%")])
def test_negative_and_percent_budgets_are_read(folder, width):
    assert json.loads(run("suggest", folder, "--method", "maw", *width, "--json"))["edits"][0]["op"] == "prune_neurons"


@pytest.mark.parametrize(
    ("arguments", "op"),
    [
        (("--method", "random_neurons", "--percent", 25, "--seed", 3, "--protect-first", 1), "prune_neurons"),
        (("--method", "cfsp_fine", "--params", "-9%", "--allocation", "cfsp", "--sharpness", 5), "prune_neurons"),
        (("--method", "maw", "--params", "-9%", "--same-width", "--divisor", 8), "prune_neurons"),
        (("--method", "michel", "--heads", 2, "--allocation", "global"), "prune_kv_groups"),
        (("--method", "minitron_heads", "--heads", 8, "--unit", "query_heads"), "prune_heads"),
        (("--method", "gqa_mean", "--kv-heads", 1, "--protect-last", 1), "merge_kv_heads"),
        (("--method", "minitron_hidden", "--width", 40), "prune_hidden"),
        (("--method", "taylor_blocks", "--blocks", 2, "--no-neighbours"), "remove_blocks"),
        (("--method", "perplexity_greedy", "--blocks", 2, "--keep-candidates", 2), "remove_blocks"),
        (("--method", "attention_influence", "--params", "-8%"), "remove_attention"),
    ],
)
def test_every_option_of_suggest_is_read(folder, arguments, op):
    recipe = json.loads(run("suggest", folder, *arguments, "--text", folder / "text.txt", *TEXT, "--json"))
    assert [edit["op"] for edit in recipe["edits"]] == [op]
    noted = recipe["edits"][0]["chosen_by"]["budget"]
    for name, value in zip(arguments[2::2], arguments[3::2], strict=False):
        assert noted.get(name.removeprefix("--").replace("-", "_"), value) in (value, True)


def test_greedy_sublayers_from_the_command_line(folder):
    arguments = ("--method", "greedy_sublayers", "--blocks", 3, "--per-parameter", "--text", folder / "text.txt", *TEXT)
    recipe = json.loads(run("suggest", folder, *arguments, "--json"))
    removed = [block for edit in recipe["edits"] for block in edit["blocks"].split(",")]
    assert removed and recipe["edits"][0]["chosen_by"]["budget"]["per_parameter"] is True


def test_scan_agrees_with_evaluate(folder, tmp_path):
    text = ("--text", folder / "text.txt", *TEXT)
    out, recipe = tmp_path / "scan.json", tmp_path / "recipe.json"
    found = json.loads(run("scan", folder, "--edits", "blocks,mlp", *text, "--out", out, "--json"))
    assert {"baseline", "blocks", "mlp", "seconds", "window", "text"} <= set(found) and "attention" not in found
    assert json.loads(out.read_text())["blocks"] == found["blocks"] and len(found["mlp"]) == 4
    assert found["baseline"] == json.loads(run("evaluate", folder, *text, "--json"))["perplexity"]
    reference = json.loads(run("suggest", folder, "--method", "maw", "--width", 80, "--json"))["model"]
    edits = [{"op": "remove_mlp", "blocks": "2"}]
    recipe.write_text(json.dumps({"schema": "model-surgery/recipe/1", "model": reference, "edits": edits}))
    edited = json.loads(run("evaluate", folder, "--recipe", recipe, *text, "--json"))
    assert found["mlp"][2] == edited["perplexity"] and found["nll"]["mlp"][2] == edited["nll"]


def test_people_get_tables(folder):
    assert "hidden size" in run("inspect", folder)
    listed = run("methods")
    assert "block_influence" in listed and "greedy_sublayers" in listed
    table = run("scan", folder, "--text", folder / "text.txt", *TEXT)
    assert "Dense perplexity" in table and "attention" in table and "±" in table


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (("inspect", "/no/such/folder"), "/no/such/folder"),
        (("inspect", "not a model id"), "not a model id"),
        (("evaluate", "FOLDER", "--text", "/no/such.txt"), "/no/such.txt"),
        (("evaluate", "FOLDER", "--text", "TEXT", "--windows", "1000"), "longer text"),
        (("evaluate", "FOLDER", "--recipe", "/no/recipe.json"), "/no/recipe.json"),
        (("suggest", "FOLDER", "--method", "nope", "--blocks", "1"), "nope"),
        (("suggest", "FOLDER", "--method", "maw"), "exactly one budget"),
        (("suggest", "FOLDER", "--method", "maw", "--width", "9", "--allocation", "fair"), "global"),
        (("suggest", "FOLDER", "--method", "maw", "--width", "9", "--unit", "blocks"), "query_heads"),
        (("suggest", "FOLDER", "--method", "maw", "--width", "9", "--no-neighbours"), "--no-neighbours"),
        (("scan", "FOLDER", "--edits", "blocks,heads"), "heads"),
        (("scan", "FOLDER", "--edits", ""), "--edits"),
        (("fit", "FOLDER", "--device", "nope"), "nope"),
        (("fit", "FOLDER", "--device", "nvidia-t4", "--type", "Q9"), "Q9"),
        (("fit", "FOLDER", "--device", "nvidia-t4", "--kv-type", "Q9"), "Q9"),
        (("fit", "FOLDER", "--device", "nvidia-t4", "--context", "0"), "context"),
        (("evaluate", "FOLDER", "--window", "1"), "window"),
        (("evaluate", "FOLDER", "--unknown"), "--unknown"),
        (("nonsense",), "nonsense"),
        (
            ("analyze", "FOLDER", "--text", "TEXT", "--window", "16", "--windows", "1", "--out", "/no/dir/x.json"),
            "/no/dir",
        ),
    ],
)
def test_bad_input_is_one_sentence_and_exit_code_two(folder, arguments, word):
    filled = [{"FOLDER": str(folder), "TEXT": str(folder / "text.txt")}.get(item, item) for item in arguments]
    message = run(*filled, code=2)
    assert word in message and len(message.splitlines()) == 1


@pytest.mark.slow
def test_the_published_figure_of_the_embedded_model():
    shared = ROOT.parent / "shared" / "data" / "wikitext-2-raw-test.jsonl"
    assert shared.is_file(), f"{shared} is missing: it comes with the checkout"
    found = json.loads(run("evaluate", "default", "--text", shared, "--window", 512, "--windows", 16, "--json"))
    assert found["perplexity"] == pytest.approx(36.634, abs=0.01)
    assert found["tokens"] == 16 * 511
