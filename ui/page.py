"""The page: its components and which handler answers which event."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gradio as gr

from analysis.figures.analysis import HEAD_TITLES
from analysis.importance import registry
from surgery.fit.kv_cache import KV_TYPES
from surgery.fit.weight_types import TYPES
from surgery.session.view import Target
from surgery.workbench.workbench import Workbench
from ui.api.endpoints import Elsewhere, add_api
from ui.handlers import IDLE_TICK
from ui.panels.compare import compare_fields, connect_compare
from ui.panels.detail import DetailHandlers, connect_detail, detail_fields, map_colour_field
from ui.panels.fit import connect_fit, fit_fields
from ui.panels.heal import connect_heal
from ui.panels.keep import connect_keep, keep_fields
from ui.panels.read import connect_read, read_fields
from ui.panels.ship import connect_ship
from ui.panels.suggest import connect_tools, scan_fields, tool_tabs
from ui.presenters import charts
from ui.presenters import guide as guide_words
from ui.tabs import Sessions
from ui.theme import PLAIN, download_js
from ui.widgets.block_map import BlockMap
from ui.widgets.guide import guide
from ui.widgets.ratio import Ratio

TITLE = "Model Surgery"
UPLOAD_LIMIT = "16mb"
TEXTS = [
    ("Embedded sample", "embedded"),
    ("WikiText-2 (from the Hub)", "wikitext-2"),
    ("Pasted text", "pasted"),
    ("Uploaded file", "file"),
]
NEURON_METHODS = [(entry.title, entry.name) for entry in registry.METHODS if entry.kind == "neurons"]
DRAWN_METHODS = [(title, name) for title, name in NEURON_METHODS if not registry.method(name).needs_gradients]
"""Those whose scores the analysis gives; gradients are gathered when a suggestion asks for them."""
DIVISORS = [1, 8, 32, 64, 128]
# The browser's storage is shared by its tabs: what a tab itself has kept comes first, so that two tabs do not mix.
# The first change that Gradio reports is what it read from there itself, before the page has asked for its own.
RECALL = """(kept, ...rest) => {
  let own = null;
  try { own = JSON.parse(sessionStorage.getItem('model-surgery')); } catch (error) {}
  window.modelSurgeryLoaded = true;
  const known = own || (kept ? {...kept, job: null} : null);
  const link = /[#?&]recipe=([\\w-]*)/.exec(location.search + location.hash);
  // Once: a reload must not undo what was done since.
  if (link) history.replaceState(null, '', location.pathname);
  return [link ? {...known, link: link[1]} : known, ...rest];
}"""
REMEMBER = """(kept) => {
  if (!window.modelSurgeryLoaded) return;
  try { sessionStorage.setItem('model-surgery', JSON.stringify(kept)); } catch (error) {}
}"""
# The paragraph is never made anew, so that a screen reader says what changes in it.
SPEAK = """const told = element.querySelector('p');
const tell = () => { if (told.textContent !== (props.value || '')) told.textContent = props.value || ''; };
tell();
watch(Object.keys({value: 0}), tell);"""
# Ctrl+Z and Ctrl+Shift+Z (or the command key), but not while something is typed.
KEYS = """() => {
  if (window.modelSurgeryKeys) return;
  window.modelSurgeryKeys = true;
  document.addEventListener('keydown', (event) => {
    if (event.key.toLowerCase() !== 'z' || !(event.ctrlKey || event.metaKey) || event.altKey) return;
    const moved = '[type=range], [type=checkbox], [type=radio]';
    const typing = event.target.closest(`textarea, [contenteditable], input:not(${moved})`);
    if (typing) return;
    event.preventDefault();
    document.querySelector(event.shiftKey ? '#redo' : '#undo')?.click();
  });
}"""
THREADS = 128
"""Events that are answered at one time: a look that awaits a number holds one for a moment."""
# Past Gradio's queue: it costs two more requests an event, and what takes long is a job of the core's own.
QUIET: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private", "queue": False}
LAST = {**QUIET, "trigger_mode": "always_last"}


def launch_arguments(upload: str = UPLOAD_LIMIT) -> dict[str, Any]:
    """What `launch` needs for this page: theme, style, limits.

    Args:
        upload: the largest upload.
    """
    theme = gr.themes.Default(
        primary_hue="teal",
        neutral_hue="slate",
        font=("system-ui", "-apple-system", "Segoe UI", "Roboto", "sans-serif"),
        font_mono=("ui-monospace", "Consolas", "monospace"),
    ).set(
        body_background_fill="*neutral_50",
        body_text_color_subdued="*neutral_500",
        body_text_color_subdued_dark="*neutral_400",
        block_info_text_color="*neutral_500",
        block_info_text_color_dark="*neutral_400",
        button_primary_background_fill="*primary_700",
        button_primary_background_fill_hover="*primary_800",
        button_primary_background_fill_dark="*primary_700",
        button_primary_background_fill_hover_dark="*primary_600",
    )
    return {
        "theme": theme,
        "css": (Path(__file__).parent / "style.css").read_text("utf-8"),
        "max_file_size": upload,
        "run_history": False,
        "max_threads": THREADS,
    }


def build(sessions: Sessions | None = None, elsewhere: Elsewhere | None = None) -> gr.Blocks:
    """The page.

    Args:
        sessions: over these; over a workbench of its own if None.
        elsewhere: where the endpoints compute, see `add_api`.
    """
    sessions = Sessions(Workbench()) if sessions is None else sessions  # one without tabs is false
    handlers = DetailHandlers(sessions)
    parts = handlers.parts
    with gr.Blocks(title=TITLE, analytics_enabled=False) as page:
        parts["tab"] = gr.State("", time_to_live=None, delete_callback=sessions.free)
        parts["kept"] = gr.BrowserState(None, storage_key="model-surgery", secret="model-surgery")
        parts["timer"] = gr.Timer(IDLE_TICK, active=False)
        gr.HTML(
            f"<header class='ms-head'><h1>{TITLE}</h1>{guide_words.BUTTON}"
            "<p>Switch parts of a language model off and watch what it costs.</p></header>",
            **PLAIN,
        )
        guide()
        with gr.Row(elem_id="status-bar"):
            parts["status"] = gr.HTML(elem_id="status", **PLAIN)
            parts["cancel"] = gr.Button("Cancel", elem_id="cancel", interactive=False, size="md", scale=0, min_width=0)
        parts["spoken"] = gr.HTML(
            "", html_template='<p role="status" class="ms-hidden"></p>', js_on_load=SPEAK, elem_id="spoken", **PLAIN
        )
        with gr.Accordion("Model, text and device", open=False, elem_id="setup"), gr.Row():
            _model_fields(parts)
            _text_fields(parts)
            _device_fields(parts, sessions.bench)
        parts["tiles"] = gr.HTML(elem_id="tiles", **PLAIN)
        _toolbar(parts)
        with gr.Column(elem_id="map-card"):
            map_colour_field(parts)
            parts["map"] = BlockMap(elem_id="map", label="Blocks")
            parts["removed"] = gr.HTML(elem_id="removed", **PLAIN)
            detail_fields(parts)
        _narrowing_fields(parts)
        tool_tabs(parts)
        with gr.Tabs(elem_id="look"):
            with gr.Tab("Compare", id="compare", elem_id="look-compare"):
                compare_fields(parts)
            with gr.Tab("Read", id="read", elem_id="look-read"):
                read_fields(parts)
            with gr.Tab("Keep", id="keep", elem_id="look-keep"):
                keep_fields(parts)
        _chart_tabs(parts)
        with gr.Accordion("Memory on the device, itemised, and what fits", open=False, elem_id="fit-details"):
            parts["fit_table"] = gr.HTML(elem_id="fit-table", **PLAIN)
            fit_fields(parts)
        add_api(sessions.bench, elsewhere)  # before the page's own handlers, which would take the names
        _connect(page, handlers)
    return page


def _model_fields(parts: dict[str, Any]) -> None:
    with gr.Column(min_width=280, elem_classes="ms-fields"):
        parts["source"] = gr.Textbox(
            "default",
            label="Model",
            info="default (SmolLM2-135M-Instruct), a Hub id (owner/name), a folder or a .gguf file.",
            elem_id="model",
            max_lines=1,
        )
        parts["revision"] = gr.Textbox("", label="Revision (Hub, optional)", elem_id="revision", max_lines=1)
        parts["open"] = gr.Button("Open model", elem_id="open", size="md")


def _text_fields(parts: dict[str, Any]) -> None:
    with gr.Column(min_width=280, elem_classes="ms-fields"):
        parts["text"] = gr.Dropdown(
            TEXTS,
            value="embedded",
            label="Text to measure on",
            info="Or type hub:owner/name for any data set of the Hub.",
            allow_custom_value=True,
            elem_id="text",
        )
        parts["pasted"] = gr.Textbox(label="Pasted text", lines=6, max_lines=6, visible=False, elem_id="pasted")
        parts["upload"] = gr.File(
            label=f"Text file: .txt, .jsonl or .parquet, up to {UPLOAD_LIMIT.upper()}",
            file_types=[".txt", ".jsonl", ".parquet"],
            visible=False,
            elem_id="upload",
        )
        with gr.Row(elem_classes="ms-pair"):
            parts["window"] = gr.Number(256, label="Tokens a window", precision=0, elem_id="window", min_width=100)
            parts["windows"] = gr.Number(4, label="Windows", precision=0, elem_id="windows", min_width=100)
        parts["use_text"] = gr.Button("Measure on this text", elem_id="use-text", size="md")


def _device_fields(parts: dict[str, Any], bench: Workbench) -> None:
    with gr.Column(min_width=280, elem_classes="ms-fields"):
        parts["device"] = gr.Dropdown(
            [(name, key) for key, name in bench.devices.names().items()],
            value=Target().device,
            label="Device",
            info="Memory and speed are worked out for it.",
            elem_id="device",
        )
        with gr.Row(elem_classes="ms-pair"):
            parts["context"] = gr.Number(
                Target().context, label="Context (tokens)", precision=0, elem_id="context", min_width=100
            )
            parts["kv_type"] = gr.Dropdown(
                list(KV_TYPES), value=Target().kv_type, label="KV cache as", elem_id="kv-type", min_width=100
            )
        parts["type"] = gr.Dropdown(list(TYPES), value=Target().type, label="Weights as", elem_id="type", min_width=100)
        parts["own_device"] = gr.UploadButton(
            "Use my own device file", file_types=[".json"], elem_id="own-device", size="md"
        )


def _toolbar(parts: dict[str, Any]) -> None:
    with gr.Row(elem_id="toolbar"):
        for name, words, more in (
            ("analyse", "Analyse", {"variant": "primary"}),
            ("undo", "Undo", {"elem_classes": "ms-gap"}),
            ("redo", "Redo", {}),
            ("reset", "Reset", {}),
            ("export", "Export recipe", {"elem_classes": "ms-gap"}),
        ):
            parts[name] = gr.Button(words, elem_id=name, interactive=False, size="md", scale=0, min_width=0, **more)  # type: ignore[arg-type]
        parts["import"] = gr.UploadButton(
            "Import recipe", file_types=[".json"], elem_id="import", interactive=False, size="md", scale=0, min_width=0
        )
    parts["exported"] = gr.Textbox(visible="hidden", elem_id="exported")
    parts["answer"] = gr.Textbox("", visible="hidden", elem_id="answer")


def _narrowing_fields(parts: dict[str, Any]) -> None:
    with gr.Row(elem_id="narrowing"):
        parts["slider"] = Ratio(
            10,
            400,
            value=267,
            step=1,
            label="Expansion ratio of the MLPs (%)",
            info="Width over hidden size. The least important neurons go first.",
            elem_id="ratio",
            interactive=False,
            buttons=[],
            scale=3,
            min_width=280,
        )
        parts["narrow_blocks"] = gr.Textbox(
            "",
            label="Blocks",
            info="A range, such as 4-12.",
            placeholder="all",
            elem_id="narrow-blocks",
            max_lines=1,
            min_width=110,
        )
        parts["method"] = gr.Dropdown(
            NEURON_METHODS,
            value="cfsp_fine",
            label="Method",
            info="How neurons are ranked.",
            elem_id="method",
            scale=2,
            min_width=200,
        )
        parts["divisor"] = gr.Dropdown(
            DIVISORS, value=1, label="Divisor", info="Widths are its multiples.", elem_id="divisor", min_width=120
        )


def _chart_tabs(parts: dict[str, Any]) -> None:
    with gr.Tabs(elem_id="charts"):
        for name, title in charts.NAMES.items():
            with gr.Tab(title, id=name, elem_id=f"tab-{name}") as parts[f"tab_{name}"]:
                if name == "neurons":
                    parts["neuron_method"] = gr.Dropdown(
                        DRAWN_METHODS, value="cfsp_fine", label="Method", elem_id="neuron-method"
                    )
                if name == "heads":
                    parts["head_statistic"] = gr.Dropdown(
                        [(words, key) for key, words in HEAD_TITLES.items()],
                        value="entropy",
                        label="Statistic",
                        elem_id="head-statistic",
                    )
                if name == "predicted":
                    scan_fields(parts)
                parts[f"chart_{name}"] = gr.Plot(show_label=False, elem_id=f"chart-{name}", elem_classes="ms-chart")
    parts["chart_note"] = gr.HTML(elem_id="chart-note", **PLAIN)


def _connect(page: gr.Blocks, handlers: DetailHandlers) -> None:
    """Which handler answers which event. Every handler may send any part of the page."""
    parts = handlers.parts
    tab, picks = parts["tab"], [parts["neuron_method"], parts["head_statistic"]]
    inputs_only = (
        *(
            "tab_",
            "revision",
            "text",
            "pasted",
            "upload",
            "window",
            "use_text",
            "own_device",
            "narrow_blocks",
            "exported",
            "shown_link",
            "link_code",
        ),
        *("suggest_method", "suggest_unit", "suggest_note", "amount_", "rule_", "scan_kinds", "shipping_", "healing_"),
    )
    shown = [part for name, part in parts.items() if not name.startswith(inputs_only)]

    def inputs(*names: str) -> list[Any]:
        return [tab, *(parts[name] for name in names), *picks]

    page.load(handlers.load, [parts["kept"], *picks], [tab, *shown], js=RECALL, **QUIET)
    page.load(None, js=KEYS, **QUIET)
    parts["kept"].change(None, parts["kept"], None, js=REMEMBER, **QUIET)
    parts["timer"].tick(handlers.tick_detail, inputs("detail", "answer", "map", "slider"), shown, **QUIET)
    parts["map"].input(handlers.switch, inputs("map"), shown, **LAST)
    parts["slider"].input(handlers.narrow, inputs("slider", "method", "divisor"), shown, **LAST)
    gr.on(
        [parts["method"].input, parts["divisor"].input],
        handlers.narrow_otherwise,
        inputs("method", "divisor"),
        shown,
        **LAST,
    )
    gr.on(
        [parts["narrow_blocks"].submit, parts["narrow_blocks"].blur],
        handlers.narrow_where,
        inputs("narrow_blocks"),
        shown,
        **LAST,
    )
    for name in ("undo", "redo", "reset", "analyse", "cancel"):
        parts[name].click(getattr(handlers, name), inputs(), shown, **QUIET)
    parts["export"].click(handlers.export, [tab], [parts["exported"]], **QUIET).success(
        None, [parts["exported"]], None, js=download_js("recipe.json", "application/json"), **QUIET
    )
    parts["import"].upload(handlers.take, inputs("import"), shown, **QUIET)
    gr.on(
        [parts["open"].click, parts["source"].submit, parts["revision"].submit],
        handlers.open,
        inputs("source", "revision"),
        shown,
        **QUIET,
    )
    parts["text"].input(
        lambda name: (gr.Textbox(visible=name == "pasted"), gr.File(visible=name == "file")),
        parts["text"],
        [parts["pasted"], parts["upload"]],
        **QUIET,
    )
    parts["use_text"].click(handlers.use_text, inputs("text", "pasted", "upload", "window", "windows"), shown, **QUIET)
    for name in ("device", "context", "type", "kv_type"):
        parts[name].input(handlers.aim, inputs("device", "context", "type", "kv_type"), shown, **LAST)
    parts["own_device"].upload(handlers.own_device, inputs("own_device", "context", "type", "kv_type"), shown, **QUIET)
    for name in charts.NAMES:
        parts[f"tab_{name}"].select(_opener(handlers, name), inputs(), shown, **QUIET)
    connect_tools(handlers, inputs, shown, QUIET, LAST)
    connect_detail(handlers, inputs, shown, QUIET, LAST)
    connect_ship(handlers, inputs, shown, QUIET)
    connect_fit(handlers, inputs, shown, QUIET)
    connect_heal(handlers, inputs, shown, QUIET)
    connect_compare(handlers, inputs, shown, QUIET)
    connect_read(handlers, inputs, shown, QUIET)
    connect_keep(handlers, inputs, shown, QUIET)
    parts["neuron_method"].input(_opener(handlers, "neurons"), inputs(), shown, **QUIET)
    parts["head_statistic"].input(_opener(handlers, "heads"), inputs(), shown, **QUIET)


def _opener(handlers: DetailHandlers, name: str) -> Any:
    """A handler that shows one chart."""

    def draw(tab: str, neuron_method: str, head_statistic: str) -> Any:
        return handlers.draw(tab, name, neuron_method, head_statistic)

    return draw
