"""The Modelfile from which Ollama makes a model of a GGUF file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from analysis.text import render_chat
from surgery.errors import TextError
from surgery.gguf.sampling import sampling

LARGEST_CONTEXT = 8192
"""Tokens of context that are asked for: Ollama sets memory aside for all of them. A person may raise it."""
CHATML = """{{ range .Messages }}<|im_start|>{{ .Role }}
{{ .Content }}<|im_end|>
{{ end }}<|im_start|>assistant
"""
"""ChatML in the language of Ollama's templates (Go's text/template); it puts SYSTEM first among the messages."""


@dataclass(frozen=True)
class Modelfile:
    """A Modelfile and what a person should know of it."""

    text: str
    chat: bool
    """Whether it says how a conversation is written."""


def modelfile(
    gguf: str,
    tokenizer: Any,
    generation: Mapping[str, Any],
    ends: Sequence[int],
    context_length: int,
    adapter: str = "",
) -> Modelfile:
    """The Modelfile of a GGUF file.

    Args:
        gguf: the file's name, beside the Modelfile.
        tokenizer: of the model; its chat template is tried out.
        generation: the model's generation settings, for how tokens are drawn.
        ends: the tokens that end an answer.
        context_length: of the file, in tokens.
        adapter: name of a GGUF LoRA file beside it, if there is one.

    Raises:
        CorruptFile: a generation setting is not a number.
    """
    lines = [f"FROM ./{gguf}", *([f"ADAPTER ./{adapter}"] if adapter else []), ""]
    system = chatml_system(tokenizer)
    if system is None:
        lines += ["# No TEMPLATE: the model's chat template is not one that is known here in Ollama's language."]
    else:
        lines += [f'TEMPLATE """{CHATML}"""']
        lines += [f'SYSTEM """{system}"""'] if system and '"""' not in system else []
    lines += ["", f"PARAMETER num_ctx {min(context_length, LARGEST_CONTEXT)}"]
    lines += [f"PARAMETER {setting.parameter} {value:g}" for setting, value in sampling(generation)]
    stops = {str(tokenizer.decode([end])) for end in ends} - {""} | (set() if system is None else {"<|im_end|>"})
    lines += [f'PARAMETER stop "{stop}"' for stop in sorted(stops) if '"' not in stop and stop.isprintable()]
    return Modelfile("\n".join([*lines, ""]), system is not None)


def chatml_system(tokenizer: Any) -> str | None:
    """The system message that a ChatML template puts in front where a conversation has none ("" if it puts nothing).

    None when the tokenizer's chat template is not ChatML, tried out on a conversation.
    """
    if not getattr(tokenizer, "chat_template", None):
        return None
    talk = [("system", "one"), ("user", "two"), ("assistant", "three"), ("user", "four")]
    if _rendered(tokenizer, talk) != _chatml(talk):
        return None
    alone, end = _rendered(tokenizer, talk[1:2]), _chatml(talk[1:2])
    if alone is None or not alone.endswith(end):
        return None
    first = alone.removesuffix(end)
    head, tail = "<|im_start|>system\n", "<|im_end|>\n"
    inner = first.removeprefix(head).removesuffix(tail)
    return inner if first in ("", f"{head}{inner}{tail}") else None


def _chatml(talk: list[tuple[str, str]]) -> str:
    return "".join(f"<|im_start|>{role}\n{words}<|im_end|>\n" for role, words in talk) + "<|im_start|>assistant\n"


def _rendered(tokenizer: Any, talk: list[tuple[str, str]]) -> str | None:
    messages = [{"role": role, "content": words} for role, words in talk]
    try:
        return render_chat(tokenizer, messages, "a trial", "leave it out", ask=True)
    except TextError:
        return None
