"""The Heal panel: its components, its handlers, and which answers which event."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gradio as gr
from gradio.utils import get_upload_folder

from analysis.figures.healing import healing_curve
from surgery.recipe.texts import TextChoice
from surgery.session.heal import HEALING_WINDOW
from surgery.session.view import View
from ui import inputs as read
from ui.handlers import Update, as_it_is
from ui.panels.ship_handlers import ShipHandlers
from ui.panels.tool_handlers import show_download
from ui.presenters import heal as heal_words
from ui.tabs import Tab
from ui.theme import PLAIN
from ui.widgets.choice import Choice


def heal_fields(parts: dict[str, Any]) -> None:
    """How long and by what, the two buttons, the words and the curve."""
    with gr.Row():
        parts["healing_preset"] = Choice(
            heal_words.PRESETS, value="two-minutes", label="How long", elem_id="heal-preset", min_width=150
        )
        parts["healing_method"] = Choice(
            heal_words.METHODS, value="lora", label="Learn by", elem_id="heal-method", scale=2, min_width=220
        )
        parts["healing_text"] = gr.Dropdown(
            heal_words.TEXTS,
            value="embedded",
            label="Text to learn from",
            info="Or type hub:owner/name. Never the text that is measured.",
            allow_custom_value=True,
            elem_id="heal-text",
            scale=2,
            min_width=220,
        )
    parts["healing_pasted"] = gr.Textbox(
        label="Pasted text to learn from", lines=6, max_lines=6, visible=False, elem_id="heal-pasted"
    )
    parts["healing_upload"] = gr.File(
        label="Text file to learn from: .txt, .jsonl or .parquet",
        file_types=[".txt", ".jsonl", ".parquet"],
        visible=False,
        elem_id="heal-upload",
    )
    with gr.Row(elem_classes="ms-actions"):
        parts["heal_forecast"] = gr.Button(
            "What will it do?", elem_id="heal-forecast", interactive=False, size="md", scale=0, min_width=0
        )
        parts["heal"] = gr.Button(
            "Heal", variant="primary", elem_id="heal", interactive=False, size="md", scale=0, min_width=0
        )
    parts["heal_words"] = gr.HTML(elem_id="heal-words", **PLAIN)
    with gr.Row(elem_classes="ms-actions"):
        parts["heal_adapter"] = gr.Button(
            "Make the adapter's file", visible=False, elem_id="heal-adapter", size="md", scale=0, min_width=0
        )
        parts["heal_download"] = gr.DownloadButton(
            visible=False, elem_id="heal-download", size="md", scale=0, min_width=0
        )
    parts["heal_curve"] = gr.Plot(show_label=False, visible=False, elem_id="heal-curve", elem_classes="ms-chart")


class HealHandlers(ShipHandlers):
    """The page's handlers, those of the Heal panel included."""

    def heal(
        self, identity: str, preset: str, method: str, source: str, pasted: str, upload: str | None, *picks: str
    ) -> Update:
        """Heal the cuts in force."""

        def act(tab: Tab) -> None:
            tab.session.heal(preset, method, _text(source, pasted, upload))

        return self._answer(identity, act, picks)

    def forecast(
        self, identity: str, preset: str, method: str, source: str, pasted: str, upload: str | None, *picks: str
    ) -> Update:
        """Say what a preset would do on this machine."""

        def act(tab: Tab) -> None:
            tab.session.forecast(preset, method, _text(source, pasted, upload))

        return self._answer(identity, act, picks)

    def pack_adapter(self, identity: str, *picks: str) -> Update:
        """Make the adapter's file, where Gradio serves it from without a copy."""
        return self._answer(identity, lambda tab: tab.session.pack_adapter(Path(get_upload_folder())), picks)

    def _values(self, tab: Tab, view: View) -> Iterator[tuple[str, Any, Callable[[Any], Any]]]:
        yield from super()._values(tab, view)
        able = heal_words.cut(view) and not view.working
        for name in ("heal", "heal_forecast"):
            yield name, able, lambda able: gr.Button(interactive=able)
        yield "heal_words", heal_words.words(view), as_it_is
        yield "heal_adapter", heal_words.packable(view), lambda able: gr.Button(visible=able)
        yield "heal_download", heal_words.download(view), show_download
        progress, healed = view.heal_progress, view.healed
        history = healed.history if healed else progress.history if progress else ()
        before = healed.before if healed else progress.before if progress else 0.0
        yield "heal_curve", (before, history), _curve


def _text(source: str, pasted: str, upload: str | None) -> TextChoice | None:
    """The healing text that the fields name, of which all windows are taken; None for the embedded one."""
    return None if source == "embedded" else read.text_choice(source, pasted, upload, HEALING_WINDOW, 1)


def _curve(state: tuple[float, tuple[dict[str, Any], ...]]) -> Any:
    before, history = state
    return gr.Plot(healing_curve(history, before), visible=True) if history else gr.Plot(visible=False)


def connect_heal(
    handlers: HealHandlers, inputs: Callable[..., list[Any]], shown: list[Any], quiet: dict[str, Any]
) -> None:
    """Which handler answers which event of the panel; the arguments are those of `connect_ship`."""
    parts = handlers.parts
    fields = ("preset", "method", "text", "pasted", "upload")
    chosen = inputs(*(f"healing_{name}" for name in fields))
    parts["healing_text"].input(
        lambda name: (gr.Textbox(visible=name == "pasted"), gr.File(visible=name == "file")),
        parts["healing_text"],
        [parts["healing_pasted"], parts["healing_upload"]],
        **quiet,
    )
    parts["heal_forecast"].click(handlers.forecast, chosen, shown, **quiet)
    parts["heal"].click(handlers.heal, chosen, shown, **quiet)
    parts["heal_adapter"].click(handlers.pack_adapter, inputs(), shown, **quiet)
