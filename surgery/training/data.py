"""The healing text: packed windows, which of their tokens are learnt from, and that none of it is evaluated on."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from analysis.files import hub_parts
from analysis.model.architecture import Architecture
from analysis.text import (
    JOIN,
    Skipped,
    Text,
    Windows,
    check_ids,
    check_length,
    file_rows,
    hub_rows,
    load_text,
    make_windows,
    render_chat,
    row_content,
)
from surgery.errors import InputError, TextError

SHORTEST_DOCUMENT = 80
"""Characters from which on a paragraph stands for a document: headings and phrases come twice by right."""
CHARACTERS_PER_TOKEN = 8
"""Characters that are streamed for each token that is asked for: more than any usual text has."""


@dataclass(frozen=True)
class HealingText:
    """Windows to learn from.

    `learnt` (windows, tokens), bool, says which tokens count in the loss when they are predicted; a window's first
    token never is. `documents` has the beginning of every paragraph by its hash.
    """

    windows: Windows
    learnt: torch.Tensor
    documents: dict[str, str]

    def split(self, held_out: int) -> tuple[HealingText, HealingText]:
        """All but the last windows, and these; both know all documents."""
        parts = []
        for rows in (slice(None, -held_out), slice(-held_out, None)):
            source = self.windows
            windows = Windows(source.ids[rows], source.source, source.text_fingerprint, source.bos, source.spread)
            parts.append(HealingText(windows, self.learnt[rows], self.documents))
        return parts[0], parts[1]


def documents_of(content: str) -> dict[str, str]:
    """The first words of each paragraph (a line of `SHORTEST_DOCUMENT` characters or more) by its hash.

    White space and case do not count, so that the same document in another file format is the same.
    """
    found: dict[str, str] = {}
    for line in content.split("\n"):
        words = " ".join(line.split())
        if len(words) >= SHORTEST_DOCUMENT:
            found[hashlib.sha256(words.lower().encode()).hexdigest()[:16]] = words[:60]
    return found


def check_apart(healing: dict[str, str], evaluated: str) -> None:
    """Refuse a text for evaluation that shares a document with the healing text.

    Args:
        healing: documents by hash, as `documents_of` gives them.
        evaluated: content of the text that a healed model is measured on.

    Raises:
        TextError: they share one; the message names it.
    """
    shared = [healing[key] for key in documents_of(evaluated) if key in healing]
    if shared:
        raise TextError(
            f"{len(shared)} documents are in the healing text and in the evaluation text, first {shared[0]!r}: "
            "heal on another text, or measure on another one."
        )


def load_healing_text(
    tokenizer: Any,
    source: str,
    window: int,
    count: int,
    spread: bool = False,
    answers_only: bool = False,
    content: str | None = None,
    model: Architecture | None = None,
) -> HealingText:
    """A healing text cut into windows.

    Args:
        source: as `analysis.text.load_text` reads it; `hub:` sets are streamed until there are enough tokens.
        window: tokens in a window.
        spread: windows evenly spaced over the text; a streamed text is read only as far as needed.
        answers_only: learn from what the assistant says in `messages` alone (a .jsonl file or a `hub:` set).
        content: a pasted text, instead of the source's.
        model: what is healed: windows are to be no longer than its positions, with no id beyond its vocabulary.

    Raises:
        TextError: unreadable, too short, without conversations where they are asked for, or not for that model.
    """
    if model is not None:
        check_length(window, model)
    if content is not None:
        text = Text("pasted", content)
    elif answers_only:
        return _conversations(tokenizer, source, window, count, model)
    elif source.startswith("hub:"):
        text = _streamed(source, window * count, tokenizer)
    else:
        text = load_text(source, "calibration", tokenizer)
    windows = make_windows(tokenizer, text, window, count, spread, model)
    learnt = torch.ones_like(windows.ids, dtype=torch.bool)
    return HealingText(windows, learnt, documents_of(text.content))


def _streamed(source: str, tokens: int, tokenizer: Any) -> Text:
    parts: list[str] = []
    size, skipped = 0, Skipped(source)
    for where, row in hub_rows(*hub_parts(source), streaming=True):
        content = row_content(row, where)
        if content is None:
            skipped.rows += 1
            continue
        parts.append(content if isinstance(content, str) else _rendered(tokenizer, content, where))
        size += len(parts[-1])
        if size > tokens * CHARACTERS_PER_TOKEN:
            break
    skipped.tell()
    return Text(source, JOIN.join(parts), skipped.rows)


def _talks(source: str, skipped: Skipped) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """The conversations of a file or a Hub set, each with words for its place."""
    if source.startswith("hub:"):
        rows = hub_rows(*hub_parts(source), streaming=True)
    elif source.lower().endswith((".jsonl", ".parquet")):
        rows = file_rows(Path(source))
    else:
        raise TextError(f"{source[:200]} holds no conversations: give a .jsonl file or a hub: set with `messages`.")
    for where, row in rows:
        content = row_content(row, where)
        if content is None:
            skipped.rows += 1
        elif isinstance(content, str):
            raise TextError(
                f"In {where} there are no `messages` (a list of role and content): choose a set of conversations."
            )
        else:
            yield where, content


def _rendered(tokenizer: Any, messages: list[dict[str, Any]], source: str = "", ask: bool = False) -> str:
    """Messages by the chat template; `ask` ends where the assistant is to begin."""
    if not getattr(tokenizer, "chat_template", None):
        raise TextError("The model has no chat template: heal on plain text instead of conversations.")
    return render_chat(tokenizer, messages, source, "put it right", ask)


def answer_spans(tokenizer: Any, messages: list[dict[str, Any]], source: str = "") -> tuple[str, list[tuple[int, int]]]:
    """A conversation by the chat template, and the half-open ranges of characters that the assistant writes.

    A range goes from where the template asks for an answer to where the answer with its end mark is over.

    Raises:
        TextError: the template changes what came before when an answer is added, so that no range can be told.
    """
    whole = _rendered(tokenizer, messages, source)
    spans: list[tuple[int, int]] = []
    for place, message in enumerate(messages):
        if message.get("role") != "assistant":
            continue
        asked = _rendered(tokenizer, messages[:place], source, ask=True)
        answered = _rendered(tokenizer, messages[: place + 1], source)
        if not (whole.startswith(answered) and answered.startswith(asked)):
            raise TextError(
                "The model's chat template rewrites earlier messages, so answers cannot be told apart: "
                "leave answers-only off."
            )
        spans.append((len(asked), len(answered)))
    return whole, spans


def _conversations(
    tokenizer: Any, source: str, window: int, count: int, model: Architecture | None = None
) -> HealingText:
    """Conversations one after the other, packed without gaps."""
    skipped = Skipped(source)
    needed = window * count
    ids: list[int] = []
    learnt: list[bool] = []
    digest = hashlib.sha256()
    documents: dict[str, str] = {}
    for where, messages in _talks(source, skipped):
        whole, spans = answer_spans(tokenizer, messages, where)
        try:
            encoding = tokenizer(whole, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        except NotImplementedError:
            raise TextError("The model's tokenizer cannot say where its tokens lie: leave answers-only off.") from None
        ids += encoding["input_ids"]
        learnt += [any(low <= start < high for low, high in spans) for start, _ in encoding["offset_mapping"]]
        digest.update(whole.encode("utf-8", "surrogatepass"))
        documents |= documents_of("\n".join(str(message["content"]) for message in messages))
        if len(ids) >= needed and source.startswith("hub:"):
            break
    skipped.tell()
    if len(ids) < needed:
        raise TextError(
            f"The conversations have {len(ids)} tokens, and {count} windows of {window} were asked for: "
            "give more of them, shorter windows or fewer."
        )
    mask = torch.tensor(learnt[:needed]).view(count, window)
    if not mask[:, 1:].any():
        raise TextError("The conversations have no answer of an assistant: leave answers-only off.")
    cut = torch.tensor(ids[:needed]).view(count, window)
    if model is not None:
        check_ids(cut, model.vocabulary_size)
    windows = Windows(cut, source, digest.hexdigest()[:16], bos=False, skipped=skipped.rows)
    return HealingText(windows, mask, documents)


def largest_count(tokenizer: Any, source: str, window: int, most: int) -> int:
    """Windows that a text has, at most `most`; a streamed one is taken to have as many as are asked for.

    Raises:
        InputError: it has fewer than 2.
    """
    if source.startswith("hub:"):
        return most
    text = load_text(source, "calibration", tokenizer)
    count = min(make_windows(tokenizer, text, window).count, most)
    if count < 2:
        raise InputError(f"The healing text has less than two windows of {window} tokens: choose a longer text.")
    return count
