"""Texts and token windows: where a text comes from, and how it becomes equal windows without padding."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from analysis.errors import TextError, brief
from analysis.model.architecture import Architecture

Purpose = Literal["calibration", "evaluation"]
JOIN = "\n\n"
TEXT_FOLDER = Path(__file__).resolve().parent.parent / "presets" / "text"
WIKITEXT = ("Salesforce/wikitext", "wikitext-2-raw-v1")
LARGEST_FILE = 256 * 2**20
"""Bytes of a text file that is read; a larger one is refused."""


@dataclass(frozen=True)
class Text:
    """A text with its origin. `source` is what a person typed, or `pasted`."""

    source: str
    content: str

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
    return Windows(ids, text.source, text.fingerprint, bos is not None, spread)


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
    """A text by its name.

    Args:
        source: `embedded` (the sample texts of this project), `wikitext-2` (Hub; validation split for calibration,
            test split for evaluation), `hub:owner/name[:configuration[:split]]`, or the path of a .txt, .jsonl
            (`text` or `messages`) or .parquet (`text`) file.
        purpose: which of a source's two halves is meant, where it has two.
        tokenizer: renders `messages` with its chat template; plain lines are used without one.

    Raises:
        TextError: unknown, unreadable or empty.
    """
    if source == "embedded":
        content = _read(TEXT_FOLDER / f"{purpose}.txt")
    elif source == "wikitext-2":
        content = JOIN.join(_hub_rows(*WIKITEXT, "validation" if purpose == "calibration" else "test", tokenizer))
    elif source.startswith("hub:"):
        content = JOIN.join(_hub_rows(*_hub_parts(source), tokenizer))
    else:
        content = load_file(Path(source), tokenizer)
    return checked(Text(source, content))


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


def load_file(path: Path, tokenizer: Any = None) -> str:
    """Content of a .txt, .jsonl or .parquet file, rows joined by an empty line.

    Raises:
        TextError: missing, too large, of another kind, or malformed.
    """
    try:
        size = path.stat().st_size if path.is_file() else None
    except OSError:  # a name that is too long, a folder that may not be entered
        size = None
    if size is None:
        raise TextError(
            f"There is no text file {str(path)[:200]!r}: use `embedded`, `wikitext-2`, `hub:owner/name` or a path."
        )
    if size > LARGEST_FILE:
        raise _too_large(path)
    readers: dict[str, Callable[[Path, Any], str]] = {
        ".txt": lambda file, _: _read(file),
        ".jsonl": lambda file, tok: JOIN.join(_jsonl_rows(file, tok)),
        ".parquet": lambda file, tok: JOIN.join(_parquet_rows(file, tok)),
    }
    reader = readers.get(path.suffix.lower())
    if reader is None:
        raise TextError(f"{path.name} is not a .txt, .jsonl or .parquet file: convert it to one of these.")
    return reader(path, tokenizer)


def _too_large(path: Path) -> TextError:
    return TextError(f"{path.name} is larger than {LARGEST_FILE // 2**20} MiB: cut it to the part you need.")


def _read(path: Path) -> str:
    """The file's text, without the byte order mark that Windows programs put in front."""
    try:
        return path.read_text("utf-8-sig")
    except UnicodeDecodeError:
        raise TextError(f"{path.name} is not UTF-8 text: save it as UTF-8 and try again.") from None
    except OSError as error:
        raise TextError(f"{path} cannot be read ({error.strerror}): check that it is there.") from None


def _jsonl_rows(path: Path, tokenizer: Any) -> Iterator[str]:
    for number, line in enumerate(_read(path).split("\n"), 1):  # splitlines would cut at U+2028 inside a string
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            raise TextError(f"Line {number} of {path.name} is not JSON: each line must be one JSON object.") from None
        yield _row_text(row, f"line {number} of {path.name}", tokenizer)


def _parquet_rows(path: Path, tokenizer: Any) -> Iterator[str]:
    import pyarrow
    import pyarrow.parquet

    try:
        file = pyarrow.parquet.ParquetFile(path)
        columns = [name for name in ("text", "messages") if name in file.schema_arrow.names]
        if not columns:
            raise TextError(f"{path.name} has no `text` or `messages` column: rename the column that holds the text.")
        unpacked = 0
        for batch in file.iter_batches(batch_size=1024, columns=columns[:1]):
            unpacked += batch.nbytes
            if unpacked > LARGEST_FILE:
                raise _too_large(path)
            for row in batch.to_pylist():
                yield _row_text(row, path.name, tokenizer)
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError):
        raise TextError(f"{path.name} is not a readable Parquet file: write it again and try once more.") from None


def _row_text(row: Any, where: str, tokenizer: Any) -> str:
    if isinstance(row, dict) and isinstance(row.get("text"), str):
        return str(row["text"])
    messages = row.get("messages") if isinstance(row, dict) else None
    if isinstance(messages, list) and all(isinstance(m, dict) and isinstance(m.get("content"), str) for m in messages):
        if tokenizer is not None and getattr(tokenizer, "chat_template", None):
            return render_chat(tokenizer, messages, where, "put its messages right")
        return "\n".join(f"{message.get('role', 'user')}: {message['content']}" for message in messages)
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


def _hub_parts(source: str) -> tuple[str, str | None, str]:
    parts = source.removeprefix("hub:").split(":")
    if not parts[0] or len(parts) > 3:
        raise TextError(f"{source[:200]!r} is not a data set: write it as `hub:owner/name[:configuration[:split]]`.")
    return parts[0], (parts[1] or None) if len(parts) > 1 else None, parts[2] if len(parts) > 2 else "train"


def _hub_rows(name: str, configuration: str | None, split: str, tokenizer: Any) -> Iterable[str]:
    import datasets

    try:
        data = datasets.load_dataset(name, configuration, split=split)
    except Exception as error:  # the library raises many kinds; every one means the same to the person
        raise TextError(
            f"The data set {name[:200]!r} ({split}) could not be loaded ({brief(error)}): check its name and the "
            "network."
        ) from None
    if not {"text", "messages"} & set(data.column_names):
        raise TextError(
            f"The data set {name[:200]!r} has no `text` or `messages` column, only "
            f"{', '.join(data.column_names)[:200]}: choose one that has."
        )
    return (_row_text(row, f"the data set {name[:200]}", tokenizer) for row in data)
