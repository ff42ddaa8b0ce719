"""Texts and token windows: where a text comes from, and how it becomes equal windows without padding."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from analysis.errors import TextError, brief
from analysis.files import LARGEST_TEXT, check_text_source, hub_parts, too_large
from analysis.model.architecture import Architecture

Purpose = Literal["calibration", "evaluation"]
JOIN = "\n\n"
TEXT_FOLDER = Path(__file__).resolve().parent.parent / "presets" / "text"
WIKITEXT = ("Salesforce/wikitext", "wikitext-2-raw-v1")
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Text:
    """A text with its origin. `source` is what a person typed, or `pasted`."""

    source: str
    content: str
    skipped: int = 0
    """Rows that held nothing."""

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the content, the first 16 hexadecimal digits."""
        return hashlib.sha256(self.content.encode("utf-8", "surrogatepass")).hexdigest()[:16]


@dataclass(frozen=True)
class Windows:
    """Equal windows of token ids, (windows, window)."""

    ids: torch.Tensor
    source: str
    text_fingerprint: str
    bos: bool
    """Whether every window begins with the tokenizer's BOS token (its own default decides)."""
    spread: bool = False
    """Whether the windows are evenly spaced over the whole text, instead of its first ones."""
    skipped: int = 0
    """Rows of the text's file that held nothing."""

    @property
    def count(self) -> int:
        """Number of windows."""
        return int(self.ids.shape[0])

    @property
    def length(self) -> int:
        """Tokens in a window, BOS included."""
        return int(self.ids.shape[1])

    @property
    def predictions(self) -> int:
        """Scored tokens over all windows."""
        return self.count * (self.length - 1)

    @property
    def fingerprint(self) -> str:
        """Identity of the exact token ids."""
        return fingerprint_of(self.ids)


def fingerprint_of(ids: torch.Tensor) -> str:
    """SHA-256 of the shape and the ids, the first 16 hexadecimal digits."""
    digest = hashlib.sha256(repr(tuple(ids.shape)).encode())
    digest.update(ids.contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


def make_windows(
    tokenizer: Any,
    text: Text,
    window: int,
    count: int | None = None,
    spread: bool = False,
    model: Architecture | None = None,
) -> Windows:
    """Tokenise once without special tokens and cut non-overlapping windows from the start.

    Every window begins with BOS where the tokenizer puts one before a text. A text that begins with BOS, as
    conversations do whose chat template writes it, gets none besides.

    Args:
        window: tokens in a window, at least 2.
        count: number of windows; all that the text holds when None.
        spread: take window floor(i x available / count) for each i, instead of the first ones: a text of many topics
            is seen in all its parts.
        model: what the windows are for: they are to be no longer than its positions, with no id beyond its vocabulary.

    Raises:
        TextError: the text is blank, broken or too short, the numbers make no sense, or the model cannot take them.
    """
    checked(text)
    if model is not None:
        check_length(window, model)
    if window < 2 or (count is not None and count < 1):
        raise TextError("A window needs at least 2 tokens, and there must be at least 1 window.")
    encoding = tokenizer(text.content, add_special_tokens=False, verbose=False)
    bos = _default_bos(tokenizer)
    if encoding["input_ids"][:1] == [bos]:
        bos = None
    body = window - (bos is not None)
    if body < 1:
        raise TextError("A window must hold at least one token besides BOS: choose a longer window.")
    tokens = torch.tensor(encoding["input_ids"], dtype=torch.long)
    available = len(tokens) // body
    wanted = available if count is None else count
    if available < max(wanted, 1):
        raise TextError(
            f"The text has {len(tokens)} tokens, which is {available} windows of {window}: "
            f"{max(wanted, 1)} were asked for, so give a longer text, shorter windows or fewer of them."
        )
    ids = tokens[: available * body].view(available, body)
    ids = ids[torch.arange(wanted) * available // wanted] if spread else ids[:wanted]
    if bos is not None:
        ids = torch.cat([torch.full((wanted, 1), bos, dtype=torch.long), ids], dim=1)
    if model is not None:
        check_ids(ids, model.vocabulary_size)
    return Windows(ids, text.source, text.fingerprint, bos is not None, spread, text.skipped)


def check_length(window: int, model: Architecture) -> None:
    """Raise TextError for windows that are longer than a model's positions."""
    if model.context_length and window > model.context_length:
        raise TextError(
            f"The model takes at most {model.context_length:,} tokens a window and {window:,} were asked for: choose "
            "shorter windows."
        )


def check_ids(ids: torch.Tensor, rows: int) -> None:
    """Raise TextError for token ids for which a model has no embedding.

    Args:
        ids: of any shape, not empty.
        rows: of the embeddings.
    """
    largest = int(ids.max())
    if largest >= rows:
        raise TextError(
            f"The tokenizer gives this text the id {largest:,} and the model has {rows:,} tokens: use the tokenizer "
            "that belongs to the model, or leave that token out of the text."
        )


def _default_bos(tokenizer: Any) -> int | None:
    """The BOS id, if the tokenizer puts one in front of a text by its own default."""
    bos = getattr(tokenizer, "bos_token_id", None)
    ids = tokenizer("a")["input_ids"]
    return int(bos) if bos is not None and ids[:1] == [bos] else None


def load_text(source: str, purpose: Purpose = "evaluation", tokenizer: Any = None) -> Text:
    """A text by its name. Rows of a data set without content are skipped and counted, which is logged.

    Args:
        source: `embedded` (the sample texts of this project), `wikitext-2` (Hub; validation split for calibration,
            test split for evaluation), `hub:owner/name[:configuration[:split]]`, or the path of a .txt, .jsonl
            (`text` or `messages`) or .parquet file.
        purpose: which of a source's two halves is meant, where it has two.
        tokenizer: renders `messages` with its chat template; plain lines are used without one.

    Raises:
        TextError: unknown, unreadable or empty; of a row that cannot be read the message has the number.
    """
    check_text_source(source)
    skipped = Skipped(source)
    if source == "embedded":
        content = _read(TEXT_FOLDER / f"{purpose}.txt")
    elif source == "wikitext-2":
        rows = hub_rows(*WIKITEXT, "validation" if purpose == "calibration" else "test")
        content = JOIN.join(_contents(rows, tokenizer, skipped))
    elif source.startswith("hub:"):
        content = JOIN.join(_contents(hub_rows(*hub_parts(source)), tokenizer, skipped))
    else:
        content = load_file(Path(source), tokenizer, skipped)
    skipped.tell()
    return checked(Text(source, content, skipped.rows))


@dataclass
class Skipped:
    """Counts the rows of a data set that hold nothing."""

    source: str
    rows: int = 0

    def tell(self) -> None:
        """Log how many there were, if any."""
        if self.rows:
            log.warning("%s of %s held nothing and %s skipped.", *self._words())

    def _words(self) -> tuple[str, str, str]:
        plural = self.rows != 1
        return f"{self.rows} row{'s' if plural else ''}", self.source[:200], "were" if plural else "was"


def checked(text: Text) -> Text:
    """The text itself, unless it is blank or broken.

    Raises:
        TextError: there is nothing but white space, or half of a character that no tokenizer takes.
    """
    if not text.content.strip():
        raise TextError(f"The text {text.source[:200]!r} is empty: give a text with words in it.")
    try:
        text.content.encode()
    except UnicodeEncodeError as error:
        raise TextError(
            f"The text {text.source[:200]!r} has half a character (a lone surrogate) at position {error.start}: "
            "remove it."
        ) from None
    return text


def load_file(path: Path, tokenizer: Any = None, skipped: Skipped | None = None) -> str:
    """Content of a .txt, .jsonl or .parquet file, rows joined by an empty line.

    Args:
        skipped: counts the rows that hold nothing.

    Raises:
        TextError: missing, too large, of another kind, or malformed.
    """
    check_text_source(str(path))
    if path.suffix.lower() == ".txt":
        return _read(path)
    return JOIN.join(_contents(file_rows(path), tokenizer, skipped or Skipped(str(path))))


def _read(path: Path) -> str:
    """The file's text, without the byte order mark that Windows programs put in front."""
    try:
        return path.read_text("utf-8-sig")
    except UnicodeDecodeError:
        raise TextError(f"{path.name} is not UTF-8 text: save it as UTF-8 and try again.") from None
    except OSError as error:
        raise TextError(f"{path} cannot be read ({error.strerror}): check that it is there.") from None


def file_rows(path: Path) -> Iterator[tuple[str, Any]]:
    """Rows of a .jsonl or .parquet file, each with words for its place.

    Raises:
        TextError: unreadable, or neither of the two.
    """
    check_text_source(str(path))
    return _parquet_rows(path) if path.suffix.lower() == ".parquet" else _jsonl_rows(path)


def _jsonl_rows(path: Path) -> Iterator[tuple[str, Any]]:
    for number, line in enumerate(_read(path).split("\n"), 1):  # splitlines would cut at U+2028 inside a string
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            raise TextError(f"Line {number} of {path.name} is not JSON: each line must be one JSON object.") from None
        yield f"line {number} of {path.name}", row


def _parquet_rows(path: Path) -> Iterator[tuple[str, Any]]:
    import pyarrow
    import pyarrow.parquet

    try:
        file = pyarrow.parquet.ParquetFile(path)
        columns = [name for name in ("text", "messages") if name in file.schema_arrow.names]
        if not columns:
            raise TextError(f"{path.name} has no `text` or `messages` column: rename the column that holds the text.")
        unpacked = number = 0
        for batch in file.iter_batches(batch_size=1024, columns=columns):
            unpacked += batch.nbytes
            if unpacked > LARGEST_TEXT:
                raise too_large(path)
            for row in batch.to_pylist():
                number += 1
                yield f"row {number} of {path.name}", row
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError):
        raise TextError(f"{path.name} is not a readable Parquet file: write it again and try once more.") from None


def _contents(rows: Iterable[tuple[str, Any]], tokenizer: Any, skipped: Skipped) -> Iterator[str]:
    """The text of every row that holds something."""
    for where, row in rows:
        content = row_content(row, where)
        if content is None:
            skipped.rows += 1
        elif isinstance(content, str):
            yield content
        elif tokenizer is not None and getattr(tokenizer, "chat_template", None):
            yield render_chat(tokenizer, content, where, "put its messages right")
        else:
            yield "\n".join(f"{message.get('role', 'user')}: {message['content']}" for message in content)


def row_content(row: Any, where: str) -> str | list[dict[str, Any]] | None:
    """What a row of a data set holds: a text, a conversation, or nothing (null, or a conversation without messages).

    Args:
        row: a parsed row.
        where: words for its place, for the error.

    Raises:
        TextError: neither, or malformed.
    """
    if isinstance(row, dict) and {"text", "messages"} & row.keys():
        text, messages = row.get("text"), row.get("messages")
        if isinstance(text, str):
            return text
        if text is None and messages in (None, []):
            return None
        if isinstance(messages, list) and all(
            isinstance(one, dict) and isinstance(one.get("content"), str) for one in messages
        ):
            return messages
    raise TextError(
        f"In {where} there is no `text` (a string) and no `messages` (a list of role and content): add one of them."
    )


def render_chat(tokenizer: Any, messages: list[dict[str, Any]], where: str, advice: str, ask: bool = False) -> str:
    """A conversation by the tokenizer's chat template.

    Args:
        tokenizer: has a chat template.
        messages: each with its role and content.
        where: what they are, for the error.
        advice: what to do then, for the error.
        ask: whether to end where the assistant is to begin.

    Raises:
        TextError: the template refuses them.
    """
    import jinja2

    try:
        return str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=ask))
    except (jinja2.TemplateError, TypeError, KeyError, ValueError) as error:  # roles out of turn, say
        raise TextError(f"The model's chat template refuses {where} ({brief(error)}): {advice}.") from None


def hub_rows(name: str, configuration: str | None, split: str, streaming: bool = False) -> Iterator[tuple[str, Any]]:
    """Rows of a data set of the Hub, or of a folder, each with words for its place.

    Args:
        streaming: whether nothing is downloaded but what is read.

    Raises:
        TextError: it cannot be had, or has neither texts nor conversations.
    """
    import datasets

    named = f"{name[:200]!r} ({split})"
    number = 0
    try:
        data = datasets.load_dataset(name, configuration, split=split, streaming=streaming)
        columns = getattr(data, "column_names", None)
        if columns and not {"text", "messages"} & set(columns):
            raise TextError(
                f"The data set {name[:200]!r} has no `text` or `messages` column, only {', '.join(columns)[:200]}: "
                "choose one that has."
            )
        for row in data:
            number += 1
            yield f"row {number} of the data set {name[:200]}", row
    except TextError:
        raise
    except Exception as error:  # the library raises many kinds; every one means the same to the person
        place = f"broke off after {number} rows" if number else "could not be loaded"
        raise TextError(f"The data set {named} {place} ({brief(error)}): check its name and the network.") from None
