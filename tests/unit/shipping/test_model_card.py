"""Model cards: what they say, that nothing in them can be made into markup, and Modelfiles."""

from __future__ import annotations

import ast
import re
import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

import markdown_it
import pytest
import yaml

from surgery.models.loading import Loaded
from surgery.recipe.base import ModelReference, TextReference
from surgery.recipe.edits import Compensate, RemoveBlocks
from surgery.recipe.recipe import Recipe
from surgery.recipe.storage import Quantize
from surgery.shipping.model_card import model_card
from surgery.shipping.modelfile import CHATML as OLLAMA
from surgery.shipping.modelfile import chatml_system, modelfile
from surgery.shipping.origin import origin_of
from surgery.shipping.record import Measured, Origin, Part, Protocol, ShipRecord
from tests import tiny_workbench
from tests.shipped import CHATML
from tests.tiny_checkpoints import tokenizer

MEASURED = Measured(nll=3.5, perplexity=33.1, standard_error=1.5, difference=0.25, difference_standard_error=0.01)
PROTOCOL = Protocol(
    text="test.jsonl", text_fingerprint="0123456789abcdef", windows_fingerprint="fedcba9876543210", window=512,
    windows=16, spread=False, bos=True, tokens=8176, dtype="float32", dense_nll=3.25, dense_perplexity=25.79, kept=True,
)  # fmt: skip
CHECKPOINT = Part(kind="checkpoint", files=("model.safetensors",), bytes=400, type="float32", measured=MEASURED)
FILE = Part(
    kind="gguf", files=("tiny-Q4_K.gguf",), bytes=100, type="Q4_K", architecture="deci", notes=("A note.",),
    measured=MEASURED.model_copy(update={"perplexity": "inf", "standard_error": "inf"}),
)  # fmt: skip
RECORD = ShipRecord(
    recipe="abcdef", words="29 blocks kept, 1 removed",
    origin=Origin(name="base", base_model="owner/base", licence="mit"),
    parameters=90, dense_parameters=100, blocks=29, dense_blocks=30, dense_bytes=450, protocol=PROTOCOL,
    parts=(CHECKPOINT, FILE),
)  # fmt: skip
RECIPE = Recipe(model=ModelReference(id="owner/base", revision="v1"), edits=(RemoveBlocks(blocks=(1,)),))
HOSTILE = (
    "a/<img src=x onerror=alert(1)>[click](javascript:alert(1))\n---\nlicense: stolen\n# Title\n```\n| x | `y` "
    "https://evil.example www.evil.example $(rm -rf ~) 'q' \"d\" \\ {{ 7*7 }} \u202e **bold**"
)


def front_matter(card: str) -> dict[str, Any]:
    assert card.startswith("---\n")
    matter = card.removeprefix("---\n").partition("\n---\n")[0]
    found = yaml.safe_load(matter)
    assert isinstance(found, dict)
    return found


def blocks(card: str, language: str) -> list[str]:
    tokens = markdown_it.MarkdownIt("gfm-like", {"linkify": False}).parse(card)
    return [token.content for token in tokens if token.type == "fence" and token.info == language]


def test_front_matter_is_what_the_hub_reads() -> None:
    assert front_matter(model_card(RECORD, RECIPE)) == {
        "base_model": "owner/base",
        "license": "mit",
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["model-surgery", "pruned", "gguf"],
    }
    mixed = RECORD.model_copy(update={"parts": (CHECKPOINT.model_copy(update={"plain": False}),)})
    assert front_matter(model_card(mixed, RECIPE))["tags"] == ["model-surgery", "pruned", "custom_code"]
    alone = RECORD.model_copy(update={"parts": (FILE,), "origin": Origin(name="base")})
    found = front_matter(model_card(alone, Recipe(model=RECIPE.model, edits=(Quantize(type="Q4_K"),))))
    assert found["library_name"] == "gguf" and found["tags"] == ["model-surgery", "gguf"]
    assert "license" not in found and "base_model" not in found
    assert "Licence: as the base model." in model_card(alone, RECIPE)


def test_the_table_and_the_protocol() -> None:
    card = model_card(RECORD, RECIPE, has_modelfile=True)
    for row in (
        "|  | source | checkpoint, float32 | GGUF, Q4\\_K |",
        "| parameters | 100 | 90 (90.0%) | 90 (90.0%) |",
        "| bytes of the weights | 450 | 400 | 100 |",
        "| perplexity | 25.790 | 33.100 ± 1.500 | inf ± inf |",
        "| loss above the source, nats per token |  | +0.250 ± 0.010 | +0.250 ± 0.010 |",
    ):
        assert row in card
    assert "test.jsonl (SHA-256 0123456789abcdef…), 16 windows of 512 tokens from its beginning, 8,176 scored" in card
    assert "BOS at the start of every window" in card and "float32" in card and "Note: A note." in card
    assert "29 blocks kept, 1 removed" in card and "`Modelfile`" in card and "ollama create base-smaller" in card
    unmeasured = RECORD.model_copy(
        update={"protocol": None, "parts": (CHECKPOINT.model_copy(update={"measured": None}),)}
    )
    card = model_card(unmeasured, RECIPE)
    assert "was not measured" in card and "| perplexity" not in card and "SHA256SUMS" not in card


def test_commands_and_lines_are_whole_and_quoted() -> None:
    text = TextReference(source="my text.jsonl", fingerprint="x", window=512, windows=16)
    recipe = Recipe(model=ModelReference(id="/home/me/base"), edits=(Compensate(how="bias", text=text),))
    protocol = PROTOCOL.model_copy(update={"text": "a b's.jsonl", "spread": True, "kept": False})
    parts = (FILE,)
    record = RECORD.model_copy(update={"protocol": protocol, "parts": parts, "origin": Origin(name="my base")})
    card = model_card(record, recipe)
    command = next(line for block in blocks(card, "sh") for line in block.splitlines() if " ship " in line)
    assert shlex.split(command) == [
        "python", "-m", "surgery", "ship", "recipe.json", "--out", "again", "--model", "my base",
        "--calibration", "my text.jsonl", "--no-checkpoint", "--type", "Q4_K",
        "--text", "a b's.jsonl", "--window", "512", "--windows", "16", "--spread",
    ]  # fmt: skip
    check = next(line for block in blocks(card, "sh") for line in block.splitlines() if " verify " in line)
    assert shlex.split(check)[3:] == ["verify", ".", "--text", "a b's.jsonl"]
    for block in blocks(card, "python"):
        ast.parse(block)
    assert "/home/me" not in card and "stands for the source model" in card


def test_nothing_that_comes_from_elsewhere_becomes_markup() -> None:
    origin = Origin(name=HOSTILE, base_model=HOSTILE, licence=HOSTILE, licence_name=HOSTILE, licence_link=HOSTILE,
                    revision=HOSTILE[:200], note=HOSTILE)  # fmt: skip
    protocol = PROTOCOL.model_copy(update={"text": HOSTILE, "dtype": HOSTILE, "kept": False})
    part = CHECKPOINT.model_copy(update={"type": HOSTILE, "notes": (HOSTILE,), "plain": False})
    file = FILE.model_copy(update={"notes": (HOSTILE,), "architecture": HOSTILE, "files": (HOSTILE,)})
    record = RECORD.model_copy(update={"origin": origin, "protocol": protocol, "parts": (part, file), "words": HOSTILE})
    text = TextReference(source=HOSTILE, fingerprint="x", window=512, windows=16)
    recipe = Recipe(
        model=ModelReference(id=HOSTILE, revision=HOSTILE[:200]), edits=(Compensate(how="bias", text=text),)
    )
    card = model_card(record, recipe, has_modelfile=True)
    matter = front_matter(card)
    assert matter["base_model"] != "stolen" and set(matter["license"]) - set("stolen")
    reader = markdown_it.MarkdownIt("gfm-like", {"linkify": False, "html": True})
    body = card.partition("\n---\n")[2]
    kinds, links, prose = [], [], ""
    for token in reader.parse(body):
        kinds.append(token.type)
        words = token.content if token.type == "inline" else ""
        for child in token.children or []:
            kinds.append(child.type)
            if child.type == "link_open":
                links.append(child.attrs["href"])
                words = words.replace(child.attrs["href"], "")
            if child.type == "code_inline":
                words = words.replace(f"`{child.content}`", "")
        prose += words
    assert not {"html_block", "html_inline", "image", "strong_open", "em_open", "s_open"} & set(kinds)
    assert "://" not in prose and "www." not in prose, "nor a bare address, which some readers make a link of"
    [link] = links
    assert link.startswith("https://huggingface.co/a/%3Cimg") and not re.search("[()<>\"' ]", link)
    headings = [line for line in body.splitlines() if line.startswith("#")]
    plain = model_card(RECORD, RECIPE, has_modelfile=True).partition("\n---\n")[2]
    assert len(headings) == sum(line.startswith("#") for line in plain.splitlines())
    assert kinds.count("fence") == [t.type for t in reader.parse(plain)].count("fence")
    assert "\u202e" not in card
    for block in blocks(card, "python"):
        ast.parse(block)
    for block in blocks(card, "sh"):
        for line in block.splitlines():
            words = shlex.split(line)
            assert words[0] in ("python", "sha256sum", "llama-cli", "llama-server", "ollama")
            assert "$(rm" not in re.sub("'[^']*'", "", line.replace("'\"'\"'", ""))


def loaded(identity: str, revision: str | None = None) -> Loaded:
    return replace(tiny_workbench.loaded(), id=identity, revision=revision, note="A note.")


def test_where_a_model_comes_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    embedded = origin_of(loaded("default"))
    assert embedded.base_model == "HuggingFaceTB/SmolLM2-135M-Instruct" and embedded.licence == "apache-2.0"
    assert embedded.note == "A note."
    asked = []

    def download(name: str, file: str, revision: str | None = None) -> str:
        asked.append((name, file, revision))
        return str(card)

    card = tmp_path / "hub.md"
    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    card.write_text(
        "---\nlicense: other\nlicense_name: gemma\nlicense_link: https://x.example\nbase_model: [a, b]\n---\n"
    )
    found = origin_of(loaded("owner/base", "v1"))
    assert asked == [("owner/base", "README.md", "v1")]
    assert (found.name, found.base_model, found.revision) == ("base", "owner/base", "v1")
    assert (found.licence, found.licence_name, found.licence_link) == ("other", "gemma", "https://x.example")
    for text in (
        "no front matter",
        "---\nlicense: [1, 2]\n---\n",
        "---\n: : :\n  - [\n---\n",
        "---\n!!python/object:os.system x\n---\n",
    ):
        card.write_text(text)
        found = origin_of(loaded("owner/base"))
        assert found.licence is None and found.base_model == "owner/base"
    monkeypatch.setattr(
        "huggingface_hub.hf_hub_download", lambda *_, **__: (_ for _ in ()).throw(OSError("no network"))
    )
    assert origin_of(loaded("owner/base")).licence is None


def test_a_folder_is_named_by_its_last_part_and_its_card(tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    folder.mkdir()
    assert origin_of(loaded(str(folder))) == Origin(name="mine", note="A note.")
    (folder / "README.md").write_text("---\nbase_model: owner/base\nlicense: mit\n---\n")
    found = origin_of(loaded(str(folder)))
    assert (found.base_model, found.licence) == ("owner/base", "mit")
    assert origin_of(loaded(str(tmp_path / "some.gguf"))) == Origin(name="some.gguf", note="A note.")


def chat(template: str) -> Any:
    made = tokenizer()
    made.chat_template = template
    return made


def go(template: str, system: str, talk: list[tuple[str, str]]) -> str:
    """What Ollama makes of the template: range over the messages, fields in, the system message first."""
    head, inner, tail = re.fullmatch(r"(.*?){{ range .Messages }}(.*?){{ end }}(.*)", template, re.DOTALL).groups()  # type: ignore[union-attr]
    talk = ([("system", system)] if system else []) + talk
    return head + "".join(inner.replace("{{ .Role }}", r).replace("{{ .Content }}", c) for r, c in talk) + tail


def test_a_chatml_model_gets_a_template_and_others_do_not() -> None:
    plain, greeting = (
        chat(CHATML),
        chat("{% if messages[0]['role'] != 'system' %}<|im_start|>system\nBe kind.<|im_end|>\n{% endif %}" + CHATML),
    )
    assert chatml_system(plain) == "" and chatml_system(greeting) == "Be kind."
    for made in (plain, greeting):
        text = modelfile("x.gguf", made, {"temperature": 0.6, "top_p": 0.9, "top_k": 20}, (1,), 32768)
        assert text.chat and text.text.startswith("FROM ./x.gguf\n") and f'TEMPLATE """{OLLAMA}"""' in text.text
        assert (
            "PARAMETER num_ctx 8192\nPARAMETER temperature 0.6\nPARAMETER top_k 20\nPARAMETER top_p 0.9\n" in text.text
        )
        assert 'PARAMETER stop "</s>"\nPARAMETER stop "<|im_end|>"\n' in text.text
        system = re.search('SYSTEM """(.*)"""', text.text)
        talk = [("user", "one"), ("assistant", "two"), ("user", "three")]
        messages = [{"role": role, "content": words} for role, words in talk]
        expected = made.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        assert go(OLLAMA, system[1] if system else "", talk) == expected
    other = "{% for m in messages %}[INST]{{ m['content'] }}[/INST]{% endfor %}"
    refusing = "{{ raise_exception('no') }}"
    trimmed = CHATML.replace("message['content']", "message['content'] | upper")
    for template in (other, refusing, trimmed, "{{ nothing.at.all }}", "{{ '<|im_start|>' }}" + CHATML):
        text = modelfile("x.gguf", chat(template), {}, (), 128)
        assert not text.chat and 'TEMPLATE """' not in text.text and "num_ctx 128" in text.text
    assert chatml_system(tokenizer()) is None and chatml_system(tiny_workbench.CharacterTokenizer()) is None


def test_a_system_message_cannot_leave_its_quotes() -> None:
    escape = 'x""" \nPARAMETER temperature 9\nSYSTEM """'
    made = chat(
        "{% if messages[0]['role'] != 'system' %}<|im_start|>system\n" + escape + "<|im_end|>\n{% endif %}" + CHATML
    )
    assert "temperature" not in modelfile("x.gguf", made, {}, (), 128).text
