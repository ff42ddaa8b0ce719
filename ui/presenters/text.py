"""HTML for the page, into which text comes only escaped; numbers and sizes as people read them. Pure."""

from __future__ import annotations

import html
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Self

from markupsafe import Markup

UNSAFE = str.maketrans({"$": "&#36;", "{": "&#123;", "}": "&#125;", "`": "&#96;"})


class Html(Markup):
    """HTML that Gradio may also read as a template. What is formatted, joined or added into it is escaped for both."""

    __slots__ = ()

    @classmethod
    def escape(cls, s: object, /) -> Self:
        """Text as HTML; what is of this class, as it is."""
        return s if isinstance(s, cls) else cls(html.escape(str(s)).translate(UNSAFE))


def bytes_text(count: float) -> str:
    """A size in the largest fitting decimal unit."""
    sign, size = ("-" if count < 0 else ""), abs(count)
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000 or unit == "GB":
            return f"{sign}{size:.0f} {unit}" if unit in ("B", "kB") else f"{sign}{size:.1f} {unit}"
        size /= 1000
    raise AssertionError("unreachable")


def download_text(file: Path, size: int) -> str:
    """What the button says that gives a file of so many bytes."""
    return f"Download {file.name} ({bytes_text(size)})"


def count_text(count: int) -> str:
    """A parameter count: 134.5 M, 7.24 B."""
    if count >= 1e9:
        return f"{count / 1e9:.2f} B"
    return f"{count / 1e6:.1f} M" if count >= 1e6 else f"{count:,}"


def number_text(value: float) -> str:
    """A perplexity with three decimals; very large ones shortened, an overflow as `inf`."""
    if not math.isfinite(value):
        return str(value)
    return f"{value:,.3f}" if value < 1e6 else f"{value:.2e}"


def loss_text(difference: float, error: float | None) -> str:
    """A difference of losses in nats a token, with its paired standard error where there is one."""
    spread = "" if error is None or not math.isfinite(error) else f" ± {error:.3f}"
    return f"{difference:+.3f}{spread} nats"


def row(*cells: object) -> Html:
    """A row of a table."""
    return Html("<tr>{}</tr>").format(Html().join(map(Html("<td>{}</td>").format, cells)))


def table(heads: Iterable[str], rows: Iterable[Html], look: str = "ms-types") -> Html:
    """A table with these words above its columns."""
    words = Html().join(map(Html("<th>{}</th>").format, heads))
    whole = Html('<table class="{}"><thead><tr>{}</tr></thead><tbody>{}</tbody></table>')
    return whole.format(look, words, Html().join(rows))


def note(words: str, kind: str = "") -> Html:
    """A line of small text."""
    return Html('<p class="ms-note {}">{}</p>').format(kind, words)


def notes(lines: Iterable[str]) -> Html:
    """Lines of small text."""
    return Html().join(map(note, lines))
