"""Model, text and device: which model is opened, what it is measured on, and where it is to run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gradio as gr

from surgery.errors import InputError
from surgery.fit.devices import read_device
from surgery.fit.kv_cache import KV_TYPES
from surgery.fit.weight_types import TYPES
from surgery.recipe import link as recipe_link
from surgery.recipe.recipe import Recipe
from surgery.session.state import Target
from ui import inputs
from ui.panel import Panel, Wire, follow_text, own_text
from ui.tabs import Tab
from ui.theme import UPLOAD_LIMIT

TEXTS = [
    ("Embedded sample", "embedded"),
    ("WikiText-2 (from the Hub)", "wikitext-2"),
    ("Pasted text", "pasted"),
    ("Uploaded file", "file"),
]


class Setup(Panel):
    """The settings, folded away."""

    def fields(self) -> None:
        """Three columns."""
        with gr.Accordion("Model, text and device", open=False, elem_id="setup"), gr.Row():
            with gr.Column(min_width=280, elem_classes="ms-fields"):
                self._model_fields()
            with gr.Column(min_width=280, elem_classes="ms-fields"):
                self._text_fields()
            with gr.Column(min_width=280, elem_classes="ms-fields"):
                self._device_fields()

    def _model_fields(self) -> None:
        source = gr.Textbox(
            "default",
            label="Model",
            info="default (SmolLM2-135M-Instruct), a Hub id (owner/name), a folder or a .gguf file.",
            elem_id="model",
            max_lines=1,
        )
        self.source = self.shows(source)
        self.revision = gr.Textbox("", label="Revision (Hub, optional)", elem_id="revision", max_lines=1)
        self.open = gr.Button("Open model", elem_id="open", size="md")

    def _text_fields(self) -> None:
        self.text = gr.Dropdown(
            TEXTS,
            value="embedded",
            label="Text to measure on",
            info="Or type hub:owner/name for any data set of the Hub.",
            allow_custom_value=True,
            elem_id="text",
        )
        self.pasted, self.upload = own_text(
            "Pasted text", f"Text file: .txt, .jsonl or .parquet, up to {UPLOAD_LIMIT.upper()}"
        )
        with gr.Row(elem_classes="ms-pair"):
            self.window = gr.Number(256, label="Tokens a window", precision=0, elem_id="window", min_width=100)
            self.windows = gr.Number(
                self.bench.limits.windows, label="Windows", precision=0, elem_id="windows", min_width=100
            )
        self.use_text = gr.Button("Measure on this text", elem_id="use-text", size="md")

    def _device_fields(self) -> None:
        device = gr.Dropdown(
            self._devices(),
            value=Target().device,
            label="Device",
            info="Memory and speed are worked out for it.",
            elem_id="device",
        )
        self.device = self.shows(device)
        with gr.Row(elem_classes="ms-pair"):
            self.context = gr.Number(
                Target().context, label="Context (tokens)", precision=0, elem_id="context", min_width=100
            )
            self.kv_type = gr.Dropdown(
                list(KV_TYPES), value=Target().kv_type, label="KV cache as", elem_id="kv-type", min_width=100
            )
        self.type = gr.Dropdown(list(TYPES), value=Target().type, label="Weights as", elem_id="type", min_width=100)
        self.own_device = gr.UploadButton(
            "Use my own device file", file_types=[".json"], elem_id="own-device", size="md"
        )

    def _devices(self) -> list[tuple[str, str]]:
        return [(name, key) for key, name in self.bench.devices.names().items()]

    def events(self, wire: Wire) -> None:
        """Open, measure on a text, aim at a device."""
        wire.on(
            [self.open.click, self.source.submit, self.revision.submit],
            lambda tab, source, revision: tab.session.edit.open(source, revision.strip() or None),
            self.source,
            self.revision,
        )
        follow_text(self.text, self.pasted, self.upload)
        wire.on(
            self.use_text.click,
            lambda tab, *fields: tab.session.edit.set_text(inputs.text_choice(*fields)),
            *(self.text, self.pasted, self.upload, self.window, self.windows),
        )
        target = (self.device, self.context, self.type, self.kv_type)
        for field in target:
            wire.on(
                field.input,
                lambda tab, *fields: tab.session.edit.set_target(inputs.target(*fields)),
                *target,
                last=True,
            )
        wire.on(self.own_device.upload, self._use_own_device, self.own_device, *target[1:])

    def _use_own_device(self, tab: Tab, path: str | None, *rest: Any) -> None:
        """A person's own device file."""
        if path:
            device = read_device(Path(path))
            tab.session.edit.set_target(inputs.target(path, *rest))
            tab.once[self.device] = gr.update(choices=[*self._devices(), (device.name, path)], value=path)

    def start(self, tab: Tab, kept: Any) -> None:
        """Open what the browser remembers: model, recipe, locks and running job; or the recipe of a link.

        Raises:
            InputError: the link is damaged, or of another model; what is remembered is opened all the same.
        """
        source, revision, recipe, job = inputs.remembered(kept)
        link = inputs.linked(kept)
        tab.once[self.source] = source
        tab.session.attach(job)
        trouble = None
        if link is not None:
            try:
                recipe = _linked(link, source)
            except InputError as error:
                trouble = error
        tab.session.edit.remember_locked(inputs.locked(kept))
        known = self.bench.opened(source, revision)
        if known is not None:
            tab.session.edit.adopt(known, recipe)
        elif not tab.session.view().working:
            tab.session.edit.open(source, revision, recipe)
        if trouble is not None:
            raise trouble


def _linked(link: str, source: str) -> Recipe:
    """The recipe of a link, if it is of the model that this browser opens anyway: a link alone fetches nothing."""
    recipe = recipe_link.decode(link)
    if recipe.model.id != source:
        raise InputError(
            f"The link's recipe is of the model {recipe.model.id!r}: open that one under “Model, text and device”, "
            "then follow the link again."
        )
    return recipe
