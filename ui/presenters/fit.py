"""From a session's view to the memory on the device, itemised, and the words of "Make it fit". Pure."""

from __future__ import annotations

from surgery.errors import InputError
from surgery.fit.fit import Fit
from surgery.search.make_it_fit import Option
from surgery.session.view import View
from ui.presenters.text import Html, bytes_text, count_text, note, notes, number_text, table

CLASSES = {"mlp": "MLP", "norms": "norms and biases"}
RUNTIMES = {
    "llama.cpp": "llama.cpp",
    "transformers": "Python and transformers",
    "microcontroller": "a program without an operating system",
}


def room_text(view: View) -> Html:
    """How much must go, or that nothing must."""
    room, now = view.fit.room, view.fit.now
    if room is None or now is None:
        return Html()
    if now.fits:
        return note(
            f"It fits {view.device.name} with {bytes_text(now.spare_bytes)} to spare. "
            "Looking for options shows what a smaller or a larger type would cost."
        )
    return note(f"It does not fit {view.device.name}. {room.words()}", "ms-error")


def options_text(view: View) -> Html:
    """What was found, the smallest loss first."""
    if view.fit.found is None:
        return Html()
    fitting, target = view.fit.found.fitting, view.fit.found.target
    refused = notes(fitting.refused)
    if not fitting.options:
        words = "Nothing that was tried fits." if fitting.complete else "Nothing has been measured yet."
        return note(words, "ms-error" if fitting.complete else "") + refused
    rows = (_row(number, option) for number, option in enumerate(fitting.options, 1))
    tokens = fitting.options[0].estimate.tokens
    basis = (
        f"Perplexity measured on {tokens:,} tokens, on the weights as they would be stored; bytes are arithmetic, for "
        f"{target.context:,} tokens of context with a KV cache in {target.kv_type}; speeds are estimated."
    )
    unfinished = "" if fitting.complete else " Not all candidates have been measured."
    options = table(("option", "perplexity", "parameters", "weights", "to spare", "tokens/s"), rows)
    return Html('<div class="ms-scroll ms-wide">{}</div>{}{}').format(options, note(basis + unfinished), refused)


def _row(number: int, option: Option) -> Html:
    error, size = option.estimate.standard_error, option.fit.weights_bytes
    exact = "" if error is None else Html(' title="± {:.2f}"').format(error)
    return Html(
        '<tr><td>{}. {}, {}</td><td{}>{}</td><td>{}</td><td title="{:,} bytes">{}</td><td>{}</td><td>{:,.1f}</td></tr>'
    ).format(
        *(number, option.how, option.type, exact, number_text(option.estimate.perplexity)),
        *(count_text(option.parameters), size, bytes_text(size), bytes_text(option.fit.spare_bytes)),
        option.fit.decode_tokens_per_second,
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


def fit_table(view: View) -> Html:
    """The itemised memory of the edited model on the device."""
    fit = view.fit.now
    if fit is None or view.model is None:
        return Html()
    items = [(f"Weights: {CLASSES.get(name, name)}", size, "arithmetic") for name, size in fit.weights.items()]
    items += [
        (f"KV cache, {fit.context:,} tokens in {fit.kv_type}", fit.kv_cache_bytes, "arithmetic"),
        ("Activations, at their peak", fit.activation_bytes, "estimated"),
        (f"Runtime: {RUNTIMES[fit.runtime]}", fit.overhead_bytes, "estimated"),
    ]
    largest = max(fit.capacity_bytes, fit.needed_bytes, 1)
    row = Html(
        '<tr><td>{}</td><td class="ms-number">{}</td><td><div class="ms-bar"><i style="width:{:.2f}%"></i></div></td>'
        '<td class="ms-kind">{}</td></tr>'
    )
    rows = Html().join(row.format(name, bytes_text(size), 100 * size / largest, kind) for name, size, kind in items)
    return Html(
        '<table class="ms-table"><tbody>{}<tr class="ms-total"><td>Needed</td><td class="ms-number">{}</td>'
        '<td></td><td class="ms-kind">estimated</td></tr>'
        '<tr><td>Capacity of {}, less what its system keeps</td><td class="ms-number">{}</td>'
        '<td></td><td class="ms-kind">from the device file</td></tr></tbody></table><p class="ms-note">{}</p>'
    ).format(
        *(rows, bytes_text(fit.needed_bytes), view.device.name, bytes_text(fit.capacity_bytes)),
        " ".join((_speed_words(fit), *fit.notes)),
    )


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
