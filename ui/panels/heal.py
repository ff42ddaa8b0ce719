"""Healing: a short training that makes up for the cuts."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gradio as gr
from gradio.utils import get_upload_folder

from analysis.figures.healing import healing_curve
from surgery.recipe.texts import HEALING_WINDOW, TextChoice
from surgery.session.view import View
from ui import inputs
from ui.panel import Panel, Shown, Wire, follow_text, own_text
from ui.presenters import heal as heal_words
from ui.tabs import Tab
from ui.widgets.choice import Choice


class Heal(Panel):
    """How long and by what, the two buttons, the words and the curve."""

    title = "Heal"

    def fields(self) -> None:
        """The choices, the buttons, and below them what healing does."""
        with gr.Row():
            self.preset = Choice(
                heal_words.PRESETS, value="two-minutes", label="How long", elem_id="heal-preset", min_width=150
            )
            self.method = Choice(
                heal_words.METHODS, value="lora", label="Learn by", elem_id="heal-method", scale=2, min_width=220
            )
            self.text = gr.Dropdown(
                heal_words.TEXTS,
                value="embedded",
                label="Text to learn from",
                info="Or type hub:owner/name. Never the text that is measured.",
                allow_custom_value=True,
                elem_id="heal-text",
                scale=2,
                min_width=220,
            )
        self.pasted, self.upload = own_text(
            "Pasted text to learn from", "Text file to learn from: .txt, .jsonl or .parquet", "heal-"
        )
        with gr.Row(elem_classes="ms-actions"):
            self.forecast = self.button("What will it do?", "heal-forecast", able=_can_heal)
            self.heal = self.button("Heal", "heal", able=_can_heal, variant="primary")
        self.html("heal-words", heal_words.words)
        with gr.Row(elem_classes="ms-actions"):
            self.pack = self.button("Make the adapter's file", "heal-adapter", there=heal_words.packable)
            self.download("heal-download", heal_words.download)
        curve = gr.Plot(show_label=False, visible=False, elem_id="heal-curve", elem_classes="ms-chart")
        self.curve = self.shows(curve)

    def events(self, wire: Wire) -> None:
        """Ask, heal, and take the adapter away."""
        chosen = (self.preset, self.method, self.text, self.pasted, self.upload)
        follow_text(self.text, self.pasted, self.upload)
        wire.on(self.forecast.click, _forecast, *chosen)
        wire.on(self.heal.click, _heal, *chosen)
        wire.on(self.pack.click, lambda tab: tab.session.heal.pack_adapter(Path(get_upload_folder())))

    def values(self, tab: Tab, view: View) -> Iterator[Shown]:
        """The curve besides, which is drawn only when it is sent."""
        yield from super().values(tab, view)
        progress, healed = view.heal.progress, view.heal.outcome
        history = healed.history if healed else progress.history if progress else ()
        before = healed.before if healed else progress.before if progress else 0.0
        yield Shown(
            self.curve,
            (before, history),
            lambda: gr.Plot(healing_curve(history, before), visible=True) if history else gr.Plot(visible=False),
        )


def _can_heal(view: View) -> bool:
    return heal_words.cut(view) and not view.working


def _heal(tab: Tab, preset: str, method: str, *text: Any) -> None:
    """Heal the cuts in force."""
    tab.session.heal.start(preset, method, _text(*text))


def _forecast(tab: Tab, preset: str, method: str, *text: Any) -> None:
    """Say what a preset would do on this machine."""
    tab.session.heal.forecast(preset, method, _text(*text))


def _text(source: str, pasted: str, upload: str | None) -> TextChoice | None:
    """The healing text that the fields name, of which all windows are taken; None for the embedded one."""
    return None if source == "embedded" else inputs.text_choice(source, pasted, upload, HEALING_WINDOW, 1)
