"""No text gets into the page as HTML: whatever a person, a model, a recipe or a file may say, in every presenter."""

from __future__ import annotations

import ast
import importlib
import inspect
import pkgutil
import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import datetime
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import plotly.graph_objects as go
import pytest
from markupsafe import Markup

import ui
from surgery.compensation.compensator import Compensated
from surgery.evaluation.generation import Answer
from surgery.evaluation.sampling import Sampling
from surgery.recipe.base import ChosenBy, TextReference
from surgery.recipe.edits import Compensate, PruneNeurons, RemoveBlocks
from surgery.recipe.texts import TextChoice
from surgery.session.compare import Attempt, Tried
from surgery.session.read import Reading
from surgery.session.view import View
from tests.sessions import changed
from tests.unit.presenters.test_presenters import ESTIMATE, job, view
from tests.unit.presenters.test_tool_words import entry
from ui import presenters
from ui.presenters import chart_table as chart_tables
from ui.presenters import charts, compare, compensate, fit, heal, keep, read, recipe, ship, status, suggest
from ui.presenters import report as reports
from ui.presenters import text as texts
from ui.presenters import tiles as numbers
from ui.presenters.text import Html

HOSTILE = "\"'><x-hostile onload=1></p><script>${a}{{b}}`c`{0}{x.y}"
MARK = "x-hostile onload"
"""Of it, what is still there when it is harmless."""
UI = Path(ui.__file__).parent
STYLE_SHEET = """Html((Path(__file__).parent.parent / 'style.css').read_text('utf-8'))"""
"""The one file that goes into the page as it is."""
NO_FREE_TEXT = {
    "detail.detail_text", "guide.card", "quantise.table", "quantise.words", "scan.scan_text", "ship.build_text",
}  # fmt: skip
"""Presenters of numbers and of the project's own words."""


class Reader(HTMLParser):
    """What a browser makes of a piece of HTML."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[str] = []
        self.values: list[str] = []
        self.feed(source)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [name for name, _ in attrs]
        self.values += [value or "" for _, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        assert tag in self.tags, f"</{tag}> closes nothing"

    def handle_data(self, data: str) -> None:
        self.values.append(data)


def harmful(source: str) -> list[str]:
    """What of the hostile text a browser, or Gradio's templates, would take for more than text."""
    found = Reader(source)
    outside = re.sub(r"<style>.*?</style>", "", source, flags=re.S)
    return [
        *({"x-hostile", "script"} & set(found.tags)),
        *({"onload", "x-hostile"} & set(found.attributes)),
        *re.findall(r"[${}`]", outside),
    ]


def hostile_view(**changes: object) -> View:
    """A model, a device and a target whose names are hostile, and two blocks that a hostile method removed."""
    made = view(
        RemoveBlocks(blocks=(1,), chosen_by=ChosenBy(method=HOSTILE)),
        PruneNeurons(removed={0: (1,)}, chosen_by=ChosenBy(method=HOSTILE)),
    )
    assert made.model is not None and made.fit.now is not None
    model = SimpleNamespace(
        architecture=made.model.architecture,
        evaluator=made.model.evaluator,
        loaded=replace(made.model.loaded, id=HOSTILE, revision=HOSTILE, note=HOSTILE),
    )
    now = replace(made.fit.now, type=HOSTILE, kv_type=HOSTILE, notes=(HOSTILE,), weights={HOSTILE: 5})
    mine = {
        "model": model,
        "device": made.device.model_copy(update={"name": HOSTILE}),
        "fit_now": now,
        "fit_room": room(),
    }
    return changed(made, **(mine | changes))


def room(words: str = HOSTILE) -> Any:
    return SimpleNamespace(words=lambda: words)


def one_text(**changes: object) -> View:
    """A view in which nothing is hostile but these changes."""
    return view(RemoveBlocks(blocks=(1,)), **changes)


def tried(**changes: object) -> View:
    """Three attempts, of which one is a recipe with a hostile key, and two are pinned."""
    made = one_text()
    assert made.history is not None and made.structure is not None and made.fit.now is not None
    recipes: list[Any] = [*made.history.recipes, SimpleNamespace(key=HOSTILE, edits=())]
    attempts = tuple(
        Attempt(one, made.structure, HOSTILE, TextChoice(), replace(ESTIMATE, perplexity=30.0 + n, nll=3 + n / 9),
                replace(made.fit.now, weights={"x": 1000 - 9 * n}))
        for n, one in enumerate(recipes)
    )  # fmt: skip
    return changed(made, compare=Tried(attempts, {"a": recipes[0].key, "b": HOSTILE}), **changes)


def compensated(part: str) -> View:
    source = TextReference(source=HOSTILE, fingerprint="x", window=16, windows=4)
    shown = view(PruneNeurons(removed={0: (1,)}), Compensate(how="least_squares", text=source))
    assert shown.structure is not None
    found = Compensated(replace(shown.structure, compensations=()), (entry(0, part, True, 0.4, 0.1),))
    return changed(shown, measure_compensated=found)


def found_options(**changes: object) -> View:
    made = one_text()
    assert made.structure is not None
    size = SimpleNamespace(weights_bytes=1, spare_bytes=1, decode_tokens_per_second=1.0)
    option = SimpleNamespace(how=HOSTILE, type=HOSTILE, fit=size, parameters=5, estimate=ESTIMATE)
    fitting = SimpleNamespace(**({"refused": (HOSTILE,), "options": (option,), "complete": True} | changes))
    return changed(made, fit_found=SimpleNamespace(fitting=fitting, target=SimpleNamespace(context=5, kv_type=HOSTILE)))


def answered(words: str, prompt: str, text: str) -> View:
    made = one_text()
    answer = Answer(text, 3, 1.0)
    return changed(made, read=Reading("x", "another", words, prompt, Sampling(), answer, Answer(f"a {text}", 3, 1.0)))


def shipped() -> View:
    made = one_text()
    record = SimpleNamespace(parameters=5, parts=[SimpleNamespace(kind="gguf", type=HOSTILE, bytes=5)])
    difference = SimpleNamespace(recorded_nll=1.0, nll=1.0, logits_max_relative=0.0)
    sums = SimpleNamespace(sha256={HOSTILE: HOSTILE})
    verified = SimpleNamespace(differences=[difference], sums=sums)
    made_files = SimpleNamespace(record=record, notes=[HOSTILE], verification=verified)
    shipment = SimpleNamespace(recipe="x", repository=HOSTILE, shipped=made_files)
    return changed(made, ship=shipment)


def suggested() -> View:
    made = hostile_view()
    before = one_text()
    assert made.history is not None and made.structure is not None and before.structure is not None
    found = SimpleNamespace(
        before=before.structure, structure=made.structure, recipe=made.history.current, base="x", cost=None
    )
    return changed(made, suggest=found)


def figure() -> Any:
    bars = go.Bar(x=[HOSTILE, "b"], y=[1.0, 2.0], name=HOSTILE, customdata=[HOSTILE, "kept"])
    return go.Figure([bars], {"xaxis": {"title": HOSTILE}, "yaxis": {"title": HOSTILE}})


def heat_map() -> Any:
    return go.Figure([go.Heatmap(z=[[1.0]], x=[HOSTILE], y=[HOSTILE])], {"yaxis": {"title": HOSTILE}})


SHOWN: dict[str, list[Callable[[], str]]] = {
    "chart_table.table": [
        lambda: chart_tables.table(figure(), HOSTILE),
        lambda: chart_tables.table(heat_map(), "Title"),
    ],
    "charts.chart_note": [lambda: charts.chart_note(view(), HOSTILE)],
    "compare.drawing": [lambda: compare.drawing(tried())],
    "compare.pinned_text": [lambda: compare.pinned_text(tried())],
    "compare.steps": [lambda: compare.steps(tried())],
    "compensate.compensation_text": [
        lambda: compensate.compensation_text(compensated("mlp")),
        lambda: compensate.compensation_text(compensated(HOSTILE)),
        lambda: compensate.compensation_text(changed(compensated("mlp"), measure_compensating=True)),
    ],
    "fit.fit_table": [lambda: fit.fit_table(hostile_view())],
    "fit.options_text": [
        lambda: fit.options_text(found_options()),
        lambda: fit.options_text(found_options(options=())),
    ],
    "fit.room_text": [
        lambda: fit.room_text(hostile_view()),
        lambda: fit.room_text(one_text(fit_room=room(), fit_now=SimpleNamespace(fits=False))),
    ],
    "heal.words": [lambda: heal.words(one_text(heal_forecast=SimpleNamespace(words=HOSTILE)))],
    "keep.lines_text": [
        lambda: keep.lines_text(hostile_view()),
        lambda: keep.lines_text(one_text(text=TextChoice(f"hub:{HOSTILE}"))),
    ],
    "read.answers_text": [
        lambda: read.answers_text(answered(HOSTILE, "x", "x")),
        lambda: read.answers_text(answered("x", HOSTILE, "x")),
        lambda: read.answers_text(answered("x", "x", HOSTILE)),
    ],
    "recipe.removed_text": [lambda: recipe.removed_text(hostile_view())],
    "report.report": [
        lambda: reports.report(hostile_view(), datetime(2026, 1, 2)),
        lambda: reports.report(one_text(text=TextChoice(HOSTILE.replace("/", "|"))), datetime(2026, 1, 2)),
        lambda: reports.report(tried(heal_outcome=None, measure_error=HOSTILE), datetime(2026, 1, 2)),
    ],
    "ship.ship_text": [lambda: ship.ship_text(shipped())],
    "status.ended": [lambda: status.ended(HOSTILE)],
    "status.status": [
        lambda: status.status(hostile_view()),
        lambda: status.status(one_text(error=HOSTILE)),
        lambda: status.status(one_text(job=job("failed", error=HOSTILE))),
        lambda: status.status(one_text(job=job(message=HOSTILE, title=HOSTILE, progress=0.5))),
        lambda: status.status(one_text(job=job("cancelled", title=HOSTILE))),
    ],
    "suggest.suggestion_text": [lambda: suggest.suggestion_text(suggested())],
    "text.note": [lambda: texts.note(HOSTILE), lambda: texts.note(f"x {MARK}", HOSTILE)],
    "text.notes": [lambda: texts.notes(("x", HOSTILE))],
    "text.row": [lambda: texts.table((), [texts.row("x", HOSTILE)])],
    "text.table": [
        lambda: texts.table((HOSTILE, "x"), ()),
        lambda: texts.table((), [HOSTILE]),  # type: ignore[list-item]
        lambda: texts.table(("x",), (), HOSTILE),
    ],
    "tiles.fit_bar": [lambda: numbers.fit_bar(hostile_view().fit.now, HOSTILE)],  # type: ignore[arg-type]
    "tiles.tiles": [
        lambda: numbers.tiles(hostile_view()),
        lambda: numbers.tiles(one_text(measure_error=HOSTILE)),
        lambda: numbers.tiles(one_text(fit_now=None, target=SimpleNamespace(type=HOSTILE, context=5))),
    ],
}
"""By the name of each presenter that takes free text, what it makes of hostile ones."""


def presenters_of_html() -> set[str]:
    """Every public presenter that returns HTML."""
    found = set()
    for info in pkgutil.iter_modules(presenters.__path__):
        module = importlib.import_module(f"ui.presenters.{info.name}")
        for name, function in inspect.getmembers(module, inspect.isfunction):
            public = function.__module__ == module.__name__ and not name.startswith("_")
            if public and function.__annotations__.get("return") == "Html":
                found.add(f"{info.name}.{name}")
    return found


def test_every_presenter_is_tried_with_hostile_text() -> None:
    assert presenters_of_html() == SHOWN.keys() | NO_FREE_TEXT and not SHOWN.keys() & NO_FREE_TEXT


@pytest.mark.parametrize(
    "show", [pytest.param(show, id=f"{name}-{n}") for name, ways in SHOWN.items() for n, show in enumerate(ways)]
)
def test_hostile_text_stays_text(show: Callable[[], str]) -> None:
    shown = show()
    assert isinstance(shown, Html) and harmful(shown) == []
    assert any(MARK in value for value in Reader(shown).values), "the hostile text is shown"


@pytest.mark.parametrize(
    ("source", "found"),
    [
        (f"<p>{HOSTILE}</p>", "script"),
        ("<p title=''x-hostile='1'></p>", "x-hostile"),
        (f"<p>{Markup('<b>${{}}</b>')}</p>", "$"),
        ("<p>{{x}}</p>", "{"),
    ],
)
def test_what_is_harmful_is_seen(source: str, found: str) -> None:
    assert found in harmful(source)


def test_text_is_escaped_however_it_is_put_in() -> None:
    safe = Html.escape("<b>$`{}\"'&")
    assert safe == "&lt;b&gt;&#36;&#96;&#123;&#125;&quot;&#x27;&amp;"
    text: Any = "<b>$`{}\"'&"
    paragraph = Html("<p>{}</p>")
    ways: list[Any] = [
        paragraph.format(text), Html("<p>{x}</p>").format(x=text), Html("<p>{:s}</p>").format(text),
        Html("<p>%s</p>") % text, Html("<p>") + text + Html("</p>"), Html("<p>") + Html().join([text]) + Html("</p>"),
        Html("<p>{x}</p>").format_map({"x": text}), Html("<p>x</p>").replace("x", text), paragraph.format(safe),
    ]  # fmt: skip
    for way in ways:
        assert type(way) is Html and way == f"<p>{safe}</p>"
    assert text + paragraph == f"{safe}<p>{{}}</p>" and isinstance(text + paragraph, Html)
    assert paragraph.format(Markup("<i>$</i>")) == "<p>&lt;i&gt;&#36;&lt;/i&gt;</p>", "of another template language"
    assert f"{paragraph.format(f'{safe}')}" == f"<p>{Html.escape(str(safe))}</p>", "a plain string is text again"


TAG = re.compile(r"<[a-zA-Z!/]")


def handwritten(source: str) -> list[str]:
    """Lines of a module that make HTML in another way than by `Html("...")` with a constant.

    A tag may stand in a docstring, in such a constant, and in the template of a component.
    """
    tree = ast.parse(source)
    parents = {child: node for node in ast.walk(tree) for child in ast.iter_child_nodes(node)}
    found = []
    for node in ast.walk(tree):
        parent = parents.get(node)
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and TAG.search(node.value):
            made = isinstance(parent, ast.Call) and ast.unparse(parent.func) == "Html"
            template = isinstance(parent, ast.keyword) and parent.arg == "html_template"
            if not (made or template or isinstance(parent, ast.Expr)):
                found.append((node.lineno, "HTML in a plain string"))
        elif isinstance(node, ast.Name) and node.id == "Html" and not _is_annotation(node, parents):
            if isinstance(parent, ast.Call) and parent.func is node:
                constant = all(isinstance(part, ast.Constant) for part in parent.args) and not parent.keywords
                if not constant and ast.unparse(parent) != STYLE_SHEET:
                    found.append((node.lineno, "HTML that is not constant"))
            elif not (isinstance(parent, ast.Attribute) and parent.attr == "escape"):
                found.append((node.lineno, "Html handed on"))
        elif isinstance(node, ast.Name | ast.Attribute) and "Markup" in (name := ast.unparse(node)):
            base = isinstance(parent, ast.ClassDef) and parent.name == "Html" and name == "Markup"
            if not base and not _is_annotation(node, parents):
                found.append((node.lineno, "markupsafe used directly"))
        elif isinstance(node, ast.FunctionDef | ast.Attribute | ast.Constant) and "__html" in _name(node):
            found.append((node.lineno, "an object that says it is HTML"))
    return [f"{line}: {what}" for line, what in sorted(set(found))]


def _name(node: ast.AST) -> str:
    return str(getattr(node, "name", "") or getattr(node, "attr", "") or getattr(node, "value", ""))


def _is_annotation(node: ast.AST, parents: dict[ast.AST, ast.AST]) -> bool:
    """Whether a name stands in the annotation of a parameter, a result or a variable."""
    while node in parents:
        parent = parents[node]
        if node in (getattr(parent, "annotation", None), getattr(parent, "returns", None)):
            return True
        if isinstance(parent, ast.stmt):
            return False
        node = parent
    return False


def sources() -> Iterator[Path]:
    return iter(sorted(UI.rglob("*.py")))


@pytest.mark.parametrize("path", sources(), ids=lambda path: path.relative_to(UI).as_posix())
def test_html_is_made_in_one_way(path: Path) -> None:
    assert handwritten(path.read_text("utf-8")) == []


@pytest.mark.parametrize(
    "line",
    [
        'f"<p>{words}</p>"',
        '"<p>" + words',
        '"<p>%s</p>" % words',
        '"<p>{}</p>".format(words)',
        '"".join(["<p>", words, "</p>"])',
        'Html(f"<p>{words}</p>")',
        'Html(f"{words}")',
        "Html(words)",
        "Html('<p>' + words)",
        'Html("<p>{}</p>".format(words))',
        'Html("<p>" if words else "")',
        "Html(object=words)",
        "map(Html, words)",
        "made = Html; made(words)",
        "Html.__new__(Html, words)",
        "Markup(words)",
        "Markup('<p>{}</p>').format(words)",
        "markupsafe.Markup(words)",
        "class Own:\n    def __html__(self): return words",
        "setattr(own, '__html__', words)",
        "x = '</script>'",
        "x = '<!-- ' + words",
    ],
)
def test_html_that_is_made_in_another_way_is_seen(line: str) -> None:
    assert handwritten(line) != []


@pytest.mark.parametrize(
    "line",
    [
        '"""Docs of <p>."""',
        'Html("<p>{}</p>").format(words)',
        'Html("<p>")',
        "Html().join(words)",
        "Html.escape(words)",
        "HTML(html_template='<p></p>')",
        "def f(words: Html, other: list[Markup]) -> Html: ...",
        "tables: dict[str, Markup] = {}",
        'f"{a} < {b}"',
        "from markupsafe import Markup",
        "class Html(Markup): ...",
    ],
)
def test_html_that_is_made_in_the_one_way_is_left_alone(line: str) -> None:
    assert handwritten(line) == []
