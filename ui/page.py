"""The page: its components and which handler answers which event."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gradio as gr

from analysis import registry
from analysis.figures import HEAD_TITLES
from surgery.memory import TYPES
from surgery.session import Target
from surgery.workbench import TextChoice, Workbench
from ui.handlers import Handlers
from ui.sessions import Sessions
from ui.widgets.block_map import BlockMap

TITLE = "Model Surgery"
TICK = 0.25
"""Seconds between two looks at running jobs."""
UPLOAD_LIMIT = "16mb"
TEXTS = [
    ("Embedded sample", "embedded"),
    ("WikiText-2 (from the Hub)", "wikitext-2"),
    ("Pasted text", "pasted"),
    ("Uploaded file", "file"),
]
DOWNLOAD = """(text) => {
  if (!text) return;
  const link = document.createElement('a');
  link.href = URL.createObjectURL(new Blob([text], {type: 'application/json'}));
  link.download = 'recipe.json';
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
}"""
QUIET: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}


def launch_arguments() -> dict[str, Any]:
    """What `launch` needs for this page: theme, style, limits."""
    return {
        "theme": gr.themes.Soft(primary_hue="teal", neutral_hue="slate"),
        "css": (Path(__file__).parent / "style.css").read_text("utf-8"),
        "max_file_size": UPLOAD_LIMIT,
        "run_history": False,
    }


def build(bench: Workbench | None = None) -> gr.Blocks:
    """The page over a workbench of its own, or over a given one."""
    sessions = Sessions(bench or Workbench())
    handlers = Handlers(sessions)
    with gr.Blocks(title=TITLE, analytics_enabled=False) as page:
        tab = gr.State("", time_to_live=None, delete_callback=sessions.free)
        kept = gr.BrowserState(None, storage_key="model-surgery", secret="model-surgery")
        timer = gr.Timer(TICK, active=False)
        gr.HTML(
            f"<header class='ms-head'><h1>{TITLE}</h1><p>Switch parts of a language model off and watch what it costs."
            "</p></header>",
            padding=False,
        )
        status = gr.HTML(elem_id="status", padding=False)
        tiles = gr.HTML(elem_id="tiles", padding=False)
        with gr.Row(elem_id="toolbar"):
            undo = gr.Button("Undo", elem_id="undo", interactive=False, min_width=80)
            redo = gr.Button("Redo", elem_id="redo", interactive=False, min_width=80)
            reset = gr.Button("Reset", elem_id="reset", interactive=False, min_width=80)
            export = gr.Button("Export recipe", elem_id="export", interactive=False, min_width=120)
            load_recipe = gr.UploadButton(
                "Import recipe", file_types=[".json"], elem_id="import", interactive=False, min_width=120
            )
        exported = gr.Textbox(visible="hidden", elem_id="exported")
        with gr.Group(elem_classes="ms-section"):
            block_map = BlockMap(elem_id="map", label="Blocks")
            removed = gr.HTML(elem_id="removed", elem_classes="ms-removed")
        with gr.Row():
            analyse = gr.Button("Analyse", variant="primary", elem_id="analyse", interactive=False, min_width=120)
            cancel = gr.Button("Cancel", elem_id="cancel", interactive=False, min_width=120)
        with gr.Row(equal_height=True):
            ratio = gr.Slider(
                10,
                400,
                value=267,
                step=1,
                label="Expansion ratio of every MLP (%)",
                info="Width over hidden size. The least important neurons go first.",
                elem_id="ratio",
                interactive=False,
                scale=3,
            )
            method = gr.Dropdown(
                [(entry.title, entry.name) for entry in registry.METHODS if entry.kind == "neurons"],
                value="cfsp_fine",
                label="Method",
                info="How neurons are ranked.",
                elem_id="method",
                scale=2,
            )
            divisor = gr.Dropdown(
                [1, 8, 32, 64, 128], value=1, label="Divisor", info="Widths are multiples of it.", elem_id="divisor"
            )
        with gr.Tabs(elem_id="charts"):
            charts = [
                _chart("Block influence", "blocks"),
                _chart("Attention and MLP", "sublayers"),
                _chart("Runs of blocks", "runs"),
            ]
            with gr.Tab("Neurons", id="neurons", elem_id="tab-neurons") as neurons_tab:
                neuron_method = gr.Dropdown(
                    [(entry.title, entry.name) for entry in registry.METHODS if entry.kind == "neurons"],
                    value="cfsp_fine",
                    label="Method",
                    elem_id="neuron-method",
                )
                charts.append(("neurons", neurons_tab, gr.Plot(show_label=False, elem_id="chart-neurons")))
            with gr.Tab("Heads", id="heads", elem_id="tab-heads") as heads_tab:
                head_statistic = gr.Dropdown(
                    [(title, name) for name, title in HEAD_TITLES.items()],
                    value="entropy",
                    label="Statistic",
                    elem_id="head-statistic",
                )
                charts.append(("heads", heads_tab, gr.Plot(show_label=False, elem_id="chart-heads")))
        with gr.Row():
            with gr.Column(min_width=320), gr.Group():
                source = gr.Textbox(
                    "default",
                    label="Model",
                    info="default (SmolLM2-135M-Instruct), a Hub id such as owner/name, a folder or a .gguf file.",
                    elem_id="model",
                )
                revision = gr.Textbox("", label="Revision (Hub, optional)", elem_id="revision", max_lines=1)
                open_model = gr.Button("Open model", elem_id="open")
            with gr.Column(min_width=320), gr.Group():
                text = gr.Dropdown(
                    TEXTS,
                    value="embedded",
                    label="Text to measure on",
                    info="Or type hub:owner/name for any Hub data set.",
                    allow_custom_value=True,
                    elem_id="text",
                )
                pasted = gr.Textbox(label="Pasted text", lines=4, max_lines=8, visible=False, elem_id="pasted")
                upload = gr.File(
                    label=f"Text file: .txt, .jsonl or .parquet, up to {UPLOAD_LIMIT.upper()}",
                    file_types=[".txt", ".jsonl", ".parquet"],
                    visible=False,
                    elem_id="upload",
                )
                with gr.Row():
                    window = gr.Number(256, label="Tokens in a window", precision=0, minimum=2, elem_id="window")
                    windows = gr.Number(4, label="Windows", precision=0, minimum=1, elem_id="windows")
                use_text = gr.Button("Measure on this text", elem_id="use-text")
            with gr.Column(min_width=320), gr.Group():
                device = gr.Dropdown(
                    [(name, key) for key, name in sessions.bench.devices.names().items()],
                    value=Target().device,
                    label="Device",
                    elem_id="device",
                )
                own_device = gr.UploadButton("Use my own device file", file_types=[".json"], elem_id="own-device")
                with gr.Row():
                    context = gr.Number(
                        Target().context, label="Context (tokens)", precision=0, minimum=1, elem_id="context"
                    )
                    kind = gr.Dropdown(list(TYPES), value=Target().type, label="Weights as", elem_id="type")
        with gr.Accordion("Memory on the device, itemised", open=False, elem_id="fit-details"):
            fit_table = gr.HTML(elem_id="fit-table")

        plots = [plot for _, _, plot in charts]
        always = [
            status,
            tiles,
            removed,
            fit_table,
            undo,
            redo,
            reset,
            export,
            load_recipe,
            analyse,
            cancel,
            kept,
            timer,
        ]
        shown = [*always, block_map, ratio, *plots]
        handlers.plots = [name for name, _, _ in charts]
        picks = [neuron_method, head_statistic]

        page.load(handlers.load, [kept, *picks], [tab, source, *shown], **QUIET)
        timer.tick(handlers.tick, [tab, *picks], shown, **QUIET)
        block_map.input(
            handlers.switch, [tab, block_map, *picks], [*always, *plots], trigger_mode="always_last", **QUIET
        )
        gr.on(
            [ratio.input, method.input, divisor.input],
            handlers.narrow,
            [tab, ratio, method, divisor, *picks],
            [*always, block_map, *plots],
            trigger_mode="always_last",
            **QUIET,
        )
        for button, handler in (
            (undo, handlers.undo),
            (redo, handlers.redo),
            (reset, handlers.reset),
            (analyse, handlers.analyse),
            (cancel, handlers.cancel),
        ):
            button.click(handler, [tab, *picks], shown, **QUIET)
        export.click(handlers.export, [tab], [exported], **QUIET).then(None, [exported], None, js=DOWNLOAD)
        load_recipe.upload(handlers.take, [tab, load_recipe, *picks], shown, **QUIET)
        gr.on(
            [open_model.click, source.submit, revision.submit],
            handlers.open,
            [tab, source, revision, *picks],
            shown,
            **QUIET,
        )
        text.input(
            lambda name: (gr.Textbox(visible=name == "pasted"), gr.File(visible=name == "file")),
            text,
            [pasted, upload],
            **QUIET,
        )
        use_text.click(handlers.use_text, [tab, text, pasted, upload, window, windows, *picks], shown, **QUIET)
        for component in (device, context, kind):
            component.input(
                handlers.aim, [tab, device, context, kind, *picks], shown, trigger_mode="always_last", **QUIET
            )
        own_device.upload(handlers.own_device, [tab, own_device, context, kind, *picks], [device, *shown], **QUIET)
        for name, opened, plot in charts:
            opened.select(_opener(handlers, name), [tab, *picks], plot, **QUIET)
        neuron_method.input(_opener(handlers, "neurons"), [tab, *picks], charts[3][2], **QUIET)
        head_statistic.input(_opener(handlers, "heads"), [tab, *picks], charts[4][2], **QUIET)
    return page


def _chart(title: str, name: str) -> tuple[str, gr.Tab, gr.Plot]:
    with gr.Tab(title, id=name, elem_id=f"tab-{name}") as opened:
        plot = gr.Plot(show_label=False, elem_id=f"chart-{name}")
    return name, opened, plot


def _opener(handlers: Handlers, name: str) -> Any:
    """A handler that draws one chart when its tab is opened."""

    def draw(tab: str, neuron_method: str, head_statistic: str) -> Any:
        return handlers.draw(tab, name, neuron_method, head_statistic)

    return draw


__all__ = ["TextChoice", "build", "launch_arguments"]
