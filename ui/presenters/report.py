"""A report of the session as one HTML file: recipe, numbers with their protocol, drawings, lines to reproduce.

Everything is inside of the file, nothing is fetched, and nothing in it runs.
"""

from __future__ import annotations

from datetime import datetime
from pathlib import Path

from surgery.session.view import View
from ui.presenters import compare as compare_words
from ui.presenters import keep as keep_words
from ui.presenters import recipe as recipe_words
from ui.presenters.fit import fit_table
from ui.presenters.heal import words as heal_words
from ui.presenters.status import summary
from ui.presenters.text import Html
from ui.presenters.tiles import tiles

STYLE = Html("""
:root { color-scheme: light dark; --body-text-color: light-dark(#1f2937, #e5e7eb);
  --body-text-color-subdued: light-dark(#64748b, #94a3b8); --border-color-primary: light-dark(#e2e8f0, #334155);
  --block-background-fill: light-dark(#fff, #1e293b); --background-fill-secondary: light-dark(#f1f5f9, #0f172a);
  --color-accent: #0d9488; }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 960px; margin: 24px auto; padding: 0 16px;
  color: var(--body-text-color); background: light-dark(#f8fafc, #0b1120); }
h2 { margin: 28px 0 8px; font-size: 1.15rem; }
.ms-steps button { pointer-events: none; }
""")
LIMITS = (
    "Perplexities are of the text and the windows that are named, and say nothing of other texts. Memory and speed on "
    "the device are estimates; sizes of weights are arithmetic."
)


def report(view: View, when: datetime) -> Html:
    """The report's HTML, of a view with an open model, made at that time."""
    assert view.model is not None and view.history is not None  # the caller has checked
    text = "a pasted text" if view.text.content is not None else f"“{Path(view.text.source).name}”"
    protocol = f"Measured on {text}, {view.text.windows} windows of {view.text.window} tokens, each by itself, float32."
    sections = (
        ("Model", Html("<p>{}</p>").format(summary(view))),
        ("Recipe", recipe_words.removed_text(view) + Html('<pre class="ms-lines">{}</pre>').format(_recipe(view))),
        ("Numbers", tiles(view) + Html('<p class="ms-note">{}</p>').format(protocol)),
        ("Memory on the device", fit_table(view)),
        ("Healing", heal_words(view) if view.heal.outcome is not None else ""),
        ("Everything tried", compare_words.drawing(view) + compare_words.steps(view)),
        ("Compared", compare_words.pinned_text(view) if view.compare.pins else ""),
        ("To reproduce", keep_words.lines_text(view)),
        ("What these numbers are not", Html("<p>{}</p>").format(LIMITS)),
    )
    section = Html("<section><h2>{}</h2>{}</section>")
    body = Html().join(section.format(title, content) for title, content in sections if content)
    css = Html((Path(__file__).parent.parent / "style.css").read_text("utf-8"))
    return Html(
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">"
        "<title>Model Surgery: {}</title><style>{}{}</style></head><body>"
        "<h1>Model Surgery</h1><p>{:%Y-%m-%d %H:%M}</p>{}</body></html>"
    ).format(view.model.loaded.id, STYLE, css, when, body)


def _recipe(view: View) -> str:
    """The recipe's text, long index sets cut."""
    assert view.history is not None  # the caller has checked
    lines = view.history.current.to_json().splitlines()
    return "\n".join(line if len(line) <= 160 else f"{line[:150]} ... ({len(line):,} characters)" for line in lines)
