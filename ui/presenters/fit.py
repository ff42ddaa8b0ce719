"""From a session's view to the memory on the device, itemised, and the words of "Make it fit". Pure."""

from __future__ import annotations

from surgery.errors import InputError
from surgery.fit.fit import Fit
from surgery.search.make_it_fit import Option
from surgery.session.view import View
from ui.presenters.text import bytes_text, count_text, escape, note, number_text, table

CLASSES = {"mlp": "MLP", "norms": "norms and biases"}
RUNTIMES = {
    "llama.cpp": "llama.cpp",
    "transformers": "Python and transformers",
    "microcontroller": "a program without an operating system",
}


def room_text(view: View) -> str:
    """How much must go, or that nothing must."""
    room, now = view.fit.room, view.fit.now
    if room is None or now is None:
        return ""
    if now.fits:
        return note(
            f"It fits {view.device.name} with {bytes_text(now.spare_bytes)} to spare. "
            "Looking for options shows what a smaller or a larger type would cost."
        )
    return note(f"It does not fit {view.device.name}. {room.words()}", "ms-error")


def options_text(view: View) -> str:
    """What was found, the smallest loss first."""
    if view.fit.found is None:
        return ""
    fitting, target = view.fit.found.fitting, view.fit.found.target
    refused = "".join(note(sentence) for sentence in fitting.refused)
    if not fitting.options:
        words = "Nothing that was tried fits." if fitting.complete else "Nothing has been measured yet."
        return note(words, "ms-error" if fitting.complete else "") + refused
    rows = "".join(_row(number, option) for number, option in enumerate(fitting.options, 1))
    tokens = fitting.options[0].estimate.tokens
    basis = (
        f"Perplexity measured on {tokens:,} tokens, on the weights as they would be stored; bytes are arithmetic, for "
        f"{target.context:,} tokens of context with a KV cache in {target.kv_type}; speeds are estimated."
    )
    unfinished = "" if fitting.complete else " Not all candidates have been measured."
    options = table(("option", "perplexity", "parameters", "weights", "to spare", "tokens/s"), rows)
    return f'<div class="ms-scroll ms-wide">{options}</div>{note(basis + unfinished)}{refused}'


def _row(number: int, option: Option) -> str:
    error = option.estimate.standard_error
    exact = "" if error is None else f' title="± {error:.2f}"'
    return (
        f"<tr><td>{number}. {escape(option.how)}, {escape(option.type)}</td>"
        f"<td{exact}>{number_text(option.estimate.perplexity)}</td><td>{count_text(option.parameters)}</td>"
        f'<td title="{option.fit.weights_bytes:,} bytes">{bytes_text(option.fit.weights_bytes)}</td>'
        f"<td>{bytes_text(option.fit.spare_bytes)}</td><td>{option.fit.decode_tokens_per_second:,.1f}</td></tr>"
    )


def choices(view: View) -> list[tuple[str, str]]:
    """The options for the list: words and number."""
    options = view.fit.found.fitting.options if view.fit.found is not None else ()
    return [
        (f"{number}. {option.how}, {option.type}: perplexity {number_text(option.estimate.perplexity)}", str(number))
        for number, option in enumerate(options, 1)
    ]


def number_of(chosen: object) -> int:
    """The number that the list sent; `InputError` if it is none."""
    text = str(chosen or "")
    if not text.isascii() or not text.isdigit() or len(text) > 3:
        raise InputError("Choose one of the options from the list.")
    return int(text)


def fit_table(view: View) -> str:
    """The itemised memory of the edited model on the device."""
    fit = view.fit.now
    if fit is None or view.model is None:
        return ""
    items = [(f"Weights: {CLASSES.get(name, name)}", size, "arithmetic") for name, size in fit.weights.items()]
    items += [
        (f"KV cache, {fit.context:,} tokens in {fit.kv_type}", fit.kv_cache_bytes, "arithmetic"),
        ("Activations, at their peak", fit.activation_bytes, "estimated"),
        (f"Runtime: {RUNTIMES[fit.runtime]}", fit.overhead_bytes, "estimated"),
    ]
    largest = max(fit.capacity_bytes, fit.needed_bytes, 1)
    rows = "".join(
        f'<tr><td>{escape(name)}</td><td class="ms-number">{bytes_text(size)}</td>'
        f'<td><div class="ms-bar"><i style="width:{100 * size / largest:.2f}%"></i></div></td>'
        f'<td class="ms-kind">{kind}</td></tr>'
        for name, size, kind in items
    )
    total = (
        f'<tr class="ms-total"><td>Needed</td><td class="ms-number">{bytes_text(fit.needed_bytes)}</td>'
        '<td></td><td class="ms-kind">estimated</td></tr>'
        f"<tr><td>Capacity of {escape(view.device.name)}, less what its system keeps</td>"
        f'<td class="ms-number">{bytes_text(fit.capacity_bytes)}</td>'
        '<td></td><td class="ms-kind">from the device file</td></tr>'
    )
    notes = escape(" ".join((_speed_words(fit), *fit.notes)))
    return f'<table class="ms-table"><tbody>{rows}{total}</tbody></table><p class="ms-note">{notes}</p>'


def _speed_words(fit: Fit) -> str:
    speed = fit.speed
    words = (
        f"Decoding at most {speed.decode_bound:,.1f} tokens/s (bandwidth and compute), "
        f"reading a prompt at most {speed.prefill_bound:,.0f} tokens/s (compute): upper bounds, estimated."
    )
    if speed.basis == "expected":
        words = (
            f"Expected of llama.cpp: decoding {speed.decode:,.1f} tokens/s, reading a prompt {speed.prefill:,.0f} "
            f"tokens/s, estimated from what its kernels reach on a CPU. {words}"
        )
    if speed.energy_joules_per_token is not None:
        words += f" Energy for each decoded token about {speed.energy_joules_per_token:.2g} J, estimated."
    return words
