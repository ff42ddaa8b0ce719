"""A method of the catalogue suggests what goes."""

from __future__ import annotations

from typing import Any

import gradio as gr

from surgery.pruning.budget import CFSP_SHARPNESS
from surgery.session.view import View
from ui import inputs
from ui.panel import LAST, Panel, Update, Wire
from ui.presenters import suggest_form as forms
from ui.presenters.status import can_start
from ui.presenters.suggest import suggestion_text
from ui.presenters.text import note
from ui.tabs import Tab
from ui.theme import PLAIN
from ui.widgets.choice import Choice


class Suggest(Panel):
    """A form of method, budget and rules; the suggestion; and whether it is taken."""

    title = "Suggest"

    def fields(self) -> None:
        """The form, and below it what was suggested."""
        form = forms.form(forms.DEFAULT_METHOD, None)
        with gr.Row():
            self.method = gr.Dropdown(
                forms.methods(),
                value=forms.DEFAULT_METHOD,
                label="Method",
                info="What goes, and how it is ranked.",
                elem_id="suggest-method",
                scale=4,
                min_width=260,
            )
            self.unit = Choice(
                form.units, value=form.unit, label="Budget", info="Of the source model.", elem_id="suggest-unit",
                scale=2, min_width=160,
            )  # fmt: skip
            self.amounts = {name: _amount_field(name, name == form.unit) for name in forms.AMOUNTS}
        with gr.Accordion("More", open=False, elem_id="more"), gr.Row():
            self.rules = {name: _rule_field(name, name in form.rules) for name in forms.RULES}
        with gr.Row(elem_classes="ms-actions"):
            self.suggest = self.button("Suggest", "suggest", able=can_start, variant="primary")
            self.note = gr.HTML(note(form.note), elem_id="suggest-note", min_width=220, **PLAIN)
        self.html("suggestion", suggestion_text)
        with gr.Row(elem_classes="ms-actions"):
            self.take = self.button("Take this suggestion", "suggest-take", there=_has_suggestion, variant="primary")
            self.discard = self.button("Discard", "suggest-discard", there=_has_suggestion)

    def events(self, wire: Wire) -> None:
        """Follow the method, suggest, take or discard."""
        fields = [*self.amounts.values(), *self.rules.values()]
        gr.on(
            [self.method.input, self.unit.input],
            self._choose_method,
            [self.method, self.unit],
            [self.unit, self.note, *fields],
            **LAST,
        )
        pressed = [self.suggest.click, *(amount.submit for amount in self.amounts.values())]
        wire.on(pressed, self._suggest, self.method, self.unit, *fields)
        wire.on(self.take.click, lambda tab: tab.session.suggest.take())
        wire.on(self.discard.click, lambda tab: tab.session.suggest.discard())

    def _choose_method(self, method: str, unit: str) -> Update:
        """The fields that go with a method and a budget; asks nothing of a session."""
        form = forms.form(method, unit)
        return {
            self.unit: gr.update(choices=form.units, value=form.unit),
            self.note: note(form.note),
            **{amount: gr.update(visible=name == form.unit) for name, amount in self.amounts.items()},
            **{rule: gr.update(visible=name in form.rules) for name, rule in self.rules.items()},
        }

    def _suggest(self, tab: Tab, method: str, unit: str, *fields: Any) -> None:
        """Let the method choose."""
        values = dict(zip((*self.amounts, *self.rules), fields, strict=True))
        tab.session.suggest.start(method, *inputs.suggestion(method, unit, values, values))


def _has_suggestion(view: View) -> bool:
    return view.suggest is not None


def _amount_field(name: str, visible: bool) -> Any:
    amount = forms.AMOUNTS[name]
    return gr.Textbox(
        amount.value,
        label=amount.label,
        info=amount.info,
        visible=visible,
        elem_id=f"amount-{name.replace('_', '-')}",
        max_lines=1,
        scale=2,
        min_width=150,
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
