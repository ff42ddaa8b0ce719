"""The tools below the map: their components and which handler answers which event."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gradio as gr

from surgery.pruning.budget import CFSP_SHARPNESS
from surgery.pruning.recipe_summary import HOW
from ui.panels.heal import heal_fields
from ui.panels.quantise import connect_quantise, quantise_fields
from ui.panels.ship import ship_fields
from ui.panels.tool_handlers import HOWS, ToolHandlers
from ui.presenters import suggest as tool_words
from ui.presenters import suggest_form as forms
from ui.theme import PLAIN
from ui.widgets.choice import Choice

COMPENSATIONS = {
    "least_squares": "Refits what narrowed attention and MLPs write, to come nearest to what they wrote whole.",
    "linear_patch": "Folds a map across each run of removed blocks or parts into the MLP before it. No new parameters.",
    "bias": "Adds the mean of what was removed from narrowed parts. A few new parameters; instead of least squares.",
}


def tool_tabs(parts: dict[str, Any]) -> None:
    """Suggest, compensate, heal, quantise and ship, each in a tab."""
    with gr.Tabs(elem_id="tools"):
        with gr.Tab("Suggest", id="suggest", elem_id="tool-suggest"):
            _suggestion_fields(parts)
        with gr.Tab("Compensate", id="compensate", elem_id="tool-compensate"):
            _compensation_fields(parts)
        with gr.Tab("Heal", id="heal", elem_id="tool-heal"):
            heal_fields(parts)
        with gr.Tab("Quantise", id="quantise", elem_id="tool-quantise"):
            quantise_fields(parts)
        with gr.Tab("Ship", id="ship", elem_id="tool-ship"):
            ship_fields(parts)
            gr.HTML("<h3>Checkpoint only</h3>", elem_id="build-heading", **PLAIN)
            parts["build_note"] = gr.HTML(elem_id="build-note", **PLAIN)
            with gr.Row(elem_classes="ms-actions"):
                parts["build"] = gr.Button(
                    "Build and download", elem_id="build", interactive=False, size="md", scale=0, min_width=0
                )
                parts["download"] = gr.DownloadButton(
                    visible=False, variant="primary", elem_id="download", size="md", scale=0, min_width=0
                )


def _suggestion_fields(parts: dict[str, Any]) -> None:
    form = forms.form(forms.DEFAULT_METHOD, None)
    with gr.Row():
        parts["suggest_method"] = gr.Dropdown(
            forms.methods(),
            value=forms.DEFAULT_METHOD,
            label="Method",
            info="What goes, and how it is ranked.",
            elem_id="suggest-method",
            scale=4,
            min_width=260,
        )
        parts["suggest_unit"] = Choice(
            form.units, value=form.unit, label="Budget", info="Of the source model.", elem_id="suggest-unit",
            scale=2, min_width=160,
        )  # fmt: skip
        for name, amount in forms.AMOUNTS.items():
            parts[f"amount_{name}"] = gr.Textbox(
                amount.value,
                label=amount.label,
                info=amount.info,
                visible=name == form.unit,
                elem_id=f"amount-{name.replace('_', '-')}",
                max_lines=1,
                scale=2,
                min_width=150,
            )
    with gr.Accordion("More", open=False, elem_id="more"), gr.Row():
        for name in forms.RULES:
            parts[f"rule_{name}"] = _rule_field(name, name in form.rules)
    with gr.Row(elem_classes="ms-actions"):
        parts["suggest"] = gr.Button(
            "Suggest", variant="primary", elem_id="suggest", interactive=False, size="md", scale=0, min_width=0
        )
        parts["suggest_note"] = gr.HTML(tool_words.note(form.note), elem_id="suggest-note", min_width=220, **PLAIN)
    parts["suggestion"] = gr.HTML(elem_id="suggestion", **PLAIN)
    with gr.Row(elem_classes="ms-actions"):
        parts["suggest_take"] = gr.Button(
            "Take this suggestion", variant="primary", visible=False, elem_id="suggest-take", size="md", scale=0,
            min_width=0,
        )  # fmt: skip
        parts["suggest_discard"] = gr.Button(
            "Discard", visible=False, elem_id="suggest-discard", size="md", scale=0, min_width=0
        )


def _rule_field(name: str, visible: bool) -> Any:
    label, info = forms.RULES[name]
    options: dict[str, Any] = {
        "label": label,
        "info": info,
        "visible": visible,
        "elem_id": f"rule-{name.replace('_', '-')}",
        "min_width": 124,
    }
    match name:
        case "no_neighbours" | "same_width" | "per_parameter":
            return gr.Checkbox(False, **options)
        case "allocation":
            return gr.Dropdown(forms.ALLOCATIONS, value="uniform", **options)
        case "unit":
            return gr.Dropdown(forms.UNITS, value="kv_groups", **options)
        case "divisor":
            return gr.Dropdown([1, 8, 32, 64, 128], value=1, **options)
        case "sharpness":
            return gr.Number(CFSP_SHARPNESS, minimum=0, **options)
        case "keep_candidates":
            return gr.Number(None, precision=0, **options)
        case _:
            return gr.Number(0, precision=0, minimum=0, **options)


def _compensation_fields(parts: dict[str, Any]) -> None:
    with gr.Row(elem_id="compensations"):
        for how in HOWS:
            parts[how] = gr.Checkbox(
                False,
                label=HOW[how],
                info=COMPENSATIONS[how],
                interactive=False,
                elem_id=how.replace("_", "-"),
                min_width=220,
            )
    parts["compensation"] = gr.HTML(elem_id="compensation", **PLAIN)
    with gr.Row(elem_classes="ms-actions"):
        parts["compute"] = gr.Button(
            "Compute the compensation", visible=False, elem_id="compute", size="md", scale=0, min_width=0
        )


def scan_fields(parts: dict[str, Any]) -> None:
    """Above the chart of predictions: what is removed one at a time, and the button that measures it."""
    with gr.Row(elem_classes="ms-actions"):
        parts["scan"] = gr.Button(
            "Measure every removal", elem_id="scan", interactive=False, size="md", scale=0, min_width=0
        )
        parts["scan_kinds"] = gr.CheckboxGroup(
            [("Blocks", "blocks"), ("Attention", "attention"), ("MLPs", "mlp")],
            value=["blocks"],
            show_label=False,
            container=False,
            elem_id="scan-kinds",
            min_width=240,
        )
    parts["scan_note"] = gr.HTML(elem_id="scan-note", **PLAIN)


def connect_tools(
    handlers: ToolHandlers,
    inputs: Callable[..., list[Any]],
    shown: list[Any],
    quiet: dict[str, Any],
    last: dict[str, Any],
) -> None:
    """Which handler answers which event of the tools.

    Args:
        handlers: with all parts of the page.
        inputs: the tab, the parts of those names, and the charts' choices.
        shown: every part that a handler may send.
        quiet: options of buttons.
        last: options of inputs of which only the last event counts.
    """
    parts = handlers.parts
    amounts, rules = [f"amount_{name}" for name in forms.AMOUNTS], [f"rule_{name}" for name in forms.RULES]
    fields = [parts[name] for name in ("suggest_unit", "suggest_note", *amounts, *rules)]
    gr.on(
        [parts["suggest_method"].input, parts["suggest_unit"].input],
        handlers.choose_method,
        [parts["suggest_method"], parts["suggest_unit"]],
        fields,
        **last,
    )
    chosen = inputs("suggest_method", "suggest_unit", *amounts, *rules)
    gr.on([parts["suggest"].click, *(parts[name].submit for name in amounts)], handlers.suggest, chosen, shown, **quiet)
    for name in ("suggest_take", "suggest_discard"):
        parts[name].click(getattr(handlers, name), inputs(), shown, **quiet)
    for how in HOWS:
        parts[how].input(handlers.compensate(how), inputs(how), shown, **last)
    connect_quantise(handlers, inputs, shown, quiet, last)
    parts["compute"].click(handlers.compute, inputs(), shown, **quiet)
    parts["scan"].click(handlers.scan, inputs("scan_kinds"), shown, **quiet)
    parts["build"].click(handlers.build, inputs(), shown, **quiet)
