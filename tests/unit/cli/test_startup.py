"""`--help` and refused options of every verb load no heavy library."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from surgery.cli.main import VERBS

ROOT = Path(__file__).resolve().parents[3]
HEAVY = ("torch", "transformers", "gguf", "pyarrow", "gradio", "numpy", "safetensors", "tokenizers", "datasets")
ASK = """
import contextlib, io, json, sys
sys.path.insert(0, {root!r})
{first}
from surgery.cli.main import main
said = []
for arguments in {asked!r}:
    sys.argv = ["surgery", *arguments]
    out = io.StringIO()
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
            main()
    except SystemExit as ended:
        loaded = [name for name in {heavy!r} if name in sys.modules]
        said.append([ended.code, out.getvalue(), loaded])
print(json.dumps(said))
"""


def ask(*asked: tuple[str, ...], first: str = "") -> list[tuple[int, str, list[str]]]:
    """Exit code, words and heavy libraries loaded after each of some command lines, in one fresh process."""
    script = ASK.format(root=str(ROOT), first=first, asked=asked, heavy=HEAVY)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return [(code, words, loaded) for code, words, loaded in json.loads(done.stdout)]


NAMES = [verb.__name__ for verb in VERBS]


def test_the_verbs_are_those_of_the_contract() -> None:
    assert NAMES == [
        "suggest", "scan", "build", "heal", "iterate", "export", "fit", "quantize", "read", "ship", "verify", "inspect",
        "analyze", "methods", "evaluate",
    ]  # fmt: skip
    folder = ROOT / "surgery" / "cli"
    assert all((folder / f"{name}.py").is_file() for name in NAMES), "one file a verb, named after it"


def test_help_loads_nothing_heavy() -> None:
    asked = [("--help",), *((name, "--help") for name in NAMES)]
    for arguments, (code, words, loaded) in zip(asked, ask(*asked), strict=True):
        assert (code, loaded) == (0, []), arguments
        assert "Usage: " in words and "--help" in words


def test_refused_options_load_nothing_heavy() -> None:
    asked = [(name, *wrong) for name in NAMES for wrong in (("default", "--colour"), ("--out",))]
    for arguments, (code, words, loaded) in zip(asked, ask(*asked), strict=True):
        assert (code, loaded) == (2, []), arguments
        assert arguments[-1] in words and len(words.splitlines()) == 1


def test_a_recipe_that_cannot_be_read_is_refused_before_anything_heavy() -> None:
    asked = [
        ("build", "/no/recipe.json", "--out", "/no/such"),
        ("ship", "/no/recipe.json", "--out", "/no/such"),
        ("heal", "/no/recipe.json", "--out", "/no/such"),
        ("evaluate", "default", "--recipe", "/no/recipe.json"),
        ("read", "default", "--prompt", "a", "--recipe", "/no/recipe.json"),
        ("fit", "default", "--device", "nvidia-t4", "--recipe", "/no/recipe.json"),
        ("suggest", "default", "--method", "maw"),
    ]
    for arguments, (code, words, loaded) in zip(asked, ask(*asked), strict=True):
        assert (code, loaded) == (2, []), arguments
        assert "/no/recipe.json" in words or "exactly one budget" in words


def test_a_heavy_import_is_seen() -> None:
    """What the other tests look at shows a library that a verb's file would import at its top."""
    [(code, _, loaded)] = ask(("--help",), first="import numpy")
    assert (code, loaded) == (0, ["numpy"])
